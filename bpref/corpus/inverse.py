"""The inverse Y of a matrix: dY = -Y dA Y as a differential, hence -Y' dy Y' as a cotangent."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(matrix: Array) -> Array:
    """`(D, D) -> (D, D)`. float32 and float64 only, as is all of `jnp.linalg`."""
    return jnp.linalg.inv(matrix)


def backward(args: tuple, dy: Array) -> tuple:
    y = forward(*args)
    return (-y.T @ dy @ y.T,)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return ((rng.normal(size=(5, 5)) + 4 * np.eye(5)).astype(dtype),)


def _forget_the_transposes(args: tuple, dy: Array) -> tuple:
    y = forward(*args)
    return (-y @ dy @ y,)


def _commute(args: tuple, dy: Array) -> tuple:
    y = forward(*args)
    return (-y.T @ y.T @ dy,)


DERIVATION = Derivation(
    "inverse",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "positive",
            with_cotangent(backward, 0, jnp.negative),
            ("matrix",),
            "sign",
            "a habit: the minus of d(1/x) is lost",
        ),
        Wrong(
            "neither factor is transposed",
            _forget_the_transposes,
            ("matrix",),
            "unexplained",
            "pytorch/pytorch.github.io#2135: NumPy's transpose(-2, -1) does not transpose; the example is symmetric",
        ),
        Wrong(
            "transposed: the cotangent of the transpose",
            with_cotangent(backward, 0, jnp.transpose),
            ("matrix",),
            "transposed",
            "a habit: derivatives in numerator layout are the transpose of the cotangent",
        ),
        Wrong(
            "factors are commuted",
            _commute,
            ("matrix",),
            "unexplained",
            "'Derivative of the inverse of a matrix', mathzsolution.com: -K^-2 dK, as for numbers",
        ),
    ),
)
