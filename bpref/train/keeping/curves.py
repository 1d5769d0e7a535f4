"""curves: the losses, the test score and the gradient's norms of runs, over their epochs, as a picture."""

from itertools import cycle
from math import hypot
from pathlib import Path

from bpref.train.keeping.begun import Json

MOST_NAMED = 12
"""Of more curves than these a legend would hide the curves."""

COLOURS = [f"C{i}" for i in range(10)]


def draw(runs: dict[str, list[Json]], score: str, path: Path) -> None:
    """Draw the loss, the test score and the gradient's norm: of one run by layer, of several each one's of all layers.

    Args:
      runs: by name, the lines of `metrics.jsonl`.
      score: the name of the test score.
      path: where the PNG goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    losses, scores, norms = figure.subplots(1, 3)
    for (name, rows), colour in zip(runs.items(), cycle(COLOURS), strict=False):
        before = f"{name}: " if len(runs) > 1 else ""
        epochs = [row["epoch"] for row in rows]
        of_run: Json = {"marker": "o" if len(rows) == 1 else None}
        if before:
            of_run["color"] = colour
        losses.plot(epochs, _of(rows, "train_loss"), label=f"{before}training, mean of the epoch", **of_run)
        if rows[0].get("test_loss") is not None:
            test = of_run | ({"linestyle": "--"} if before else {})
            losses.plot(epochs, _of(rows, "test_loss"), label=f"{before}test, after the epoch", **test)
        if rows[0].get("test_score") is not None:
            scores.plot(epochs, _of(rows, "test_score"), label=f"{before}test", **of_run)
        if before:
            all_layers = [hypot(*map(_number, row["gradient_norm"].values())) for row in rows]
            norms.plot(epochs, all_layers, label=f"{before}all layers", **of_run)
        else:
            for layer in rows[0]["gradient_norm"]:
                by_layer = [_number(row["gradient_norm"][layer]) for row in rows]
                norms.plot(epochs, by_layer, label=f"layer {layer}", **of_run)
    for axes, label, scale in ((losses, "loss J", "log"), (scores, score, "linear"), (norms, "gradient norm", "log")):
        axes.set(xlabel="epoch", ylabel=label, yscale=scale)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(axes.lines) > MOST_NAMED:
            axes.set_title(f"{len(axes.lines)} curves")
        elif axes.lines:
            axes.legend().set_in_layout(False)  # a long name takes no room from the curves
    figure.savefig(path, dpi=120, format="png")


def _of(rows: list[Json], figure: str) -> list[float]:
    """A figure of every epoch; where one has none, a gap."""
    return [_number(row.get(figure)) for row in rows]


def _number(v: float | None) -> float:
    return float("nan") if v is None else v
