"""Record: what a run leaves on disk, in a directory of its own: metrics as they come, parameters, and a plot."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from bpref.train.fitted import Epoch
from bpref.train.step import flat_names, is_key
from bpref.transforms import Watched

METRICS, PARAMS, PLOT = "metrics.jsonl", "params.safetensors", "loss.png"
"""The files' names."""

MOST_NAMED = 12
"""Of more curves than these a legend would hide the curves."""

STATE = "state."
"""What the names of running statistics begin with."""


def require_new(directory: Path) -> None:
    """Raise `OSError` where `directory` exists, or cannot be made; nothing is written."""
    if os.path.lexists(directory):
        raise FileExistsError(f"the output directory {directory} exists already; name one that does not")
    parent = next(p for p in directory.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the output directory {directory} cannot be made: {parent} is not a writable directory")


class Record:
    """A new directory with `metrics.jsonl`, `params.safetensors` and `loss.png`.

    Each epoch's line is on disk before the next epoch starts, so that an interrupted run leaves what it did.

    Raises:
      OSError: the directory exists or cannot be made.
    """

    def __init__(self, directory: Path):
        require_new(directory)
        directory.mkdir(parents=True)
        self.directory = directory
        self.metrics = directory / METRICS
        self.metrics.touch()

    def add(self, epoch: Epoch) -> None:
        """Append one line to `metrics.jsonl`."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(as_json(epoch)) + "\n")

    def finish(self, params: Any, history: list[Epoch], score: str, settings: dict[str, Any], state: Any = ()) -> None:
        """Write the parameters, with the settings as the file's metadata, and the plot.

        Args:
          params: a tree of arrays; `0.W` is the entry `W` of its entry 0.
          state: running statistics beside them, under names that begin with `state.`; its PRNG keys are left out.
          history: every epoch.
          score: the name of the test metric.
          settings: anything that `json` can write.
        """
        from safetensors.numpy import save_file

        named = flat_names(params) | {f"{STATE}{name}": v for name, v in flat_names(state).items() if not is_key(v)}
        arrays = {name: np.ascontiguousarray(v) for name, v in named.items()}
        save_file(arrays, self.directory / PARAMS, metadata={"settings": json.dumps(settings)})
        plot(history, score, self.directory / PLOT)


def as_json(epoch: Epoch) -> dict[str, Any]:
    """An epoch's line of `metrics.jsonl`: means over its steps, and the test data's figures after it."""
    return {
        "epoch": epoch.number,
        "steps": len(epoch.losses) * epoch.number,
        "train_loss": float(epoch.losses.mean()),
        "test_loss": epoch.test_loss,
        "test_score": epoch.test_score,
        "gradient_norm": {layer: float(norms.mean()) for layer, norms in epoch.gradient_norms.items()},
        "seconds": round(epoch.seconds, 6),
    } | ({} if epoch.watched is None else {"watched": {leaf: _numbers(w) for leaf, w in epoch.watched.items()}})


def _numbers(watched: Watched) -> dict[str, Any]:
    """What was watched at a leaf; inside of `scan` a list for the turns of each number."""
    both = {"output": watched.output, "cotangent": watched.cotangent}
    return {
        what: None if seen is None else {name: np.asarray(v).tolist() for name, v in seen._asdict().items()}
        for what, seen in both.items()
    }


def plot(history: list[Epoch], score: str, path: Path) -> None:
    """Draw the loss, the test score and the gradient's norm by layer, over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [as_json(epoch) for epoch in history]
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else None
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    losses, scores, norms = figure.subplots(1, 3)
    losses.plot(epochs, [row["train_loss"] for row in rows], label="training, mean of the epoch", marker=marker)
    if rows[0]["test_loss"] is not None:
        losses.plot(epochs, [row["test_loss"] for row in rows], label="test, after the epoch", marker=marker)
    if rows[0]["test_score"] is not None:
        scores.plot(epochs, [row["test_score"] for row in rows], label="test", marker=marker)
    for layer in rows[0]["gradient_norm"]:
        norms.plot(epochs, [row["gradient_norm"][layer] for row in rows], label=f"layer {layer}", marker=marker)
    for axes, label, scale in ((losses, "loss J", "log"), (scores, score, "linear"), (norms, "gradient norm", "log")):
        axes.set(xlabel="epoch", ylabel=label, yscale=scale)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(axes.lines) > MOST_NAMED:
            axes.set_title(f"{len(axes.lines)} layers")
        elif axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
