"""The pictures of `bench_models`: gpt's memory and time in every form, and how both grow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHORT = {"dots_with_no_batch_dims_saveable": "dots, no batch", "none": "no checkpoint"}


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """The front at the left; at the right, where it was measured, bytes and time as one size is doubled."""
    rows: Sequence[Mapping[str, Any]] = figures["front"]
    growth: Mapping[str, Sequence[Mapping[str, Any]]] = figures.get("growth", {})
    figure, axes = plt.subplots(1, 3 if growth else 1, figsize=(13 if growth else 6, 4.5), layout="constrained")
    of_front, *others = axes if growth else [axes]
    for i, form in enumerate(dict.fromkeys(row["form"] for row in rows)):
        of_form = [row for row in rows if row["form"] == form]
        at = [(1 / row["time"]["median"], row["temp"] / 1e6) for row in of_form]
        of_front.scatter(*zip(*at, strict=True), color=f"C{i}", marker="D" if i == 0 else "o", label=form, zorder=3)
        for row, place in zip(of_form, at, strict=True):
            name = SHORT.get(row["policy"], row["policy"].removesuffix("_saveable"))
            of_front.annotate(name, place, fontsize=6, textcoords="offset points", xytext=(4, 3))
    of_front.set_yscale("log", base=2)
    of_front.set_xlabel("time of a step, 1 is by hand")
    of_front.set_ylabel("temp memory, MB")
    of_front.set_title("gpt: memory and time", fontsize=10)
    for axis, (field, label) in zip(others, (("temp", "temp memory"), ("seconds", "time of a step")), strict=False):
        for size, points in growth.items():
            axis.loglog(
                [p["times"] for p in points],
                [p[field] / points[0][field] for p in points],
                base=2,
                marker="o",
                label=size,
            )
        axis.set_xlabel("the size, 1 is the smallest")
        axis.set_ylabel(f"{label}, 1 is the smallest's")
    for axis in (of_front, *others):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
