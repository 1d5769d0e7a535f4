"""Huber loss, a mean over all n elements: its derivative is the error e, clipped at DELTA, over n."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_incoming

DELTA = 0.75


def forward(predictions: Array, targets: Array) -> Array:
    """`(N, K), (N, K) -> ()`."""
    e = jnp.abs(predictions - targets)
    return jnp.mean(jnp.where(e <= DELTA, e * e / 2, DELTA * (e - DELTA / 2)))


def backward(args: tuple, dy: Array) -> tuple:
    predictions, targets = args
    return _of_slope(jnp.clip(predictions - targets, -DELTA, DELTA), dy)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Most predictions are too low, about half of them by more than DELTA."""
    return (2 * rng.normal(size=(6, 5)) - 1).astype(dtype), rng.normal(size=(6, 5)).astype(dtype)


def _of_slope(slope: Array, dy: Array) -> tuple:
    d = dy * slope / slope.size
    return d, -d


def _forget_delta(args: tuple, dy: Array) -> tuple:
    e = args[0] - args[1]
    return _of_slope(jnp.where(jnp.abs(e) <= DELTA, e, jnp.sign(e)), dy)


def _forget_the_negative_line(args: tuple, dy: Array) -> tuple:
    e = args[0] - args[1]
    return _of_slope(jnp.where(e < -DELTA, 0, jnp.clip(e, -DELTA, DELTA)), dy)


DERIVATION = Derivation(
    "huber",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "dy is ignored",
            with_incoming(backward, jnp.ones_like),
            ("predictions", "targets"),
            "ignores_dy",
            "chainer/chainer#1175: whatever is computed after the loss has no effect",
        ),
        Wrong(
            "the line's slope is 1, not delta",
            _forget_delta,
            ("predictions", "targets"),
            "factor",
            "RubixML/ML#446, in the pseudo-Huber loss: the factor is missing, and the tests use delta = 1",
        ),
        Wrong(
            "the line for negative errors is missing",
            _forget_the_negative_line,
            ("predictions", "targets"),
            "unexplained",
            "marlbenchmark/on-policy#47: e > d where |e| > d is meant",
        ),
    ),
)
