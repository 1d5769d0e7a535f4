"""log |det A| of a batch of matrices: dA = dy A^-T."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent, with_incoming


def forward(matrices: Array) -> Array:
    """`(B, D, D) -> (B,)`. float32 and float64 only, as is all of `jnp.linalg`."""
    return jnp.linalg.slogdet(matrices)[1]


def backward(args: tuple, dy: Array) -> tuple:
    (matrices,) = args
    return (dy[:, None, None] * _transpose(jnp.linalg.inv(matrices)),)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return ((rng.normal(size=(3, 4, 4)) + 4 * np.eye(4)).astype(dtype),)


def _transpose(matrices: Array) -> Array:
    return jnp.swapaxes(matrices, 1, 2)


def _of_symmetric(args: tuple, dy: Array) -> tuple:
    inverse = jnp.linalg.inv(args[0])
    on_diagonal = jnp.eye(inverse.shape[1], dtype=bool)
    return (dy[:, None, None] * jnp.where(on_diagonal, inverse, 2 * inverse),)


DERIVATION = Derivation(
    "log_determinant",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the inverse is not transposed",
            with_cotangent(backward, 0, _transpose),
            ("matrices",),
            "transposed",
            "a habit of those who know it from covariance matrices, which are symmetric",
        ),
        Wrong(
            "the derivative of the determinant, not of its logarithm",
            lambda args, dy: backward(args, dy * jnp.linalg.det(args[0])),
            ("matrices",),
            "unexplained",
            "a habit: of Jacobi's formula det(A) A^-T the determinant is not cancelled",
        ),
        Wrong(
            "the formula for symmetric matrices",
            _of_symmetric,
            ("matrices",),
            "unexplained",
            "The Matrix Cookbook (141), 2 X^-1 - diag(X^-1), used where elements are independent",
        ),
        Wrong(
            "negated",
            with_incoming(backward, jnp.negative),
            ("matrices",),
            "sign",
            "danielward27/flowjax#208: the log determinant of the inverse map, whose sign was lost",
        ),
    ),
)
