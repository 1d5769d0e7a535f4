"""One axis seen from every window through one offset, and the adjoint: each element put back where it was seen.

    seen  v_i = x_{s i + a}                 i in [0, m)
    put   x_j = sum over i with s i + a = j of v_i          at most one such i; 0 where there is none

`put` is the transpose of `seen`, and neither is a gather or a scatter: one is a strided slice, the other puts s - 1
zeros between the elements and others around them. a may be negative in `put`, and elements beyond x are then cut off.
"""

from collections.abc import Iterable

import jax.numpy as jnp
from jax import Array, lax


def seen(x: Array, axis: int, start: int, stride: int, count: int) -> Array:
    """v of x: `count` elements along `axis`, a stride apart from `start` on."""
    return lax.slice_in_dim(x, start, start + stride * (count - 1) + 1, stride, axis)


def put(v: Array, axis: int, start: int, stride: int, size: int) -> Array:
    """x of v: `size` elements along `axis`, zeros but for those of v, a stride apart from `start` on."""
    extent = stride * (v.shape[axis] - 1) + 1
    return pad_axis(v, axis, (start, size - start - extent), 0, stride - 1)


def put_in_all(v: Array, axis: int, window: int, stride: int, start: int, size: int) -> Array:
    """The sum of `put` over all offsets of a window that begins at `start`; a repetition where windows are adjacent."""
    if window != stride:
        return add_up(put(v, axis, start + o, stride, size) for o in range(window))
    repeated = jnp.repeat(v, window, axis)
    return pad_axis(repeated, axis, (start, size - start - repeated.shape[axis]), 0)


def pad_axis(x: Array, axis: int, ends: tuple[int, int], value: float, between: int = 0) -> Array:
    """x with `value` in front and behind along one axis, and between its elements; a negative end cuts off."""
    if ends == (0, 0) and between == 0:
        return x
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (*ends, between)
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def add_up(terms: Iterable[Array]) -> Array:
    """The sum of one or more arrays of one shape, one after the other."""
    first, *others = terms
    for v in others:
        first = lax.add(first, v)
    return first
