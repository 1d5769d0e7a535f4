"""solve: X = A^-1 B, the solution of A X = B.

Forward, for each square matrix A of the batch, and k right-hand sides B (a vector is one of them):

    sum_j A_ij X_jk = B_ik                              A: (..., n, n)    B, X: (..., n, k) or (..., n)

by LU factorisation with pivoting, P A = L U, and X = U^-1 L^-1 P B.

Differential: (delta A) X + A (delta X) = delta B, so

    delta X_ik = sum_j A^-1_ij (delta B_jk - sum_l (delta A_jl) X_lk)

The adjoint sum_ik dX_ik delta X_ik, the factor of each perturbation:

    dB_jk = sum_i A^-1_ij dX_ik             dB = A^-T dX                  like B
    dA_jl = -sum_k dB_jk X_lk               dA = -dB X^T                  (..., n, n)

so the backward is one solve with the transposed matrix, whose factors are those of A: A^-T = P^T L^-T U^-T.

Complex numbers need nothing else: X is holomorphic in A and B, and JAX does not conjugate cotangents (those of PyTorch
are the conjugates of these).

Cached: X, which dA needs, and the factors L, U in one matrix, with the permutation P. A is not needed once it is
factorised; to keep A instead would be no smaller, and cost a second factorisation.

Numerical care: half precision is solved in float32. No inverse is formed. The error of dB is that of a solve, the
condition number times round-off; dA inherits it from dB and X. A singular matrix cannot be seen while tracing: X
holds inf or NaN, as `jnp.linalg.solve` has it, and so do the cotangents; other matrices of the batch are not touched.
"""

from typing import NamedTuple

from jax import Array
from jaxtyping import Complex, Float, Inexact

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    Factors,
    as_matrices,
    factorise,
    product,
    solve_factorised,
    solve_factorised_transposed,
    spread_singular_values,
    transpose,
)
from bpref.layer import Layer, Reals, no_params
from bpref.naive.dense import naive_solve
from bpref.rule import Case, Real, Rule


class LinearSystem(NamedTuple):
    A: Float[Array, "*b n n"] | Complex[Array, "*b n n"]
    B: Float[Array, "*b n"] | Float[Array, "*b n k"] | Complex[Array, "*b n"] | Complex[Array, "*b n k"]


class SolveCache(NamedTuple):
    factors: Factors
    X: Inexact[Array, "... n k"]


def solve() -> Layer[tuple[()], tuple[Array, Array], Reals, SolveCache]:
    """X with A X = B, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `(A, B)`: A `(..., n, n)`, B `(..., n, k)` or, as vectors, `(..., n)`, with the same
      batch axes, both real or complex; y is X, of B's shape. Where A is singular, X and the cotangents hold inf or NaN.

    Raises:
      ValueError: A is not square; B does not fit A.
      TypeError: x is no pair; A is neither floating-point nor complex; B has another dtype.
    """
    who = "solve"

    def forward(params, x: LinearSystem):
        A, B, is_vector = as_matrices(x)
        factors, _ = factorise(widen(A))
        X = solve_factorised(factors, widen(B))
        y = cast(X, B.dtype)
        return y[..., 0] if is_vector else y, SolveCache(factors, X)

    def backward(params, cache, dX):
        is_vector = dX.ndim < cache.X.ndim
        dB = solve_factorised_transposed(cache.factors, widen(dX[..., None] if is_vector else dX))
        dA = -product(dB, transpose(cache.X))
        dB = cast(dB, dX.dtype)
        return (), (cast(dA, dX.dtype), dB[..., 0] if is_vector else dB)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array]) -> Array:
    A, B = (widen(v) for v in x)
    return naive_solve(A, B).astype(x[1].dtype)


_A = Real("B n n", domain=spread_singular_values)

RULE = Rule(
    "solve",
    solve,
    reference,
    cases=(
        Case("matrix", (_A, Real("B n k")), fixed=SMALL_BATCH, timed={"B": 16, "n": 96, "k": 32}),
        Case("vector", (_A, Real("B n")), fixed=SMALL_BATCH),
        Case(
            "complex",
            (_A._replace(is_complex=True), Real("B n k", is_complex=True)),
            fixed=SMALL_BATCH | {"n": 3, "k": 2},
        ),
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 2.3.1",
    covers=("linear system", "linsolve"),
)
