"""Checkpoints: all that a run goes on from, written by orbax while it goes on, and found whole again."""

import errno
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from bpref.naming import flat_names
from bpref.sharding.hosts import are_many, is_first, laid, told
from bpref.train.fitted import Epoch
from bpref.train.keeping.begun import Json, json_object
from bpref.train.keeping.record import Unwritable, numbers_of, watched_of
from bpref.train.loop import Reached
from bpref.train.step import is_key
from bpref.whole_file import whole_file

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

KEPT = 3
"""Checkpoints of a run, the last ones: one that is damaged has some before it."""

SEAL = ".json"

REASONS = [*map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS))]
REASONS += map(os.strerror, (errno.EACCES, errno.ENOENT, errno.ENOTDIR, errno.EIO))
"""Why a file cannot be written, as orbax hands it on inside of longer messages."""


Arrays = Mapping[str, Array | np.ndarray]
"""By name, those of a checkpoint."""

Layouts = dict[str, list]
"""By name, the dtype's name and the shape."""


class Checkpoints:
    """Those of one run, in a directory of their own: the arrays in `STEP`, by orbax, and all else in `STEP.json`.

    That is written last, with the digests of the others: a checkpoint without it was not finished, and one that it does
    not fit is damaged. Of several processes each writes what its devices hold, into a directory that all share; the
    first does what there is to do once.
    """

    def __init__(self, directory: Path):
        self.directory = directory.absolute()
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._checkpointer: "ocp.Checkpointer | None" = None
        self._written: Future | None = None

    def save(self, reached: Reached) -> None:
        """Copy all that is there, and write it while the steps go on.

        Raises:
          Unwritable: the one before could not be written.
        """
        self.wait()
        arrays = _arrays(reached)
        self._written = self._writer.submit(self._write, reached.step, arrays, _about(reached, arrays))

    def wait(self) -> None:
        """Until what was saved is on disk; raises `Unwritable` where that failed."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    @contextmanager
    def written(self) -> Iterator[None]:
        """Within, checkpoints are saved; after it the last one is on disk, also where something was raised.

        Else it would be written while another run is in the directory. Of several processes one may be lost.
        """
        try:
            yield
        except BaseException:
            if not are_many():
                with suppress(Unwritable):
                    self.wait()
            raise
        self.wait()

    def last(self, like: Reached, warn: Callable[[str], None]) -> Reached | None:
        """The last one that is whole, with a warning for each that is not; None where there is none.

        Args:
          like: what a run of these settings begins with.

        Raises:
          ValueError: it is of a run of other arrays, and which.
        """
        step = told(str(self._last_whole(warn) if is_first() else None))[0]
        return self._read(int(step), like) if step.isdecimal() else None

    def steps(self) -> list[int]:
        """Of those that were written to the end."""
        if not self.directory.is_dir():
            return []
        sealed = [file.with_suffix("").name for file in self.directory.glob(f"*{SEAL}")]
        return sorted(int(name) for name in sealed if name.isdecimal())

    def remove(self) -> None:
        """All of them; the run is done."""
        with suppress(Unwritable):
            self.wait()
        if is_first():
            rmtree(self.directory, ignore_errors=True)

    def _last_whole(self, warn: Callable[[str], None]) -> int | None:
        steps = self.steps()
        for step in reversed(steps):
            if (damage := self._damage(step)) is None:
                return step
            instead = (
                "the one before it is taken" if step > steps[0] else "there is none before it, and the run begins anew"
            )
            warn(f"the checkpoint of step {step} in {self.directory} is damaged ({damage}); {instead}")
        return None

    def _write(self, step: int, arrays: Arrays, about: Json) -> None:
        import orbax.checkpoint as ocp

        with _quiet(), self._blaming(step):
            if self._checkpointer is None:
                if is_first():
                    self._forget_from(step)
                self._checkpointer = _checkpointer()
            saved = _packed(arrays) | {name: v for name, v in arrays.items() if _is_divided(v)}
            self._checkpointer.save(self.directory / str(step), args=ocp.args.PyTreeSave(saved))
            if is_first():
                self._seal(step, about)
                for old in self.steps()[:-KEPT]:
                    (self.directory / f"{old}{SEAL}").unlink()
                    rmtree(self.directory / str(old), ignore_errors=True)
            ocp.multihost.sync_global_processes(f"bpref checkpoint {step} sealed", processes=_processes())

    @contextmanager
    def _blaming(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            known = [reason for reason in REASONS if reason in str(error)]
            why = known[0] if known else (str(error).splitlines() or [type(error).__name__])[0]
            raise Unwritable(f"the checkpoint of step {step} cannot be written to {self.directory}: {why}") from error

    def _forget_from(self, step: int) -> None:
        """What was not taken, since it is damaged or was not finished, makes room."""
        sealed = {str(s) for s in self.steps() if s < step}
        for path in self.directory.glob("*"):
            if path.name.removesuffix(SEAL) not in sealed:
                rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _seal(self, step: int, about: Json) -> None:
        """Say what the arrays are that orbax has finished, and by which digests they are known."""
        sealed = {"about": about, "files": _digests(self.directory / str(step))}
        with whole_file(self.directory / f"{step}{SEAL}") as beside:
            beside.write_text(json.dumps(sealed | {"sha256": _sha256(sealed)}))

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint."""
        folder = self.directory / str(step)
        try:
            sealed = json_object(folder.with_suffix(SEAL).read_bytes())
        except (ValueError, OSError):
            sealed = {}
        if sealed.pop("sha256", None) != _sha256(sealed):
            return f"{folder.name}{SEAL} is not as it was written"
        expected, found = sealed["files"], _digests(folder)
        wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
        return None if not wrong else f"{wrong[0]} is {'missing' if wrong[0] not in found else 'not as it was written'}"

    def _read(self, step: int, like: Reached) -> Reached:
        import orbax.checkpoint as ocp

        folder = self.directory / str(step)
        about = json.loads(folder.with_suffix(SEAL).read_text())["about"]
        require_alike(folder, about["layout"], _layout(_of_carry(like)))
        divided = set(about.get("divided", ()))
        packed = {name: layout for name, layout in about["layout"].items() if name not in divided}
        args: dict[str, object] = {dtype: ocp.RestoreArgs(restore_type=np.ndarray) for dtype, _ in packed.values()}
        args |= {k: ocp.ArrayRestoreArgs(sharding=v.sharding) for k, v in _of_carry(like).items() if k in divided}
        with _quiet(), _checkpointer() as checkpointer:
            found = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
        arrays = _unpacked(found, packed) | {name: found[name] for name in divided}
        return _reached(arrays, about, like)


