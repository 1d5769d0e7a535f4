"""Softmax over the last axis of x (n, c): `dx = p (dy - sum(p dy))`, with p the output.

A constant subtracted from a row of dy changes nothing. It is dy at the largest p: there `1 - p` cancels.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def through_softmax(p: Array, dp: Array, axis: int = -1) -> Array:
    """The cotangent of logits along the last axis; `axis` is that of the dot product."""
    e = dp - jnp.take_along_axis(dp, p.argmax(-1, keepdims=True), -1)
    return p * (e - (p * e).sum(axis, keepdims=True))


def backward(args: tuple, dy: Array, axis: int = -1) -> tuple:
    return (through_softmax(forward(*args), dy, axis),)


def diagonal(args: tuple, dy: Array) -> tuple:
    p = forward(*args)
    return (dy * p * (1 - p),)


def without_dot_product(args: tuple, dy: Array) -> tuple:
    return (dy * forward(*args),)


def of_the_cross_entropy(args: tuple, dy: Array) -> tuple:
    return (forward(*args) - dy,)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.standard_normal((3, 5)).astype(dtype),)


DERIVATION = Derivation(
    name="softmax",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the Jacobian's diagonal alone, p (1 - p)",
            diagonal,
            ("x",),
            "missing_term",
            "stats.stackexchange.com, 'Softmax layer in a neural network': the gradient check fails on h (1 - h)",
        ),
        Wrong(
            "the dot product forgotten",
            without_dot_product,
            ("x",),
            "missing_term",
            "HomericIntelligence/Odyssey#2134",
        ),
        Wrong(
            "twice too large",
            with_cotangent(backward, 0, lambda dx: 2 * dx),
            ("x",),
            "factor",
            "markroxor/fromscratchtoml#65: 'Gradient of softmax is off by a factor of two'",
        ),
        Wrong(
            "the dot product taken over the batch",
            partial(backward, axis=0),
            ("x",),
            "unexplained",
            "habit: axis=0 where columns were the examples",
        ),
        Wrong(
            "p - dy, which is softmax and cross-entropy together, dy taken for the labels",
            of_the_cross_entropy,
            ("x",),
            "nonlinear",
            "habit: the shortcut of the two together, used for softmax alone; "
            "datascience.stackexchange.com/questions/64746 compares both",
        ),
    ),
)
