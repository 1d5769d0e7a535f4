"""Cross-entropy of softmax against integer labels, a mean over N examples: dlogits = dy (p - onehot) / N."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(logits: Array, labels: Array) -> Array:
    """`(N, K), (N,) -> ()`."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def backward(args: tuple, dy: Array) -> tuple:
    return _of_probabilities(args, dy, axis=1)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.normal(size=(6, 9)).astype(dtype), rng.integers(0, 9, 6))


def _of_probabilities(args: tuple, dy: Array, axis: int) -> tuple:
    logits, labels = args
    p = jax.nn.softmax(logits, axis=axis)
    return (dy * (p - _one_hot(logits, labels)) / logits.shape[0], None)


def _one_hot(logits: Array, labels: Array) -> Array:
    return jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)


def _forget_the_label(args: tuple, dy: Array) -> tuple:
    logits, _ = args
    return (dy * jax.nn.softmax(logits) / logits.shape[0], None)


DERIVATION = Derivation(
    "softmax_cross_entropy",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the 1/N of the mean is forgotten",
            with_cotangent(backward, 0, lambda d: d * d.shape[0]),
            ("logits",),
            "factor",
            "tensorflow/swift-apis#42: the loss is averaged, its hand-written derivative is not",
        ),
        Wrong(
            "divided by the number of logits, not of examples",
            with_cotangent(backward, 0, lambda d: d / d.shape[1]),
            ("logits",),
            "factor",
            "victorlempitsky/Mate#2: numel where size along the batch is meant",
        ),
        Wrong(
            "the label's column is not lowered by one",
            _forget_the_label,
            ("logits",),
            "sparse",
            "a habit: `dscores[range(N), y] -= 1`, the line of the CS231n notes, is left out",
        ),
        Wrong(
            "softmax over the batch instead of the classes",
            lambda args, dy: _of_probabilities(args, dy, axis=0),
            ("logits",),
            "unexplained",
            "a habit: the axis of softmax is left to a default",
        ),
    ),
)
