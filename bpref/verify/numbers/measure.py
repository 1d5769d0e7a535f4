"""How far two arrays are apart: relatively, and in units of the last place of a dtype; and arrays in another one."""

from types import ModuleType
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.programs import is_typed

NEGLIGIBLE = 1e-3
"""An element this much smaller than the largest of its array is compared on that scale, not on its own."""


EXPONENT = np.uint64(0x7FF0000000000000)
"""Which bits of a float64 above 0 are its exponent: those of the power of two below it."""


class Ulps(NamedTuple):
    """Errors in units of the last place: over all elements, the median, the 99th percentile and the maximum."""

    median: float
    p99: float
    maximum: float


def is_inexact(v: object) -> bool:
    """Whether it is a floating-point number, real or complex, or an array of them."""
    return isinstance(v, float | complex) or _is_inexact_array(v)


def _is_inexact_array(v: object) -> TypeGuard[Array | np.ndarray]:
    return is_typed(v) and jnp.issubdtype(v.dtype, jnp.inexact)


def widened(tree: PyTree) -> PyTree:
    """Every floating-point array in float64, every complex one in complex128, as NumPy arrays; else as it is."""
    return jax.tree.map(_wide, tree)


def _wide(v: object) -> object:
    return np.asarray(v).astype(np.complex128 if np.iscomplexobj(v) else np.float64) if _is_inexact_array(v) else v


def rounded(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """Every real floating-point array in `dtype`, as NumPy arrays."""

    def one(v):
        return np.asarray(v).astype(dtype) if _is_inexact_array(v) and not np.iscomplexobj(v) else v

    return jax.tree.map(one, tree)


def relative_error(value: Array | np.ndarray, truth: Array | np.ndarray) -> Array | np.ndarray:
    """The largest elementwise error, relative to the element, or to 1e-3 of the array's largest element.

    NumPy arrays give a NumPy scalar, JAX arrays (traced ones too) a JAX scalar. A NaN anywhere, or an infinity
    in one alone, is an infinite error: NaN equals nothing. An empty array has none.
    """
    xp = truth.__array_namespace__()
    largest = xp.max(xp.where(xp.isfinite(truth), xp.abs(truth), 0), initial=0)
    return xp.max(_apart(value, truth, xp.maximum(xp.abs(truth), NEGLIGIBLE * largest), xp), initial=0)


def sample_errors(value: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The elementwise errors of `relative_error`, each sample along the first axis by itself; shape of `truth`."""
    inner = tuple(range(1, truth.ndim))
    magnitude = np.abs(truth)
    largest = np.max(np.where(np.isfinite(truth), magnitude, 0), axis=inner, keepdims=True, initial=0)
    return _apart(value, truth, np.maximum(magnitude, NEGLIGIBLE * largest), np)


def ulp_errors(value: np.ndarray, truth: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Elementwise errors in units of the last place that `truth` has in `dtype`, flattened.

    An element that rounding the array's largest one would swallow is measured by that rounding. Of complex numbers
    the distance is measured, in units of the modulus.
    """
    wide = np.complex128 if np.iscomplexobj(truth) else np.float64
    value, truth = (np.asarray(v, wide).reshape(-1) for v in (value, truth))
    eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
    magnitude = np.where(np.isfinite(truth), np.abs(truth), 0.0)
    magnitude = np.maximum(magnitude, max(eps * np.max(magnitude, initial=0.0), tiny))
    return _apart(value, truth, eps * (magnitude.view(np.uint64) & EXPONENT).view(np.float64), np)


def summarise(errors: np.ndarray) -> Ulps:
    """Median, 99th percentile and maximum of a flat array; zeros when it is empty."""
    if errors.size == 0:
        return Ulps(0.0, 0.0, 0.0)
    return Ulps(*(float(v) for v in np.quantile(errors, [0.5, 0.99, 1.0], method="higher")))


def _apart(value: Any, truth: Any, scale: Any, xp: ModuleType) -> Any:
    """Of arrays of whichever module `xp` is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = xp.abs(value - truth) / scale
    if xp is np and np.isfinite(np.max(errors, initial=0)):
        return errors
    return xp.where(value == truth, 0, xp.where(xp.isfinite(errors), errors, xp.inf))
