"""Upsampling by 2 with the nearest neighbour: each pixel is repeated 2 x 2 times, and gets the sum of those dy."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(x: Array) -> Array:
    """`(B, H, W, C) -> (B, 2 H, 2 W, C)`."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def backward(args: tuple, dy: Array) -> tuple:
    (x,) = args
    b, h, w, c = x.shape
    return (jnp.sum(dy.reshape(b, h, 2, w, 2, c), axis=(2, 4)),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.normal(size=(2, 5, 4, 3)).astype(dtype),)


def _untile(args: tuple, dy: Array) -> tuple:
    (x,) = args
    b, h, w, c = x.shape
    return (jnp.sum(dy.reshape(b, 2, h, 2, w, c), axis=(1, 3)),)


DERIVATION = Derivation(
    "upsample",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "averaged where it must be added",
            with_cotangent(backward, 0, lambda d: d / 4),
            ("x",),
            "factor",
            "a habit: downsampling taken for the adjoint; the sum is spelt out in davisking/dlib#336",
        ),
        Wrong(
            "one pixel of each block only",
            lambda args, dy: (dy[:, ::2, ::2],),
            ("x",),
            "unexplained",
            "a habit: what repeats is undone by a stride",
        ),
        Wrong(
            "copies are taken to lie side by side",
            _untile,
            ("x",),
            "unexplained",
            "a habit: the adjoint of tile, not of repeat",
        ),
    ),
)
