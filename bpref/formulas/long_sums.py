"""Sums of many terms, whose error must not grow with their number.

Added one after the other in float32, n terms are off by up to n / 2 units. In about sqrt(n) blocks of as many they are
off by sqrt(n).
"""

import math

import jax.numpy as jnp
from jax import Array, lax

LONG = 1024
"""How many terms are summed in sequence."""


def in_blocks(x: Array, axis: int, filling: float, at_start: bool = False) -> Array:
    """x with an axis of n elements as two, about sqrt(n) blocks of as many, filled up at the end or the start."""
    n = x.shape[axis]
    root = math.isqrt(n - 1) + 1
    size = next((k for k in range(root, 2 * root) if n % k == 0), root)
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
    """The sum over some axes. XLA sums along neighbouring ones in many parts at a time, along others in sequence.

    Blocks of what it sums well by itself take a quarter of a norm's time more. It would make one sum again of a sum of
    sums, but for the barrier between them.
    """
    places = sorted(axis % x.ndim for axis in axes)
    are_neighbours = places == list(range(places[0], places[0] + len(places))) if places else True
    for axis in () if are_neighbours else axes:
        if axis != x.ndim - 1 and x.shape[axis] > LONG:
            x = lax.optimization_barrier(jnp.sum(in_blocks(x, axis, 0.0), axis + 1))
    return jnp.sum(x, axes, keepdims=keepdims)


def times(A: Array, B: Array) -> Array:
    """A B for each matrix of a batch; a long sum of products is taken in blocks."""
    if A.shape[-1] <= LONG:
        return jnp.matmul(A, B)
    A, B = in_blocks(A, A.ndim - 1, 0.0), in_blocks(B, B.ndim - 2, 0.0)
    return jnp.sum(jnp.matmul(jnp.moveaxis(A, -2, -3), B), -3)


def apart(x: Array, axis: int, at_end: bool = False) -> tuple[Array, Array]:
    """The first element along an axis, or the last, and all others."""
    n = x.shape[axis]
    one = lax.slice_in_dim(x, n - 1 if at_end else 0, n if at_end else 1, axis=axis)
    return one, lax.slice_in_dim(x, 0 if at_end else 1, n - 1 if at_end else n, axis=axis)


def together(one: Array, others: Array, axis: int, at_end: bool = False) -> Array:
    """What `apart` took apart."""
    return lax.concatenate([others, one] if at_end else [one, others], axis)
