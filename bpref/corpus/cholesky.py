"""The Cholesky factor L of the symmetric part of a matrix.

With F(M) the lower triangle of M, its diagonal halved: S = L^-T F(L' dL) L^-1, and dmatrix = (S + S') / 2 (Murray,
'Differentiation of the Cholesky decomposition', arXiv:1602.07527). Of dL only the lower triangle counts.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(matrix: Array) -> Array:
    """`(D, D) -> (D, D)`, lower triangular. float32 and float64 only, as is all of `jnp.linalg`."""
    return jnp.linalg.cholesky((matrix + matrix.T) / 2, symmetrize_input=False)


def backward(args: tuple, dy: Array) -> tuple:
    return _of_diagonal(args, dy, 0.5)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    root = rng.normal(size=(5, 5))
    return ((root @ root.T + 5 * np.eye(5)).astype(dtype),)


def _of_diagonal(args: tuple, dy: Array, kept: float) -> tuple:
    """The derivation, with that part of the diagonal of L' dL kept."""
    factor = forward(*args)
    m = jnp.tril(factor.T @ jnp.tril(dy))
    m = m - (1 - kept) * jnp.diag(jnp.diag(m))
    s = jnp.linalg.solve(factor.T, jnp.linalg.solve(factor.T, m.T).T)
    return ((s + s.T) / 2,)


DERIVATION = Derivation(
    "cholesky",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "off-diagonal elements are counted twice",
            with_cotangent(backward, 0, lambda d: 2 * d - jnp.diag(jnp.diag(d))),
            ("matrix",),
            "unexplained",
            "pytorch/pytorch#137284 asks for S + S' - diag(S), the derivative by the elements of one triangle",
        ),
        Wrong(
            "the diagonal of L' dL is not halved",
            lambda args, dy: _of_diagonal(args, dy, 1.0),
            ("matrix",),
            "unexplained",
            "a habit: the lower triangle is taken as it is",
        ),
        Wrong(
            "S + S', not its half",
            with_cotangent(backward, 0, lambda d: 2 * d),
            ("matrix",),
            "factor",
            "a habit: the 1/2 of the symmetric part is forgotten",
        ),
        Wrong(
            "folded into the lower triangle",
            with_cotangent(backward, 0, lambda d: jnp.tril(2 * d) - jnp.diag(jnp.diag(d))),
            ("matrix",),
            "unexplained",
            "pytorch/pytorch#18825 and HIPS/autograd#56: right for symmetric changes, and not symmetric itself",
        ),
    ),
)
