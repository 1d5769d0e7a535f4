"""Pooling as the library has it: what the references of the pools are made of."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.formulas.windows import Ints, Padding, Pairs


def reduce_windows(
    x: Array, start: float, operation: Callable[..., Array], window: Ints, stride: int | Ints | None, padding: Padding
) -> Array:
    """Every window of the spatial axes of x `(N, *sizes, C)`, reduced from `start` on."""
    steps = window if stride is None else (stride,) * len(window) if isinstance(stride, int) else stride
    pads = padding.upper() if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, start, operation, (1, *window, 1), (1, *steps, 1), pads)


def first_largest(x: Array, window: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> Array:
    """The first of the largest elements of every window, whose elements are collected one by one.

    `jax.lax.reduce_window` has no derivative where windows are dilated.
    """
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    reach = np.multiply(dilation, np.subtract(window, 1)) + 1
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, stride, strict=True)]
    views = []
    for offset in itertools.product(*map(range, window)):
        start = np.multiply(offset, dilation)
        at = (slice(a, a + s * (m - 1) + 1, s) for a, s, m in zip(start, stride, counts, strict=True))
        views.append(padded[(slice(None), *at)])
    seen = jnp.stack(views)
    return jnp.take_along_axis(seen, jnp.argmax(seen, 0)[None], 0)[0]
