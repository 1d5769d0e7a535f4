"""Pooling as the library has it: what the references of the pools are made of."""

import itertools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.formulas.convolution.windows import Ints, Padding, Pairs


def reduce_windows(
    x: Array, start: float, operation: Callable[..., Array], window: Ints, stride: int | Ints | None, padding: Padding
) -> Array:
    """Every window of the spatial axes of x `(N, *sizes, C)`, reduced from `start` on."""
    steps = window if stride is None else (stride,) * len(window) if isinstance(stride, int) else stride
    pads = padding.upper() if isinstance(padding, str) else ((0, 0), *in_pairs(padding, len(window)), (0, 0))
    return lax.reduce_window(x, start, operation, (1, *window, 1), (1, *steps, 1), pads)


def in_pairs(padding: int | Ints | Pairs, rank: int) -> Pairs:
    """Padding in numbers as pairs, in front and behind along each axis; one number stands for both."""
    of_axes = (padding,) * rank if isinstance(padding, int) else padding
    return tuple((p, p) if isinstance(p, int) else p for p in of_axes)


def pads_to_ceil(
    x: Array, window: Ints, stride: int | Ints, padding: int | Ints | Pairs | str, dilation: int | Ints = 1
) -> Pairs:
    """The padding with as many elements behind as the last window needs, where the number of windows is rounded up.

    Windows are put down one after the other, while one begins in x or in front of it and the last did not end behind.
    """
    rank = len(window)
    steps, apart = ((v,) * rank if isinstance(v, int) else v for v in (stride, dilation))
    pads = []
    asked = in_pairs(0 if isinstance(padding, str) else padding, rank)
    for n, k, s, d, (lo, hi) in zip(x.shape[1:-1], window, steps, apart, asked, strict=True):
        begin, end = -lo, -lo + d * (k - 1) + 1
        while end < n + hi and begin + s < n:
            begin, end = begin + s, end + s
        pads.append((lo, max(hi, end - n)))
    return tuple(pads)


def first_largest(x: Array, window: Ints, stride: Ints, padding: Pairs, dilation: Ints) -> tuple[Array, Array]:
    """The first of the largest elements of every window, whose elements are collected one by one, and their places.

    `jax.lax.reduce_window` has no derivative where windows are dilated. A place is counted through the spatial axes.
    """
    sizes = x.shape[1:-1]
    places = jnp.pad(jnp.arange(math.prod(sizes)).reshape(1, *sizes, 1), ((0, 0), *padding, (0, 0)))
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    reach = np.multiply(dilation, np.subtract(window, 1)) + 1
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, stride, strict=True)]
    views, of_places = [], []
    for offset in itertools.product(*map(range, window)):
        start = np.multiply(offset, dilation)
        at = (slice(a, a + s * (m - 1) + 1, s) for a, s, m in zip(start, stride, counts, strict=True))
        window_at = (slice(None), *at)
        views.append(padded[window_at])
        of_places.append(jnp.broadcast_to(places[window_at], views[-1].shape))
    seen = jnp.stack(views)
    first = jnp.argmax(seen, 0)[None]
    return jnp.take_along_axis(seen, first, 0)[0], jnp.take_along_axis(jnp.stack(of_places), first, 0)[0]
