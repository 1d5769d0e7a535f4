"""Finite differences: the function as they call it, how noisy it is, and the limit that they tend to, with a bar.

The noise is measured by calling the function (Moré and Wild, SIAM J. Sci. Comput. 33, 2011). The limit is that of
Richardson's tableau (Phil. Trans. R. Soc. A 210, 1911), and of it the entry with the smallest error bar (Ridders, Adv.
Eng. Softw. 4, 1982). The bar is how far an entry lies from the two that it is made of, plus the noise that they bring,
and no less than what the rougher slopes at smaller steps say against it: entries may agree by chance.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.verify.numbers.measure import is_inexact, widened


def measured_noise(
    call: Callable, leaves: Sequence[np.ndarray], y: np.ndarray, eps: float, steps_dtype: np.dtype
) -> np.ndarray:
    """The error of each output: what rounding makes at least, and what sixth differences over tiny steps show.

    A smooth function's vanish. Two sizes of steps, in units of the last place: a function that rounds its arguments
    does not see the smaller.
    """
    seen = np.zeros(y.shape)
    for step in (700_001, 300_000_001) if eps < 1e-10 else (11, 101):
        try:
            with np.errstate(all="ignore"):
                values = [call([_nudged(v, k * step, steps_dtype) for v in leaves]) for k in range(9)]
        except (ArithmeticError, ValueError):  # at the end of its domain
            continue
        if all(v.shape == y.shape and np.all(np.isfinite(v)) for v in values):
            seen = np.maximum(seen, np.max(np.abs(np.diff(values, 6, axis=0)), axis=0) / np.sqrt(924))
    relative = seen[y != 0] / np.abs(y[y != 0])
    pooled = float(np.quantile(relative, 0.5, method="lower")) if relative.size else 0.0
    return np.maximum(1.5 * seen, max(eps / 2, pooled) * np.abs(y))


def _nudged(v: np.ndarray, step: int, dtype: np.dtype) -> np.ndarray:
    """Every element moved up or down by so many units of its last place, so that nothing is rounded."""
    if not is_inexact(v):
        return v
    signs = np.random.default_rng(0).choice([-1.0, 1.0], v.shape)
    size = np.where(v == 0, typical_size(v), np.abs(widened(v)))
    return (widened(v) + step * signs * float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(size))).astype(v.dtype)


def typical_size(leaf: np.ndarray) -> float:
    """The size of an array's elements: their root mean square; 1 where all are zero."""
    size = float(np.sqrt(np.mean(np.abs(widened(leaf)) ** 2))) if leaf.size else 0.0
    return size if size > 1e-30 and np.isfinite(size) else 1.0


def _eps_of(v: np.ndarray) -> float:
    return float(jnp.finfo(v.dtype).eps)


class Setting(NamedTuple):
    """What every derivative needs.

    Attributes:
      call: the function, from leaves to one flat vector of its floating-point outputs.
      leaves: the arguments.
      steps_dtype: arguments are rounded to it, so that a step is what the function sees of it.
      dys: `(cotangents, outputs)`.
      y: the outputs at the arguments.
      noise: the error of each output.
      eps: the relative error of rounding.
    """

    call: Callable[[Sequence[np.ndarray]], np.ndarray]
    leaves: list[np.ndarray]
    steps_dtype: np.dtype
    dys: np.ndarray
    y: np.ndarray
    noise: np.ndarray
    eps: float


def setting_of(f: Callable[..., PyTree], args: tuple, dys: Sequence[PyTree]) -> tuple[Setting, Hashable]:
    """Finds out in which precision `f` computes and how noisy it is; and the tree of `args`."""
    given, tree = jax.tree.flatten(args)
    given = [np.array(v) if is_inexact(v) else v for v in given]

    def outputs(leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        copies = [np.array(v) if isinstance(v, np.ndarray) else v for v in leaves]
        return [np.asarray(v) for v in jax.tree.leaves(f(*jax.tree.unflatten(tree, copies)))]

    leaves = [widened(v) for v in given]
    try:
        seen = outputs(leaves)
    except Exception:  # it may take its own precision alone; what is wrong otherwise is raised by the next call
        leaves, seen = given, outputs(given)
    eps = max((_eps_of(v) for v in seen if is_inexact(v)), default=float(np.finfo(np.float64).eps))
    if eps > 1e-10 and any(is_inexact(v) and _eps_of(v) > 1e-10 for v in given):
        leaves, seen = given, outputs(given)
    which = [i for i, v in enumerate(seen) if is_inexact(v)]

    def call(leaves: Sequence[np.ndarray]) -> np.ndarray:
        parts = [v.reshape(-1) for v in outputs(leaves)]
        wide = [widened(parts[i]) for i in which]
        return np.concatenate(wide) if wide else np.zeros(0)

    y = call(leaves)
    steps_dtype = np.dtype(np.float64 if eps < 1e-10 else np.float32)
    noise = measured_noise(call, leaves, y, eps, steps_dtype)
    return Setting(call, leaves, steps_dtype, _stacked(dys, seen, which), y, noise, eps), tree


def _stacked(dys: Sequence[PyTree], seen: list[np.ndarray], which: list[int]) -> np.ndarray:
    """The cotangents as rows of a matrix."""
    rows = []
    for dy in dys:
        leaves = jax.tree.leaves(dy, is_leaf=lambda v: v is None)
        shapes = [None if v is None else np.shape(v) for v in leaves]
        if len(leaves) != len(seen) or any(shapes[i] != seen[i].shape for i in which):
            raise ValueError(f"dy has leaves of shapes {shapes}, the output of f {[v.shape for v in seen]}")
        rows.append(np.concatenate([widened(np.asarray(leaves[i])).reshape(-1) for i in which] or [np.zeros(0)]))
    return np.stack(rows)


COLUMNS = 7
"""How often the tableau extrapolates at most."""


class Found(NamedTuple):
    """For each of several series its limit, and its bar.

    Attributes:
      kink: half of how far the slope jumps there, which the bar has in it: any slope within that is a subgradient.
    """

    value: np.ndarray
    bar: np.ndarray
    kink: np.ndarray


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
    is_kink = np.abs(jump) > 2 * jump_bar
    kink = np.where(is_kink, np.abs(jump) / 2, 0)
    return Found(value, bar + kink + np.where(is_kink, jump_bar / 2, 0), kink)


def _ridders(first: np.ndarray, noise: np.ndarray, first_power: int) -> tuple[np.ndarray, np.ndarray]:
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
