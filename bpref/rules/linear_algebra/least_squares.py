"""least_squares: Y minimises |A Y - B|, column by column; of several that do, the shortest.

Forward, for each matrix of the batch, by the reduced decomposition of what is tall:

    m >= n:   A   = Q R        Y = R^-1 Q^T B                             A: (..., m, n)    B: (..., m, k)
    m <  n:   A^T = Q R        Y = Q R^-T B                               Y: (..., n, k)

Differential, for A of full rank. For m >= n of A^T A Y = A^T B, with E = B - A Y what is left over, A^T E = 0:

    A^T A delta Y = (delta A)^T E + A^T (delta B - (delta A) Y)

With Z = (A^T A)^-1 dY = R^-1 R^-T dY and W = A Z = Q R^-T dY, the adjoint <dY, delta Y> is

    dB = W        dA = E Z^T - W Y^T                                      (..., m, k)    (..., m, n)

For m < n, Y = A^T X with A A^T X = B: nothing is left over, but Y stays in the span of the rows. With
W = (A A^T)^-1 A dY = R^-1 Q^T dY, X = R^-1 R^-T B, and F = dY - A^T W, which the rows do not reach,

    delta Y = (delta A)^T X + A^T delta X,      A A^T delta X = delta B - (delta A) Y - A (delta A)^T X

    dB = W        dA = X F^T - W Y^T

Of complex numbers every transpose is a conjugate one, and so are dY before and dA and dB behind, as in
`pseudo_inverse`.

Cached: Q, R, Y, and E for m >= n, X for m < n, in at least float32. A is the product of the first two.

Numerical care: half precision is decomposed in float32. A^T A is not formed: its condition number is the square of A's,
which dA has all the same where E is not small, as every derivative of a least-squares solution does. Columns, or for
m < n rows, that are dependent cannot be seen while tracing: Y and the cotangents hold inf or NaN, or large numbers
where rounding made the 0 a small one. There `pseudo_inverse` has a threshold.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.lax.linalg import triangular_solve
from jaxtyping import Complex, Float, Inexact

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, adjoint, product, spread_singular_values
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class Observed(NamedTuple):
    A: Float[Array, "*b m n"] | Complex[Array, "*b m n"]
    B: Float[Array, "*b m k"] | Complex[Array, "*b m k"]


class LeastSquaresCache(NamedTuple):
    Q: Inexact[Array, "... l r"]
    R: Inexact[Array, "... r r"]
    Y: Inexact[Array, "... n k"]
    E_or_X: Inexact[Array, "... m k"]


def least_squares() -> Layer[tuple[()], tuple[Array, Array], Reals, LeastSquaresCache]:
    """Y = the shortest of those that minimise |A Y - B|, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `(A, B)` of shapes `(..., m, n)` and `(..., m, k)`, A of full rank, and y
      `(..., n, k)`; real or complex. Where A has a lower rank, y, dA and dB hold inf, NaN or large numbers.

    Raises:
      ValueError: A or B is no matrix, or their rows or batches differ.
      TypeError: x is no pair; A is neither floating-point nor complex, or B not of A's dtype.
    """
    who = "least_squares"

    def forward(params, x: Observed):
        A, B = widen(x.A), widen(x.B)
        m, n = A.shape[-2:]
        if m >= n:
            Q, R = jnp.linalg.qr(A)
            Y = _solved(R, product(adjoint(Q), B))
            cache = LeastSquaresCache(Q, R, Y, B - product(A, Y))
        else:
            Q, R = jnp.linalg.qr(adjoint(A))
            half = _solved(R, B, transposed=True)
            Y = product(Q, half)
            cache = LeastSquaresCache(Q, R, Y, _solved(R, half))
        return cast(Y, x.A.dtype), cache

    def backward(params, cache, dy):
        Q, R, Y, E_or_X = cache
        dY = jnp.conj(widen(dy))
        if E_or_X.shape[-2] >= Y.shape[-2]:
            half = _solved(R, dY, transposed=True)
            W = product(Q, half)
            dA = product(E_or_X, adjoint(_solved(R, half)))
        else:
            along = product(adjoint(Q), dY)
            W = _solved(R, along)
            dA = product(E_or_X, adjoint(dY - product(Q, along)))
        dA = dA - product(W, adjoint(Y))
        return (), (cast(jnp.conj(dA), dy.dtype), cast(jnp.conj(W), dy.dtype))

    return Layer(no_params, forward, backward, who)


def _solved(R: Array, X: Array, transposed: bool = False) -> Array:
    """R^-1 X, or R^-H X."""
    return triangular_solve(R, X, left_side=True, lower=False, transpose_a=transposed, conjugate_a=transposed)


def reference(params: tuple[()], x: tuple[Array, Array]) -> Array:
    A, B = (widen(v) for v in x)
    At = jnp.swapaxes(A, -1, -2).conj()
    if A.shape[-2] >= A.shape[-1]:
        return jnp.linalg.solve(At @ A, At @ B).astype(x[0].dtype)
    return (At @ jnp.linalg.solve(A @ At, B)).astype(x[0].dtype)


RULE = Rule(
    "least_squares",
    least_squares,
    reference,
    cases=(
        Case(
            "tall",
            (Real("B m n", domain=spread_singular_values), Real("B m k")),
            fixed=SMALL_BATCH | {"m": 7, "n": 4},
            timed={"B": 16, "m": 96, "n": 32, "k": 8},
        ),
        Case(
            "wide",
            (Real("B m n", domain=spread_singular_values), Real("B m k")),
            fixed=SMALL_BATCH | {"m": 3, "n": 5},
        ),
        Case("square", (Real("B n n", domain=spread_singular_values), Real("B n k")), fixed=SMALL_BATCH),
        Case(
            "complex, tall",
            (Real("B m n", domain=spread_singular_values, is_complex=True), Real("B m k", is_complex=True)),
            fixed=SMALL_BATCH | {"m": 4, "n": 2},
        ),
        Case(
            "complex, wide",
            (Real("B m n", domain=spread_singular_values, is_complex=True), Real("B m k", is_complex=True)),
            fixed=SMALL_BATCH | {"m": 2, "n": 4},
        ),
    ),
    cite="Golub and Pereyra, 'The differentiation of pseudo-inverses and nonlinear least squares problems whose "
    "variables separate' (1973), SIAM J. Numer. Anal. 10",
    covers=("lstsq",),
)
