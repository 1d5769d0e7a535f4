"""PReLU with one slope for each channel: dx = dy where x > 0, else dy slope; dslope = sum of dy min(x, 0)."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong


def forward(x: Array, slope: Array) -> Array:
    """`(B, T, C), (C,) -> (B, T, C)`."""
    return jnp.where(x > 0, x, slope[None, None] * x)


def backward(args: tuple, dy: Array) -> tuple:
    return _of_positive(args, dy, args[0] > 0)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """One slope is negative, as it can become in training."""
    slope = rng.uniform(0.1, 0.5, 8)
    slope[rng.integers(8)] *= -1
    return rng.normal(size=(3, 5, 8)).astype(dtype), slope.astype(dtype)


def _of_positive(args: tuple, dy: Array, positive: Array) -> tuple:
    x, slope = args
    return jnp.where(positive, dy, slope[None, None] * dy), jnp.sum(jnp.where(positive, 0, dy * x), axis=(0, 1))


DERIVATION = Derivation(
    "prelu",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the sign is read off y, which has another where a slope is negative",
            lambda args, dy: _of_positive(args, dy, forward(*args) > 0),
            ("x", "slope"),
            "sparse",
            "apache/mxnet#3277 and PaddlePaddle/Paddle#12538",
        ),
        Wrong(
            "dslope keeps the last example only",
            lambda args, dy: (backward(args, dy)[0], backward((args[0][-1:], args[1]), dy[-1:])[1]),
            ("slope",),
            "missing_sum",
            "a habit: assignment where accumulation is meant, in a loop over examples",
        ),
        Wrong(
            "dslope is a mean over the batch",
            lambda args, dy: (backward(args, dy)[0], backward(args, dy)[1] / dy.shape[0]),
            ("slope",),
            "mean_for_sum",
            "a habit: the loss may be a mean over the batch, and its 1/N is then already in dy",
        ),
        Wrong(
            "dslope counts positive inputs too",
            lambda args, dy: (backward(args, dy)[0], jnp.sum(dy * args[0], axis=(0, 1))),
            ("slope",),
            "unexplained",
            "a habit: dy x, the derivative of slope x, without the condition",
        ),
    ),
)
