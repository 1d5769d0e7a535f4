"""log sum exp along a row: dx = dy softmax(x)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong


def forward(x: Array) -> Array:
    """`(B, D) -> (B,)`."""
    return jax.nn.logsumexp(x, axis=1)


def backward(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (dy[:, None] * jax.nn.softmax(x, axis=1),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """One row is so high that its exponentials overflow, in float64 too."""
    x = rng.normal(size=(5, 7))
    x[3] += 800
    return (x.astype(dtype),)


def _at_the_maximum(x: Array) -> Array:
    return jax.nn.one_hot(jnp.argmax(x, axis=1), x.shape[1], dtype=x.dtype)


def _overflow(args: tuple, dy: Array) -> tuple:
    (x,) = args
    e = jnp.exp(x)
    return (dy[:, None] * e / jnp.sum(e, axis=1, keepdims=True),)


def _follow_the_shift(args: tuple, dy: Array) -> tuple:
    (x,) = args
    return (backward(args, dy)[0] + dy[:, None] * _at_the_maximum(x),)


DERIVATION = Derivation(
    "log_sum_exp",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "exponentials are not shifted",
            _overflow,
            ("x",),
            "nonfinite",
            "a habit: the forward is made stable, and its derivative is not",
        ),
        Wrong(
            "the maximum that is added back has a gradient, the one that is subtracted has none",
            _follow_the_shift,
            ("x",),
            "sparse",
            "a habit; that the two cancel is used in tinygrad/tinygrad#17088",
        ),
        Wrong(
            "softmax over the batch",
            lambda args, dy: (dy[:, None] * jax.nn.softmax(args[0], axis=0),),
            ("x",),
            "unexplained",
            "a habit: the axis of softmax is left to a default",
        ),
        Wrong(
            "everything goes to the maximum",
            lambda args, dy: (dy[:, None] * _at_the_maximum(args[0]),),
            ("x",),
            "unexplained",
            "a habit: the derivative of the maximum that log sum exp approximates",
        ),
    ),
)