def _checkpointer() -> "ocp.Checkpointer":
    """Of one file for an array, which is the least work for few of them.

    Processes wait for each other by messages, not by the devices, on which the steps go on meanwhile.
    """
    import orbax.checkpoint as ocp

    options = ocp.options.MultiprocessingOptions(active_processes=_processes())
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _processes() -> set[int] | None:
    return set(range(jax.process_count())) if are_many() else None


@contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong is raised; orbax would log it too, with its traceback, and what it has not waited for then comes
    late to a loop of events that is closed.
    """
    log, hook = logging.getLogger("absl"), sys.unraisablehook
    before, log.disabled = log.disabled, True

    def but_for_late_writes(raised: "sys.UnraisableHookArgs") -> None:
        if not (isinstance(raised.exc_value, RuntimeError) and str(raised.exc_value) == "Event loop is closed"):
            hook(raised)

    sys.unraisablehook = but_for_late_writes
    try:
        yield
        sys.unraisablehook = hook
    finally:
        log.disabled = before


def require_alike(where: Path, before: Layouts, now: Layouts) -> None:
    """Raise `ValueError` for the first array of what the next step takes that is not what it was."""
    before = {name: layout for name, layout in before.items() if name.startswith("carry.")}
    for name in before | now:
        if before.get(name) != now.get(name):
            was, is_ = ("{}{}".format(*layout[name]) if name in layout else "not there" for layout in (before, now))
            raise ValueError(f"{where} is of another run: {name} was {was} there, and is {is_} here")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _sha256(sealed: Json) -> str:
    return hashlib.sha256(json.dumps(sealed).encode()).hexdigest()


def _of_carry(reached: Reached) -> dict[str, Array]:
    """The arrays of what the next step takes, by name, keys as their data; what is empty needs no file."""
    named = flat_names({"carry": reached.carry})
    data = {name: jax.random.key_data(v) if is_key(v) else v for name, v in named.items()}
    return {name: v for name, v in data.items() if v.size}


def _is_divided(v: Array | np.ndarray) -> bool:
    """Whether devices hold different parts of it: each writes its own."""
    return isinstance(v, jax.Array) and not v.is_fully_replicated


def _arrays(reached: Reached) -> Arrays:
    """Copies of them all, and the history's; of what is divided among devices there."""
    seen = [{"losses": epoch.losses, "norms": epoch.gradient_norms} for epoch in reached.history]
    of_history = flat_names({"history": jax.tree.map(lambda *v: np.stack(v), *seen)}) if seen else {}
    every = _of_carry(reached) | of_history
    return {name: jnp.copy(v) if _is_divided(v) else np.array(v) for name, v in every.items()}


