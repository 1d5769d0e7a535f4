"""Where a wrong cotangent is wrong, as a picture of at most two axes."""

import numpy as np

from bpref.verify.diagnosis.residual import Residual, scale_of, wrong_places
from bpref.verify.report import Pattern

MOST = 24
"""Rows and columns; of a longer axis neighbours are drawn as one, the worst of them."""


def pattern_of(r: Residual) -> Pattern | None:
    """The relative errors, the worst of all samples and of the axes that are not drawn; None where there is no axis."""
    if not r.shape or r.oracle.size == 0 or r.hand.shape != r.oracle.shape:
        return None
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.abs(r.hand - r.oracle) / np.maximum(scale_of(r.oracle), np.finfo(float).tiny)
        wrong = ~np.isfinite(error) | wrong_places(r)
    worst = np.where(wrong, np.minimum(np.nan_to_num(error, nan=1.0, posinf=1.0), 1.0), 0.0).max(axis=0)
    uneven = tuple(axis for axis in range(len(r.shape)) if _parts(worst, axis))
    drawn = tuple(sorted(_by_interest(r.shape, uneven)[:2]))
    seen = worst.max(axis=tuple(axis for axis in range(len(r.shape)) if axis not in drawn))
    for axis in range(len(drawn)):
        seen = np.maximum.reduceat(seen, _starts(seen.shape[axis]), axis)
    return Pattern(r.shape, drawn, uneven, tuple(map(tuple, np.atleast_2d(seen).tolist())))


def _parts(worst: np.ndarray, axis: int) -> bool:
    """Whether some indices of the axis are right throughout, and others are not."""
    wrong = worst.any(axis=tuple(a for a in range(worst.ndim) if a != axis))
    return bool(wrong.any() and not wrong.all())


def _by_interest(shape: tuple[int, ...], uneven: tuple[int, ...]) -> list[int]:
    """Axes that part right from wrong first, then those that are long, the last ones first."""
    return sorted(range(len(shape)), key=lambda axis: (axis not in uneven, shape[axis] == 1, -axis))


def _starts(n: int) -> np.ndarray:
    return np.unique(np.arange(MOST) * n // MOST) if n > MOST else np.arange(n)
