"""determinant: d = det A.

Forward, by LU factorisation with pivoting, P A = L U, where L has ones on its diagonal:

    d = det P prod_i U_ii                                                 A: (..., n, n)    d: (...)

Differential: det A is linear in each A_ij, with the cofactor as its slope (Jacobi), and adj A the cofactors transposed:

    delta d = sum_ij (adj A)_ji delta A_ij

    dA_ij = dd (adj A)_ji                   dA = dd adj(A)^T              (..., n, n)

Where A^-1 exists adj A = d A^-1, but the adjugate is also defined where it does not. adj A = det P adj(U) L^-1 P, and
with U' and c the first n - 1 rows of U without and of its last column, u its last diagonal element, d' = det U',

    U = (U' c)      adj U = d' (u U'^-1   -U'^-1 c)        adj(U) X = d' U'^-1 (u X' - c x)        X = (X')
        (0  u)                 (0                1)                   d' x                             (x )

with x the last row of X: pivoting leaves what is missing to the rank at the end, and nothing is divided by u.

Complex matrices need nothing else: d is holomorphic in A, and JAX does not conjugate cotangents.

Cached: the factors L, U in one matrix, in at least float32, the permutation, and det P, one number for each matrix.

Numerical care: half precision is factorised in float32. The product over- and underflows where d does, and d' where
the cofactors do; `log_determinant` does not. At rank n - 1 dA is right, not inf or NaN, unless the zero is not the last
that elimination meets, as where a column of A is 0; there, and at a lower rank, where the truth is 0, dA may be NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.lax.linalg import triangular_solve
from jaxtyping import Complex, Float, Inexact

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, Factors, factorise, identity_like, spread_singular_values, transpose
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class DeterminantCache(NamedTuple):
    factors: Factors
    parity: Inexact[Array, "..."]


def determinant() -> Layer[tuple[()], Array, Reals, DeterminantCache]:
    """d = det A, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)`, real or complex, and y `(...)`. The determinant of a
      matrix without rows is 1. A singular matrix has a cotangent too, see above.

    Raises:
      ValueError: A is not square.
      TypeError: A is neither floating-point nor complex.
    """
    who = "determinant"

    def forward(params, A: Float[Array, "... n n"] | Complex[Array, "... n n"]):
        factors, pivots = factorise(widen(A))
        diagonal = jnp.diagonal(factors.lu, axis1=-2, axis2=-1)
        unmoved = jnp.broadcast_to(jnp.arange(A.shape[-1], dtype=pivots.dtype), pivots.shape)
        parity = jnp.prod(jnp.where(pivots == unmoved, 1, -1).astype(diagonal.dtype), -1)
        return cast(parity * jnp.prod(diagonal, -1), A.dtype), DeterminantCache(factors, parity)

    def backward(params, cache, dy):
        (lu, permutation), parity = cache
        n = lu.shape[-1]
        if n == 0:
            return (), jnp.zeros(lu.shape, dy.dtype)
        X = jnp.take_along_axis(identity_like(lu), permutation[..., None], -2)
        X = triangular_solve(lu, X, left_side=True, lower=True, unit_diagonal=True)
        row, column = (lax.broadcasted_iota(permutation.dtype, lu.shape, lu.ndim + axis) for axis in (-2, -1))
        u, x, c = lu[..., -1:, -1:], X[..., -1:, :], lu[..., :, -1:]
        above = jnp.where(row == n - 1, x, u * X - c * x)
        first = jnp.where(column == n - 1, (row == n - 1).astype(lu.dtype), lu)
        adjugate = triangular_solve(first, above, left_side=True, lower=False)
        of_first = jnp.prod(jnp.diagonal(lu, axis1=-2, axis2=-1)[..., :-1], -1)
        return (), cast(transpose(adjugate) * (widen(dy) * parity * of_first)[..., None, None], dy.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> Array:
    if A.shape[-1] == 0:
        return jnp.ones(A.shape[:-2], A.dtype)
    return jnp.linalg.det(widen(A)).astype(A.dtype)


RULE = Rule(
    "determinant",
    determinant,
    reference,
    cases=(
        Case("batch", Real("B n n", domain=spread_singular_values), fixed=SMALL_BATCH, timed={"B": 16, "n": 64}),
        Case("two batch axes", Real("B T n n", domain=spread_singular_values), fixed=SMALL_BATCH | {"T": 3}),
        Case(
            "complex",
            Real("B n n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"n": 3},
        ),
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 2.2.4",
    covers=("det",),
)
