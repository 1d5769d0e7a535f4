"""What `bpref train --watch` prints: a row for each layer, of what goes forward and back through it."""

import numpy as np
from rich.console import Console
from rich.table import Table

from bpref.train.fitted import Epoch
from bpref.transforms import Statistics

WIDE = 95
"""Columns of figures, where no terminal says how many there are in all."""


def show(epoch: Epoch, is_last: bool) -> None:
    """Print the table after epochs 1, 2, 4, 8 ..., after the last, and where a layer is dead."""
    doubled = epoch.number & (epoch.number - 1) == 0
    if epoch.watched is None or not (doubled or is_last or epoch.death):
        return
    table = Table(title=f"after epoch {epoch.number}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for side in ("y", "dy"):
        for name in ("mean", "spread", "zeros", "largest", "not finite"):
            table.add_column(f"{side} {name}" if name == "mean" else name, justify="right")
    for leaf, watched in epoch.watched.items():
        table.add_row(leaf, *_cells(watched.output), *_cells(watched.cotangent))
    console = Console()
    Console(width=None if console.is_terminal else WIDE + max(map(len, epoch.watched))).print(table)


def _cells(of: Statistics | None) -> tuple[str, ...]:
    """The figures of all turns of a scan together."""
    if of is None:
        return ("",) * 5
    mean, spread, zeros, not_finite, largest, _ = (np.asarray(v, np.float64) for v in of)
    spread = np.sqrt(np.mean(spread**2 + mean**2) - np.mean(mean) ** 2)
    zeros, not_finite = f"{np.mean(zeros):.0%}", f"{np.sum(not_finite):.0f}"
    return f"{np.mean(mean):.1e}", f"{spread:.1e}", zeros, f"{np.max(largest):.1e}", not_finite
