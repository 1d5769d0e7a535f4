"""Differences at halving steps, extrapolated to step 0, with an error bar.

Richardson's tableau (Phil. Trans. R. Soc. A 210, 1911), and of it the entry with the smallest error bar (Ridders, Adv.
Eng. Softw. 4, 1982). The bar is how far an entry lies from the two that it is made of, plus the noise that they bring,
and no less than what the rougher slopes at smaller steps say against it: entries may agree by chance.
"""

import numpy as np

COLUMNS = 7
"""How often the tableau extrapolates at most."""

Found = tuple[np.ndarray, np.ndarray]
"""For each of several series, its limit and its bar."""


def extrapolated(slopes: np.ndarray, bends: np.ndarray, noise: np.ndarray) -> Found:
    """The derivatives that central differences tend to, and their bars.

    Args:
      slopes: `(rows, series)`, `(f(x + h) - f(x - h)) / 2h`, where h halves from row to row.
      bends: likewise, `(f(x + h) - 2 f(x) + f(x - h)) / h`, which vanish with h, where f is smooth.
      noise: likewise, the errors of `slopes`; bends have four times as much.
    """
    value, bar = _ridders(slopes, noise, first_power=2)
    jump, jump_bar = _ridders(bends, 4 * noise, first_power=1)
    # At a kink the slopes on either side differ also at step 0, and no value between them is the derivative.
    return value, bar + np.where(np.abs(jump) > 2 * jump_bar, np.abs(jump) / 2, 0)


def _ridders(first: np.ndarray, noise: np.ndarray, first_power: int) -> Found:
    """The entry with the smallest bar. `first` is a series in `first_power`, `first_power + 2`, ... of the step."""
    best, bar = first[-1].copy(), np.full(first.shape[1], np.inf)
    if len(first) < 3:
        return best, bar
    rough = noise[1:] + 2 * np.abs(np.diff(first, axis=0))
    # The first column is not extrapolated, and has no bar of its own.
    entries, errors = first, noise
    for column in range(1, min(COLUMNS, len(first) - 1) + 1):
        c = 2.0 ** (first_power + 2 * (column - 1))
        new = (c * entries[1:] - entries[:-1]) / (c - 1)
        errors = (c * errors[1:] + errors[:-1]) / (c - 1)
        bars = np.maximum(np.abs(new - entries[1:]), np.abs(new - entries[:-1])) + errors
        for row in range(len(new)):
            against = np.abs(new[row] - first[row + column :]) - rough[row + column - 1 :]
            bars[row] = np.maximum(bars[row], np.max(against, axis=0))
        pick = (np.argmin(bars, axis=0), np.arange(len(bar)))
        better = bars[pick] < bar
        best, bar = np.where(better, new[pick], best), np.where(better, bars[pick], bar)
        entries = new
    return best, bar
