"""KL divergence of N(mean, e^log_variance) from N(0, 1), summed over each row, as in a variational autoencoder.

y = 1/2 sum(mean^2 + e^log_variance - log_variance - 1): dmean = dy mean, dlog_variance = dy (e^log_variance - 1) / 2.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent, with_incoming


def forward(mean: Array, log_variance: Array) -> Array:
    """`(N, D), (N, D) -> (N,)`."""
    return jnp.sum(mean**2 + jnp.exp(log_variance) - log_variance - 1, axis=1) / 2


def backward(args: tuple, dy: Array) -> tuple:
    return _of_logarithm(args, dy, -1)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return rng.normal(size=(6, 3)).astype(dtype), rng.normal(size=(6, 3)).astype(dtype)


def _of_logarithm(args: tuple, dy: Array, coefficient: float) -> tuple:
    """The derivation, with the coefficient of log_variance in y."""
    mean, log_variance = args
    return dy[:, None] * mean, dy[:, None] * (jnp.exp(log_variance) + coefficient) / 2


def _of_log_deviation(args: tuple, dy: Array) -> tuple:
    return dy[:, None] * args[0], dy[:, None] * (jnp.exp(2 * args[1]) - 1)


DERIVATION = Derivation(
    "gaussian_kl",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "negated",
            with_incoming(backward, jnp.negative),
            ("mean", "log_variance"),
            "sign",
            "pytorch/examples#824: Kingma and Welling's appendix B gives -KL, which is to be maximised",
        ),
        Wrong(
            "log_variance is taken for the logarithm of the standard deviation",
            _of_log_deviation,
            ("log_variance",),
            "unexplained",
            "suspected in AntixK/PyTorch-VAE#69, and mended, the other way round, in pyg-team/pytorch_geometric#1368",
        ),
        Wrong(
            "the term -log_variance has no derivative",
            lambda args, dy: _of_logarithm(args, dy, 0),
            ("log_variance",),
            "missing_term",
            "a habit: it is taken for a constant, like the 1 beside it",
        ),
        Wrong(
            "the term log_variance has the wrong sign",
            lambda args, dy: _of_logarithm(args, dy, 1),
            ("log_variance",),
            "missing_term",
            "FluxML/model-zoo#147: 'the other mistake is the sign of this'",
        ),
        Wrong(
            "1/2 is kept with the mean",
            with_cotangent(backward, 0, lambda d: d / 2),
            ("mean",),
            "factor",
            "a habit: the 2 of the square is forgotten",
        ),
    ),
)
