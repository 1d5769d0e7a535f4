"""The cumulative product along time, of factors that may be zero.

dx_i = sum over j >= i of dy_j times the product of x_k over k <= j, k != i. Dividing y_j by x_i instead is 0 / 0 at a
zero, so that the products without x_i are computed, all T^2 of them.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong


def forward(x: Array) -> Array:
    """`(B, T) -> (B, T)`."""
    return jnp.cumprod(x, axis=1)


def backward(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (jnp.sum(jnp.triu(dy[:, None, :] * _without(x)), axis=2),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Factors between 0.5 and 1.5 of either sign; one of them, neither first nor last of its row, is zero."""
    x = rng.uniform(0.5, 1.5, (4, 6)) * rng.choice([-1, 1], (4, 6))
    x[2, 3] = 0
    return (x.astype(dtype),)


def _without(x: Array) -> Array:
    """`(B, T, T)`: the product of x up to j, without x_i."""
    at_i = jnp.eye(x.shape[1], dtype=bool)
    return jnp.cumprod(jnp.where(at_i, 1, x[:, None, :]), axis=2)


def _divide(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (jnp.flip(jnp.cumsum(jnp.flip(dy * forward(x), 1), axis=1), 1) / x,)


def _divide_and_hide(args: tuple, dy: Array) -> tuple:
    (d,) = _divide(args, dy)
    return (jnp.where(jnp.isnan(d), 0, d),)


def _sum_from_the_start(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (jnp.sum(jnp.tril(dy[:, None, :] * _without(x)), axis=2),)


DERIVATION = Derivation(
    "cumulative_product",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "divided by x, also where it is zero",
            _divide,
            ("x",),
            "nonfinite",
            "tensorflow/tensorflow#3862; in prod: pytorch/pytorch#773, apache/mxnet#18078",
        ),
        Wrong(
            "divided by x, and NaN replaced by zero",
            _divide_and_hide,
            ("x",),
            "sparse",
            "tensorflow/tensorflow#119430",
        ),
        Wrong(
            "summed from the start",
            _sum_from_the_start,
            ("x",),
            "unexplained",
            "a habit: the sum over later products runs the wrong way",
        ),
    ),
)
