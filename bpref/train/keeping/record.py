"""Record: what a run leaves on disk, in a directory of its own: metrics as they come, parameters, and a plot."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.naming import flat_names
from bpref.train.fitted import Epoch
from bpref.train.keeping.begun import BEGUN, Json, json_object, require_the_same, write_begun
from bpref.train.keeping.curves import draw
from bpref.train.step import is_key
from bpref.transforms import Statistics, Watched
from bpref.whole_file import whole_file

METRICS, PARAMS, PLOT, CHECKPOINTS, PROFILE, TENSORBOARD = (
    "metrics.jsonl",
    "params.safetensors",
    "loss.png",
    "checkpoints",
    "profile",
    "tensorboard",
)
"""The files' names, and the directories' of what a run goes on from, of where its time goes, and for TensorBoard."""

STATE = "state."
"""What the names of running statistics begin with."""


def require_new(directory: Path) -> None:
    """Raise `OSError` where `directory` exists, or cannot be made; nothing is written."""
    if os.path.lexists(directory):
        raise FileExistsError(f"the output directory {directory} exists already; name one that does not")
    parent = next(p for p in directory.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the output directory {directory} cannot be made: {parent} is not a writable directory")


class Unwritable(Exception):
    """What a run leaves cannot be written; the message is one line that says what and why."""


class Record:
    """A directory with `metrics.jsonl`, `params.safetensors` and `loss.png`, of one run at a time.

    Each epoch's line is on disk before the next epoch starts, so that an interrupted run leaves what it did.

    Args:
      directory: a new one, or that of a run that is gone on with.
      settings: what the run is made of; to go on, they must be the same.
      resume: whether to go on where there is a run.

    Raises:
      OSError: the directory exists or cannot be made; to go on, there is no run in it.
      ValueError: the run was begun with other settings.
    """

    def __init__(self, directory: Path, settings: Json | None = None, resume: bool = False):
        self.directory = directory
        self.metrics = directory / METRICS
        if not (resume and is_begun(directory)):
            require_new(directory)
            directory.mkdir(parents=True)
        if (directory / BEGUN).exists():
            require_the_same(directory, settings or {})
        else:
            write_begun(directory, settings or {})
        self.metrics.touch()

    @property
    def is_done(self) -> bool:
        """Whether the run has come to its end."""
        return (self.directory / PARAMS).exists()

    def add(self, epoch: Epoch) -> None:
        """Append one line to `metrics.jsonl`, or nothing, where that raises `Unwritable`."""
        with self._blaming(self.metrics), self.metrics.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                rest = line_of(epoch).encode()
                while rest:
                    rest = rest[os.write(file.fileno(), rest) :]
            except OSError:
                file.truncate(end)
                raise

    def go_back(self, history: list[Epoch]) -> None:
        """Leave in `metrics.jsonl` the lines of these epochs, and no others."""
        with self._blaming(self.metrics):
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True) if self.metrics.exists() else []
            lines = lines[: len(history)] + [line_of(epoch) for epoch in history[len(lines) :]]
            with whole_file(self.metrics) as beside:
                beside.write_text("".join(lines), encoding="utf-8")

    def finish(self, params: PyTree, history: list[Epoch], score: str, settings: Json, state: PyTree = ()) -> None:
        """Write the plot, and the parameters with the settings as the file's metadata.

        Args:
          params: a tree of arrays; `0.W` is the entry `W` of its entry 0.
          state: running statistics beside them, under names that begin with `state.`; its PRNG keys are left out.
          history: every epoch.
          score: the name of the test metric.
          settings: anything that `json` can write.

        Raises:
          Unwritable: that cannot be written.
        """
        from safetensors.numpy import save

        named = flat_names(params) | {f"{STATE}{name}": v for name, v in flat_names(state).items() if not is_key(v)}
        arrays = {name: np.ascontiguousarray(v) for name, v in named.items()}
        with self._blaming(self.directory / PLOT), whole_file(self.directory / PLOT) as beside:
            draw({"": [as_json(epoch) for epoch in history]}, score, beside)
        with self._blaming(self.directory / PARAMS), whole_file(self.directory / PARAMS) as beside:
            beside.write_bytes(save(arrays, metadata={"settings": json.dumps(settings)}))

    @contextmanager
    def _blaming(self, file: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unwritable(f"{file} cannot be written: {error.strerror or error}") from error


class RecordOfTheFirst(Record):
    """The record as the other processes of a run have it: they write nothing."""

    def __init__(self, directory: Path):
        self.directory, self.metrics = directory, directory / METRICS

    def add(self, epoch: Epoch) -> None:
        """Nothing."""

    def go_back(self, history: list[Epoch]) -> None:
        """Nothing."""

    def finish(self, params: PyTree, history: list[Epoch], score: str, settings: Json, state: PyTree = ()) -> None:
        """Nothing."""


def is_begun(directory: Path) -> bool:
    """Whether there is a run to go on with: one that was stopped, were it before it wrote anything."""
    if not directory.is_dir():
        return False
    return (directory / BEGUN).exists() or all(path.name.startswith(f".{BEGUN}") for path in directory.iterdir())


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """No other run writes into a directory meanwhile; the hold ends with the process, however that ends.

    Raises:
      OSError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where a directory cannot be held so
        yield
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OSError(f"another run is writing into {directory}; wait until it ends, or name another") from error
    finally:
        os.close(opened)


