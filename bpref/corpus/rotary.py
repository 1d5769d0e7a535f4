"""Rotary positions on the first channels of each head: x (b, t, h, d), pairs (i, i + half), angle t w_i.

`y_i = x_i cos - x_j sin`, `y_j = x_j cos + x_i sin`: the transpose of a rotation turns back,
`dx_i = dy_i cos + dy_j sin`, `dx_j = dy_j cos - dy_i sin`. The channels after them are handed on.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

HALF = 2


def tables(x: Array, offset: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, `(1, t, 1, half)`."""
    angles = (np.arange(x.shape[1]) + offset)[:, None] * 0.6 ** np.arange(1, HALF + 1)
    angles = angles[None, :, None, :]
    return np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)


def rotated(x: Array, cos: np.ndarray, sin: np.ndarray) -> Array:
    a, b, rest = x[..., :HALF], x[..., HALF : 2 * HALF], x[..., 2 * HALF :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def forward(x):
    return rotated(x, *tables(x))


def backward(args: tuple, dy: Array, direction: int = -1, offset: int = 0) -> tuple:
    cos, sin = tables(args[0], offset)
    return (rotated(dy, cos, direction * sin),)


def of_neighbours(args: tuple, dy: Array) -> tuple:
    """Pairs (2i, 2i + 1) turn back, where the forward has turned (i, i + half)."""
    order = np.array([0, 2, 1, 3])
    mixed = jnp.concatenate([dy[..., order], dy[..., 2 * HALF :]], axis=-1)
    (turned,) = backward(args, mixed)
    return (jnp.concatenate([turned[..., order], turned[..., 2 * HALF :]], axis=-1),)


def without_the_rest(args: tuple, dy: Array) -> tuple:
    (dx,) = backward(args, dy)
    return (dx.at[..., 2 * HALF :].set(0),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.standard_normal((2, 4, 2, 7)).astype(dtype),)


DERIVATION = Derivation(
    name="rotary",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "turned on, not back",
            partial(backward, direction=1),
            ("x",),
            "missing_term",
            "a habit: the forward's kernel is called again; huggingface/candle#3612 calls it 'with sin negated'",
        ),
        Wrong(
            "neighbours are turned, where the forward has turned halves",
            of_neighbours,
            ("x",),
            "unexplained",
            "a habit: two layouts of the pairs; Dao-AILab/flash-attention#569 has the wrong name for that flag in the "
            "backward",
        ),
        Wrong(
            "the channels that are not rotated get nothing",
            without_the_rest,
            ("x",),
            "missing_term",
            "a habit: a buffer of zeros, of which the kernel writes the rotated channels",
        ),
        Wrong(
            "angles of the next position",
            partial(backward, offset=1),
            ("x",),
            "unexplained",
            "a habit: an offset for decoding, which the backward counts from 1",
        ),
    ),
)
