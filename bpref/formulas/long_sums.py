"""Sums of many terms, whose error must not grow with their number.

Added one after the other in float32, n terms are off by up to n / 2 units. In about sqrt(n) blocks of as many they are
off by sqrt(n).
"""

import itertools
import math

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import wide_dtype
from bpref.formulas import affine

LONG = 1024
"""How many terms are summed in sequence."""


def in_blocks(x: Array, axis: int, filling: float, at_start: bool = False, size: int | None = None) -> Array:
    """x with an axis of n elements as two, filled up at the end or the start: blocks of at least `size` elements, or
    about sqrt(n) blocks of as many."""
    n = x.shape[axis]
    least = size or math.isqrt(n - 1) + 1
    size = next((k for k in range(least, 2 * least) if n % k == 0), least)
    count = -(-n // size)
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (count * size - n, 0, 0) if at_start else (0, count * size - n, 0)
    filled = lax.pad(x, jnp.asarray(filling, x.dtype), config)
    return filled.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def joined_blocks(x: Array, axis: int, n: int, at_start: bool = False) -> Array:
    """The n elements that `in_blocks` made blocks of."""
    joined = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    first = joined.shape[axis] - n if at_start else 0
    return lax.slice_in_dim(joined, first, first + n, axis=axis)


def sum_over(x: Array, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """The sum over some axes, one run of neighbouring ones after the other.

    XLA sums along neighbours in many parts at a time; along others in sequence, on a CPU in six times the time. It
    would make one sum again of a sum of sums, but for the barrier between them.
    """
    places = sorted(axis % x.ndim for axis in axes)
    ends = [n for n, after in enumerate(places[1:], 1) if after > places[n - 1] + 1]
    for begin, end in itertools.pairwise((0, *ends)):
        x = lax.optimization_barrier(jnp.sum(x, tuple(places[begin:end]), keepdims=True))
    return jnp.sum(x, axes, keepdims=keepdims)


def times(A: Array, B: Array) -> Array:
    """A B for each matrix of a batch; a long sum of products is taken in blocks."""
    if A.shape[-1] <= LONG:
        return jnp.matmul(A, B)
    A, B = in_blocks(A, A.ndim - 1, 0.0), in_blocks(B, B.ndim - 2, 0.0)
    return jnp.sum(jnp.matmul(jnp.moveaxis(A, -2, -3), B), -3)


def transposed_times(dZ: Array, A: Array) -> Array:
    """`affine.transposed_times`; many rows in up to 16 blocks of at least 4,096, which takes no longer."""
    rows = math.prod(A.shape[:-1])
    if rows < 2 * 4096:
        return affine.transposed_times(dZ, A)
    size = max(4096, -(-rows // 16))
    dZ, A = (in_blocks(v.reshape(rows, v.shape[-1]), 0, 0.0, size=size) for v in (dZ, A))
    wide = wide_dtype(A.dtype)
    return jnp.sum(lax.dot_general(dZ, A, (((1,), (1,)), ((0,), (0,))), preferred_element_type=wide), 0)


def apart(x: Array, axis: int, at_end: bool = False) -> tuple[Array, Array]:
    """The first element along an axis, or the last, and all others."""
    n = x.shape[axis]
    one = lax.slice_in_dim(x, n - 1 if at_end else 0, n if at_end else 1, axis=axis)
    return one, lax.slice_in_dim(x, 0 if at_end else 1, n - 1 if at_end else n, axis=axis)


def together(one: Array, others: Array, axis: int, at_end: bool = False) -> Array:
    """What `apart` took apart."""
    return lax.concatenate([others, one] if at_end else [one, others], axis)
