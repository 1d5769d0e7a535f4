"""Signs: labels of two classes, -1 and +1, however they are written, and the signs of numbers in one byte each."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, Int8


def is_label(target: Array) -> bool:
    """Whether a target names a class, and has no cotangent: integers and booleans do."""
    return target.dtype == bool or jnp.issubdtype(target.dtype, jnp.integer)


def is_positive(label: Array) -> Array:
    """Which labels mean +1: True, and every positive integer. False, 0 and negative ones mean -1."""
    return label if label.dtype == bool else label > 0


NO_SIGN = 2
"""In a byte, what stands for the sign of NaN."""


class SignCache(NamedTuple):
    sign: Int8[Array, "..."]
    like: Float[Array, "0"]


def as_byte(e: Array) -> Int8[Array, "..."]:
    """The sign of each number, -1, 0 or 1, and `NO_SIGN` of NaN."""
    return jnp.where(e > 0, 1, jnp.where(e < 0, -1, jnp.where(e == 0, 0, NO_SIGN))).astype(jnp.int8)


def from_byte(sign: Int8[Array, "..."], size: ArrayLike, dtype: DTypeLike) -> Array:
    """The numbers of one size that have the signs that `as_byte` has kept; NaN for that of NaN."""
    return jnp.where(sign == NO_SIGN, jnp.nan, size * sign.astype(dtype))
