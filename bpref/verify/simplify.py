"""Making the arguments of a failing case simpler, one array at a time, as long as they fail in the same way."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from bpref.verify.oracle import is_differentiable
from bpref.verify.report import Report

FEW = 24
"""In an array of up to this many elements, each one is tried as zero or rounded by itself."""


def simpler_arguments(
    args: tuple, report: Report, like: Callable[[tuple, Report], Report | None], is_late: Callable[[], bool]
) -> tuple[tuple, Report]:
    """The arguments with arrays of ones and zeros and rounded numbers where that fails alike, and their report.

    Args:
      args, report: what fails.
      like: the report on other arguments if they fail alike, else None.
      is_late: whether to stop with what there is.
    """
    leaves, tree = jax.tree.flatten(args)
    for i in range(len(leaves)):
        for proposed in _simpler(leaves[i]):
            if is_late():
                break
            if np.array_equal(proposed(leaves[i]), leaves[i]):
                continue
            tried = [*leaves[:i], proposed(leaves[i]), *leaves[i + 1 :]]
            outcome = like(jax.tree.unflatten(tree, tried), report)
            if outcome is not None:
                leaves, report = tried, outcome
    return jax.tree.unflatten(tree, leaves), report


def _simpler(v: Any) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Changes to an array, in the order in which they are tried, each on top of those that were kept."""
    if not isinstance(v, np.ndarray) or v.size == 0 or not hasattr(v, "dtype") or not is_differentiable(v):
        return
    yield np.zeros_like
    yield np.ones_like
    for digits in (0, 1, 2, 4):
        yield lambda w, digits=digits: _rounded(w, digits)
    if v.size <= FEW:
        for place in np.ndindex(v.shape):
            yield lambda w, place=place: _with(w, place)


def _rounded(v: np.ndarray, digits: int) -> np.ndarray:
    """To so many digits after the first."""
    with np.errstate(all="ignore"):
        wide = v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)
        unit = 10.0 ** (np.floor(np.log10(np.where(wide == 0, 1.0, np.abs(wide)))) - digits)
        return (np.round(wide / unit) * unit).astype(v.dtype)


def _with(v: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    changed = v.copy()
    changed[place] = 0
    return changed
