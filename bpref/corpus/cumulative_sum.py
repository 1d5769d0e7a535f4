"""The cumulative sum along time: x_t is in every later y, so that dx is the cumulative sum of dy from the end."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(x: Array) -> Array:
    """`(B, T) -> (B, T)`."""
    return jnp.cumsum(x, axis=1)


def backward(args: tuple, dy: Array) -> tuple:
    return (_from_the_end(dy, axis=1),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.normal(size=(4, 7)).astype(dtype),)


def _from_the_end(dy: Array, axis: int) -> Array:
    return jnp.flip(jnp.cumsum(jnp.flip(dy, axis), axis), axis)


DERIVATION = Derivation(
    "cumulative_sum",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "summed from the start",
            lambda args, dy: (jnp.cumsum(dy, axis=1),),
            ("x",),
            "unexplained",
            "a habit; how to sum from the end in a kernel is asked in triton-lang/triton#2840",
        ),
        Wrong(
            "exclusive: dy of the same step is left out",
            lambda args, dy: (jnp.pad(_from_the_end(dy, axis=1), ((0, 0), (0, 1)))[:, 1:],),
            ("x",),
            "shifted",
            "a habit; the mode has to be handed on to the gradient, tensorflow/tensorflow#3296",
        ),
        Wrong(
            "not turned back after the sum",
            with_cotangent(backward, 0, lambda d: jnp.flip(d, 1)),
            ("x",),
            "shifted",
            "a habit: of flip, cumsum, flip the last is forgotten",
        ),
        Wrong(
            "summed over the batch instead of time",
            lambda args, dy: (_from_the_end(dy, axis=0),),
            ("x",),
            "unexplained",
            "a habit: the axis is left to a default",
        ),
        Wrong(
            "clipped inside the backward",
            with_cotangent(backward, 0, lambda d: jnp.clip(d, -2, 2)),
            ("x",),
            "clipped",
            "a habit: clipping belongs to the optimiser, and is put into the loop, as in qixianbiao/RNN#2",
        ),
    ),
)
