"""How noisy a function is, measured by calling it (Moré and Wild, SIAM J. Sci. Comput. 33, 2011)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def measured_noise(call: Callable, leaves: Sequence[Any], y: np.ndarray, eps: float, steps_dtype: Any) -> np.ndarray:
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


def _nudged(v: Any, step: int, dtype: Any) -> Any:
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


def is_inexact(v: Any) -> bool:
    return isinstance(v, float | complex) or (hasattr(v, "dtype") and jnp.issubdtype(v.dtype, jnp.inexact))


def eps_of(v: np.ndarray) -> float:
    return float(jnp.finfo(v.dtype).eps)


def widened(v: Any) -> Any:
    """In double precision, where it holds floating-point numbers."""
    return v if not is_inexact(v) else v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)