def as_json(epoch: Epoch) -> Json:
    """An epoch's line of `metrics.jsonl`: means over its steps, and the test data's figures after it."""
    return {
        "epoch": epoch.number,
        "steps": len(epoch.losses) * epoch.number,
        "train_loss": float(epoch.losses.mean()),
        "test_loss": epoch.test_loss,
        "test_score": epoch.test_score,
        "gradient_norm": {layer: float(norms.mean()) for layer, norms in epoch.gradient_norms.items()},
        "seconds": round(epoch.seconds, 6),
        **({"skipped": epoch.skipped} if epoch.skipped else {}),
    } | ({} if epoch.watched is None else {"watched": {leaf: numbers_of(w) for leaf, w in epoch.watched.items()}})


def line_of(epoch: Epoch) -> str:
    """An epoch's line as it is written, with null for what is not finite: JSON has no such numbers."""
    return json.dumps(_finite(as_json(epoch)), allow_nan=False) + "\n"


def _finite(v: object) -> object:
    if isinstance(v, dict):
        return {name: _finite(part) for name, part in v.items()}
    if isinstance(v, list):
        return [_finite(part) for part in v]
    return None if isinstance(v, float) and not math.isfinite(v) else v


IN_A_ROW = ("steps", "test_loss", "test_score", "seconds")
"""Figures that a line of `metrics.jsonl` may have, besides those that each has."""


def rows_of(directory: Path) -> list[Json]:
    """The lines of a run's `metrics.jsonl`; of one that is being written, those that are whole.

    Raises:
      OSError: there is no such file.
      ValueError: a line is none of an epoch, and which; there is none.
    """
    lines = (directory / METRICS).read_bytes().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_row(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number < len(lines) or line.endswith(b"\n"):
                raise ValueError(f"{directory / METRICS}, line {number}: it is no epoch of a run") from error
    if not rows:
        raise ValueError(f"{directory / METRICS} is empty: no epoch is done yet")
    return rows


def _row(line: bytes) -> Json:
    row = json_object(line)
    figures = [row["epoch"], row["train_loss"], *(row.get(name) for name in IN_A_ROW)]
    for v in [*row["gradient_norm"].values(), *figures]:
        if v is not None and (isinstance(v, bool) or not isinstance(v, int | float)):
            raise TypeError(f"{v!r} is no number")
    if not isinstance(row["epoch"], int):
        raise TypeError(f"{row['epoch']!r} is no epoch")
    return row


def numbers_of(watched: Watched) -> Json:
    """What was watched at a leaf; inside of `scan` a list for the turns of each number."""
    both = {"output": watched.output, "cotangent": watched.cotangent}
    return {
        what: None if seen is None else {name: np.asarray(v).tolist() for name, v in seen._asdict().items()}
        for what, seen in both.items()
    }


def watched_of(numbers: Json) -> Watched:
    """What was watched again, of `numbers_of` it."""

    def statistics(seen):
        return None if seen is None else Statistics(**{name: jnp.asarray(v) for name, v in seen.items()})

    return Watched(None, statistics(numbers["output"]), statistics(numbers["cotangent"]))
