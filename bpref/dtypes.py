"""The two rules of precision that every layer follows: what is rejected, and where half precision is widened."""

from typing import Any

import jax.numpy as jnp
from jax import Array


def require_floating(who: str, argument: str, x: Any) -> None:
    """Raise `TypeError` unless `x` holds real floating-point numbers (anything with a `dtype`)."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{who}: {argument} has dtype {x.dtype}, expected a floating-point dtype such as float32")


def require_integer(who: str, argument: str, x: Any) -> None:
    """Raise `TypeError` unless `x` holds integers."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{who}: {argument} has dtype {x.dtype}, expected an integer dtype such as int32")


def wide_dtype(dtype: Any) -> Any:
    """The dtype in which values of `dtype` are computed with and summed: at least float32."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def cast(x: Array, dtype: Any) -> Array:
    """`x` in `dtype`; the same array, and nothing to trace, when it already is."""
    return x if x.dtype == dtype else x.astype(dtype)


def widen(x: Array) -> Array:
    """`x` in at least float32."""
    return cast(x, wide_dtype(x.dtype))