def _about(reached: Reached, arrays: Arrays) -> Json:
    return {
        "step": reached.step,
        "seconds": reached.seconds,
        "history": [
            [e.number, e.test_loss, e.test_score, e.seconds, e.death, e.skipped, _watched(e)] for e in reached.history
        ],
        "layout": _layout(arrays),
        "divided": [name for name, v in arrays.items() if _is_divided(v)],
    }


def _watched(epoch: Epoch) -> Json | None:
    return None if epoch.watched is None else {leaf: numbers_of(w) for leaf, w in epoch.watched.items()}


def _layout(arrays: Arrays) -> Layouts:
    return {name: [v.dtype.name, list(v.shape)] for name, v in arrays.items()}


def _packed(arrays: Arrays) -> dict[str, np.ndarray]:
    """Those of a dtype in one, by its name: orbax takes as long for an array of one number as for a large one."""
    by_dtype: dict[str, list[np.ndarray]] = {}
    for v in (v for v in arrays.values() if not _is_divided(v)):
        by_dtype.setdefault(v.dtype.name, []).append(np.asarray(v).reshape(-1))
    return {dtype: np.concatenate(parts) for dtype, parts in by_dtype.items()}


def _unpacked(packed: dict[str, np.ndarray], layout: Layouts) -> dict[str, np.ndarray]:
    arrays, taken = {}, dict.fromkeys(packed, 0)
    for name, (dtype, shape) in layout.items():
        first, size = taken[dtype], math.prod(shape)
        arrays[name] = packed[dtype][first : first + size].reshape(shape)
        taken[dtype] = first + size
    return arrays


def _reached(arrays: Arrays, about: Json, like: Reached) -> Reached:
    """What was reached, its carry with the tree of `like`'s."""
    names = list(flat_names({"carry": like.carry}))

    def again(name, v):
        if name not in arrays:
            return v
        read = arrays[name]
        if isinstance(read, np.ndarray):
            read = laid(read, v.sharding) if isinstance(v.sharding, NamedSharding) else jnp.array(read)
        read = jax.random.wrap_key_data(read) if is_key(v) else read
        return read

    leaves = [again(name, v) for name, v in zip(names, jax.tree.leaves(like.carry), strict=True)]
    carry = jax.tree.unflatten(jax.tree.structure(like.carry), leaves)
    layers = list(like.carry.norms)
    history = [
        Epoch(
            number,
            np.asarray(arrays["history.losses"][i]),
            {layer: np.asarray(arrays[f"history.norms.{layer}"][i]) for layer in layers},
            test_loss,
            test_score,
            seconds,
            {leaf: watched_of(w) for leaf, w in watched[0].items()} if watched and watched[0] else None,
            death,
            skipped,
        )
        for i, (number, test_loss, test_score, seconds, death, skipped, *watched) in enumerate(about["history"])
    ]
    return Reached(about["step"], carry, history, about["seconds"])
