"""The picture of `bench_sequence`: ratios of all rows, and memory and time of attention against T."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.contest import Outcome

SHOWN = (2**-9, 2**2)
"""The ratios that the axes reach: a rival that allocates nothing would stretch them beyond reading."""


def plot(rows: Sequence[Outcome], series: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw the rows above; below, where there are series, one panel for bytes and one for seconds."""
    height = 1.2 + 0.24 * len(rows)
    panels = "AB;CD" if series else "AB"
    figure, axes = plt.subplot_mosaic(
        panels,
        figsize=(11, height + 3.5 * bool(series)),
        layout="constrained",
        height_ratios=(height, 3.5) if series else None,
    )
    names = [f"{row.contest}  /  {row.rival}" for row in rows]
    places = np.arange(len(rows))
    of_rows = {
        "A": ("temp memory", [row.memory for row in rows], [row.memory_bound for row in rows]),
        "B": ("time", [row.time.median for row in rows], [row.time_bound for row in rows]),
    }
    for panel, (title, ratios, bounds) in of_rows.items():
        axis = axes[panel]
        shown = np.clip(ratios, *SHOWN)
        beyond = shown != ratios
        axis.hlines(places, 1, shown, alpha=0.5)
        axis.scatter(shown[~beyond], places[~beyond], s=18, zorder=3)
        if beyond.any():
            axis.scatter(shown[beyond], places[beyond], s=60, marker="x", color="C3", zorder=3, label="off the axis")
        bounded = [(b, p) for b, p in zip(bounds, places, strict=True) if b is not None]
        if bounded:
            axis.scatter(*zip(*bounded, strict=True), marker="|", s=90, color="C3", label="bound")
        if bounded or beyond.any():
            axis.legend(loc="lower left", fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(f"{title}, by hand / rival")
        axis.set_yticks(places, names if panel == "A" else [""] * len(rows), fontsize=7)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for panel, unit, scale, field in (("C", "temp memory, MB", 1e-6, "temp"), ("D", "time, s", 1.0, "seconds")):
        if not series:
            break
        for name, points in series.items():
            axes[panel].loglog(
                [p.T for p in points], [scale * getattr(p, field) for p in points], marker="o", label=name, base=2
            )
        axes[panel].set_xlabel("T")
        axes[panel].set_ylabel(unit)
        axes[panel].grid(alpha=0.3)
        axes[panel].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
