"""Dropout with its mask as an argument, 1 where kept: `y = x mask / keep`: `dx = dy mask / keep`."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

KEEP, BLOCK = 0.75, 2


def forward(x, mask):
    return jnp.where(mask == 1, x, 0) / KEEP


def backward(
    args: tuple, dy: Array, scale: float = 1 / KEEP, masked: bool = True, shift: int = 0, kept: int = 1
) -> tuple:
    """`shift`: how far away the mask of the last block, two rows, is read; `kept`: what stands for it in the mask."""
    mask = jnp.asarray(args[1])
    mask = jnp.concatenate([mask[:-BLOCK], jnp.roll(mask[-BLOCK:], shift, 1)])
    return (jnp.where(mask == kept, dy, 0) if masked else dy) * scale, None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return rng.standard_normal((6, 8)).astype(dtype), (rng.permutation(48) >= 11).astype(np.int32).reshape(6, 8)


DERIVATION = Derivation(
    name="dropout",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "not divided by the share that is kept",
            partial(backward, scale=1.0),
            ("x",),
            "factor",
            "a habit: the backward of the form that is scaled when it is tested, and not when it is trained",
        ),
        Wrong(
            "the mask is not applied",
            partial(backward, masked=False),
            ("x",),
            "sparse",
            "ddbourgin/numpy-ml#94: 'dLdy will overestimate the true gradient'",
        ),
        Wrong(
            "another mask than the forward's in the last block",
            partial(backward, shift=1),
            ("x",),
            "sparse",
            "a habit: the mask is drawn again, with an offset into the random numbers that is not the forward's",
        ),
        Wrong(
            "what was dropped gets the gradient",
            partial(backward, kept=0),
            ("x",),
            "unexplained",
            "a habit: one code's mask says what is kept, another's what is dropped",
        ),
        Wrong(
            "divided by the share twice",
            partial(backward, scale=1 / KEEP**2),
            ("x",),
            "factor",
            "a habit: the mask that is kept holds 1 / keep already",
        ),
    ),
)
