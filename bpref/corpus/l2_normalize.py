"""Rows of unit length: `y = x / (n + eps)`, `n = sqrt(sum(x^2))` over the last axis of x (m, d).

`dx = dy / (n + eps) - x sum(x dy) / (n (n + eps)^2)`. One coordinate of the arguments is exactly 0, no row is.
Squares are of `x / m`, with m the largest of a row: those of x overflow from 1e19 on, and vanish below 1e-23.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

EPS = 1e-5


def norm(x: Array) -> Array:
    m = jnp.abs(x).max(-1, keepdims=True)
    m = jnp.where(m > 0, m, 1)
    return m * jnp.sqrt(((x / m) ** 2).sum(-1, keepdims=True))


def forward(x):
    return x / (norm(x) + EPS)


def backward(args: tuple, dy: Array, projection: int = -1, axis: int = -1, eps: float = EPS) -> tuple:
    """`projection`: the sign of that term, 0 to leave it out; `axis`: its sum's; `eps`: in that term alone."""
    (x,) = args
    n = norm(x)
    r, u = n + eps, x / jnp.where(n > 0, n, 1)
    return (dy / (n + EPS) + projection * u * ((u * dy).sum(axis, keepdims=True) * (n / r)) / r,)


def dividing_by_x(args: tuple, dy: Array) -> tuple:
    """`dx = y (dy / x - ..)`: the derivative of log |y|, times y."""
    (x,) = args
    n = norm(x)
    return (x / (n + EPS) * (dy / x - (x * dy).sum(-1, keepdims=True) / (n * (n + EPS))),)


def normalised_itself(args: tuple, dy: Array) -> tuple:
    (dx,) = backward(args, dy)
    return (dx / jnp.sqrt((dx**2).sum()),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    x = rng.standard_normal((3, 5))
    x[1, 2] = 0
    return (x.astype(dtype),)


DERIVATION = Derivation(
    name="l2_normalize",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the projection forgotten",
            partial(backward, projection=0),
            ("x",),
            "missing_term",
            "habit: the norm is taken for a constant",
        ),
        Wrong(
            "eps left out of the projection",
            partial(backward, eps=0),
            ("x",),
            "unexplained",
            "chainer/chainer#4190: the backward of NormalizeL2 was wrong for an eps that is not negligible",
        ),
        Wrong(
            "the projection summed over the batch",
            partial(backward, axis=0),
            ("x",),
            "unexplained",
            "habit: an axis of the forward not handed to the backward",
        ),
        Wrong(
            "a division by x, which gives NaN where a coordinate is 0",
            dividing_by_x,
            ("x",),
            "nonfinite",
            "habit: dx = y (dy / x - ..), the logarithmic derivative; "
            "keras-team/keras#23075 and chainer/chainer#4765 are NaNs of the same function at other zeros",
        ),
        Wrong(
            "the gradient itself normalised",
            normalised_itself,
            ("x",),
            "nonlinear",
            "huawei-noah/AdderNet#21 quotes a backward that divides its gradient by the gradient's norm, on purpose",
        ),
    ),
)
