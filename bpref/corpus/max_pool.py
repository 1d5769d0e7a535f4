"""Max pooling, windows of 3 x 3 at stride 2, overlapping: each window's dy goes to the element that was its maximum."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

WINDOW, STRIDE = 3, 2


def forward(x: Array) -> Array:
    """`(B, H, W, C) -> (B, (H - 3) // 2 + 1, (W - 3) // 2 + 1, C)`."""
    return jnp.max(jnp.stack([x[region] for region in _regions(x.shape)]), axis=0)


def backward(args: tuple, dy: Array) -> tuple:
    """Of tied elements the first in its window gets all of dy."""
    (x,) = args
    y, dx = forward(x), jnp.zeros_like(x)
    given = jnp.zeros(y.shape, bool)
    for region in _regions(x.shape):
        is_first = (x[region] == y) & ~given
        dx = dx.at[region].add(jnp.where(is_first, dy, 0))
        given |= is_first
    return (dx,)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """All elements differ by at least 1/4, so that there are no ties in any dtype."""
    shape = (2, 7, 5, 3)
    return ((rng.permutation(np.prod(shape)).reshape(shape) / 4 - 25).astype(dtype),)


def _regions(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """For each place in a window, the slice of x that all windows have there."""
    height, width = ((size - WINDOW) // STRIDE * STRIDE + 1 for size in shape[1:3])
    for i in range(WINDOW):
        for j in range(WINDOW):
            yield slice(None), slice(i, i + height, STRIDE), slice(j, j + width, STRIDE)


def _overwrite(args: tuple, dy: Array) -> tuple:
    (x,) = args
    y, dx = forward(x), jnp.zeros_like(x)
    for region in _regions(x.shape):
        dx = dx.at[region].set(jnp.where(x[region] == y, dy, dx[region]))
    return (dx,)


def _skip_the_last_row(args: tuple, dy: Array) -> tuple:
    return backward(args, jnp.asarray(dy).at[:, -1].set(0))


def _spread(args: tuple, dy: Array) -> tuple:
    (x,) = args
    dx = jnp.zeros_like(x)
    for region in _regions(x.shape):
        dx = dx.at[region].add(dy / WINDOW**2)
    return (dx,)


DERIVATION = Derivation(
    "max_pool",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "an element that is the maximum of several windows gets the gradient of one",
            _overwrite,
            ("x",),
            "sparse",
            "FluxML/Flux.jl#1197",
        ),
        Wrong(
            "the last row of windows is skipped",
            _skip_the_last_row,
            ("x",),
            "sparse",
            "a habit: a loop to (H - window) // stride, which is one short of the number of windows",
        ),
        Wrong(
            "every element of a window gets an equal share",
            _spread,
            ("x",),
            "unexplained",
            "a habit: the backward of average pooling, copied",
        ),
    ),
)
