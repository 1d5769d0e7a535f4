"""A linear system, A X = B: dB = A^-T dX, dA = -dB X' (Giles, 'Collected matrix derivative results')."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(matrix: Array, rhs: Array) -> Array:
    """`(D, D), (D, K) -> (D, K)`. float32 and float64 only, as is all of `jnp.linalg`."""
    return jnp.linalg.solve(matrix, rhs)


def backward(args: tuple, dy: Array) -> tuple:
    return _of_rhs(args, jnp.linalg.solve(args[0].T, dy))


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return (rng.normal(size=(4, 4)) + 4 * np.eye(4)).astype(dtype), rng.normal(size=(4, 3)).astype(dtype)


def _of_rhs(args: tuple, drhs: Array) -> tuple:
    return -drhs @ forward(*args).T, drhs


DERIVATION = Derivation(
    "solve",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "solved with A, not with its transpose",
            lambda args, dy: _of_rhs(args, jnp.linalg.solve(args[0], dy)),
            ("matrix", "rhs"),
            "unexplained",
            "a habit: no shape reveals it; for the transposed system, pymc-devs/pytensor#1230",
        ),
        Wrong(
            "the minus of dA is lost",
            with_cotangent(backward, 0, jnp.negative),
            ("matrix",),
            "sign",
            "a habit: the sign of the inverse's derivative",
        ),
        Wrong(
            "X dB' instead of dB X'",
            with_cotangent(backward, 0, jnp.transpose),
            ("matrix",),
            "transposed",
            "tensor4all/tenferro-rs#772: the cotangent of A is given as -X ct^H",
        ),
        Wrong(
            "A has no cotangent",
            with_cotangent(backward, 0, lambda d: None),
            ("matrix",),
            "structure",
            "tensor4all/tenferro-rs#772: the rule returns None for an active A",
        ),
    ),
)
