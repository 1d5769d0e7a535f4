"""The picture of `bench_rules`: by hand beside autodiff of both forms, in time, cache and precision, for every rule."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.rule_figures import RIVALS, Row, error_ratio

SMALLEST = 2**-7
"""Ratios below this are drawn there."""


def plot(rows: dict[str, Row], path: Path) -> None:
    """Draw one line for each rule, grouped by kind, and write it as the file's suffix says."""
    names = list(rows)
    figure, axes = plt.subplots(1, 3, sharey=True, figsize=(10, 1.5 + 0.17 * len(names)), layout="constrained")
    panels = {
        "bytes kept for the backward": [[beside(r).cache_ratio for r in rows.values()] for beside in RIVALS.values()],
        "time of forward + backward": [[beside(r).time.median for r in rows.values()] for beside in RIVALS.values()],
        "error in float32, 99th percentile": [[error_ratio(row.errors.float32) for row in rows.values()]],
    }
    kinds = list(dict.fromkeys(row.kind for row in rows.values()))
    colours = [f"C{kinds.index(row.kind) % 10}" for row in rows.values()]
    places = np.arange(len(names))
    for axis, (title, (ratios, *others)) in zip(axes, panels.items(), strict=True):
        shown = np.clip(ratios, SMALLEST, 1 / SMALLEST)
        axis.hlines(places, 1, shown, colors=colours, alpha=0.5)
        axis.scatter(shown, places, c=colours, s=14, zorder=3, label="of bpref's own forward")
        for other in others:
            at = np.clip(other, SMALLEST, 1 / SMALLEST)
            axis.scatter(at, places, marker="|", c="grey", s=18, zorder=2, label="of the best plain form")
            axis.legend(loc="lower left", fontsize=7)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(f"{title}\nby hand / autodiff")
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, names, fontsize=7)
    axes[0].set_ylim(len(names), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
