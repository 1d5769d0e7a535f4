"""Cross-entropy of sigmoid against targets in [0, 1], a mean over all n elements.

With s = sigmoid(logits): dlogits = dy (s - targets) / n, and dtargets = -dy logits / n.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(logits: Array, targets: Array) -> Array:
    """`(N, K), (N, K) -> ()`."""
    return jnp.mean(jax.nn.softplus(logits) - logits * targets)


def backward(args: tuple, dy: Array) -> tuple:
    logits, targets = args
    return dy * (jax.nn.sigmoid(logits) - targets) / logits.size, -dy * logits / logits.size


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return rng.normal(size=(5, 7)).astype(dtype), rng.uniform(size=(5, 7)).astype(dtype)


def _derive_twice(args: tuple, dy: Array) -> tuple:
    dlogits, dtargets = backward(args, dy)
    s = jax.nn.sigmoid(args[0])
    return dlogits * s * (1 - s), dtargets


def _take_logits_for_probabilities(args: tuple, dy: Array) -> tuple:
    logits, targets = args
    return dy * (logits - targets) / logits.size, backward(args, dy)[1]


DERIVATION = Derivation(
    "sigmoid_cross_entropy",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the derivative of sigmoid is applied twice",
            _derive_twice,
            ("logits",),
            "unexplained",
            "'CNN Back Propagation without Sigmoid Derivative', Data Science Stack Exchange 47870",
        ),
        Wrong(
            "divided by the examples, not by examples times outputs",
            with_cotangent(backward, 0, lambda d: d * d.shape[1]),
            ("logits",),
            "factor",
            "oysteijo/simd_neuralnet#1: off by the number of outputs",
        ),
        Wrong(
            "logits are taken for probabilities",
            _take_logits_for_probabilities,
            ("logits",),
            "unexplained",
            "mlpack/mlpack#2873: the prediction where its sigmoid is meant",
        ),
        Wrong(
            "targets are taken to be constant",
            with_cotangent(backward, 1, jnp.zeros_like),
            ("targets",),
            "zero",
            "a habit: soft targets from a teacher are differentiable, and most formulas stop at the logits",
        ),
    ),
)
