"""The variance of each column, with the divisor N: dx = 2 dy (x - mean) / N.

The path through the mean adds -2/N sum(x - mean) = 0 and is rightly left out.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(x: Array) -> Array:
    """`(N, D) -> (D,)`."""
    return jnp.mean(jnp.square(x - jnp.mean(x, axis=0, keepdims=True)), axis=0)


def backward(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (2 * dy[None] * (x - jnp.mean(x, axis=0, keepdims=True)) / x.shape[0],)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Columns with means and spreads of their own."""
    return ((rng.normal(size=(7, 4)) * rng.uniform(0.5, 2, 4) + rng.normal(size=4)).astype(dtype),)


DERIVATION = Derivation(
    "variance",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the 2 of the square is forgotten",
            with_cotangent(backward, 0, lambda d: d / 2),
            ("x",),
            "factor",
            "a habit: in a loss, 1/2 takes it away",
        ),
        Wrong(
            "divided by N - 1",
            with_cotangent(backward, 0, lambda d: d * d.shape[0] / (d.shape[0] - 1)),
            ("x",),
            "factor",
            "a habit: Bessel's correction in one of the two only; the defaults differ, pytorch/pytorch#2436",
        ),
        Wrong(
            "the mean is not subtracted",
            lambda args, dy: (2 * dy[None] * args[0] / args[0].shape[0],),
            ("x",),
            "missing_term",
            "a habit: the derivative of the mean square",
        ),
        Wrong(
            "the derivative of the standard deviation",
            lambda args, dy: backward(args, dy / (2 * jnp.sqrt(forward(*args)))),
            ("x",),
            "unexplained",
            "a habit: the two are one function with a flag, as in pytorch/pytorch#18731",
        ),
    ),
)
