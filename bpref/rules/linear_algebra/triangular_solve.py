"""triangular_solve: X = T^-1 B, or T^-T B, by substitution, where T is one triangle of A.

Forward, for each matrix A of the batch, and k right-hand sides B (a vector is one of them); M_ij is 1 in the triangle
that `lower` chooses and 0 in the other, and with `unit_diagonal` also 0 on the diagonal:

    T = M * A (+ I with `unit_diagonal`)                                  A, T: (..., n, n)
    T X = B, or with `transpose`  T^T X = B             B, X: (..., n, k) or (..., n)

Differential: (delta T) X + T (delta X) = delta B and delta T = M * delta A, so

    delta X = T^-1 (delta B - (M * delta A) X)                            without `transpose`
    delta X = T^-T (delta B - (M * delta A)^T X)                          with it

The adjoint <dX, delta X>, the factor of each perturbation:

    without `transpose`:    dB = T^-T dX    dA_ij = -M_ij sum_c dB_ic X_jc
    with it:                dB = T^-1 dX    dA_ij = -M_ij sum_c X_ic dB_jc

One substitution in the other direction, and a product; dA is 0 wherever A is not read.

Cached: A, as it came, and X, in at least float32. B is not needed.

Numerical care: half precision is solved in float32. Nothing is inverted: the backward has the small error of a
substitution, which is often much better than the condition number says. A zero on the diagonal gives inf or NaN in X
and in the cotangents, as `jax.scipy.linalg.solve_triangular` does; other matrices of the batch are not touched.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, System, SystemCache, as_matrices, dominant_diagonal, product
from bpref.formulas.matrices import transpose as transposed
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule, called_as


def triangular_solve(
    lower: bool = False, transpose: bool = False, unit_diagonal: bool = False
) -> Layer[tuple[()], tuple[Array, Array], Reals, SystemCache]:
    """X with T X = B, or T^T X = B, T the upper or the lower triangle of A, for each matrix of a batch.

    Args:
      lower: which triangle of A is read; the other may hold anything.
      transpose: whether T is transposed.
      unit_diagonal: whether the diagonal of T is 1, and that of A is not read.

    Returns:
      A layer with params `()`, x `(A, B)`: A `(..., n, n)`, B `(..., n, k)` or, as vectors, `(..., n)`, with the same
      batch axes; y is X, of B's shape. dA is 0 where A is not read. Where T has a 0 on its diagonal, X and the
      cotangents hold inf or NaN.

    Raises:
      ValueError: A is not square; B does not fit A.
      TypeError: x is no pair; A is not floating-point; B has another dtype.
    """
    who = "triangular_solve"
    require_flags(who, lower=lower, transpose=transpose, unit_diagonal=unit_diagonal)

    def substitute(A, B, transpose_a):
        return lax.linalg.triangular_solve(
            widen(A), B, left_side=True, lower=lower, transpose_a=transpose_a, unit_diagonal=unit_diagonal
        )

    def forward(params, x: System):
        A, B, is_vector = as_matrices(x)
        X = substitute(A, widen(B), transpose)
        y = cast(X, B.dtype)
        return y[..., 0] if is_vector else y, SystemCache(A, X)

    def backward(params, cache, dX):
        A, X = cache
        is_vector = dX.ndim < X.ndim
        dB = substitute(A, widen(dX[..., None] if is_vector else dX), not transpose)
        outer = product(X, transposed(dB)) if transpose else product(dB, transposed(X))
        dA = jnp.tril(-outer, -unit_diagonal) if lower else jnp.triu(-outer, unit_diagonal)
        dB = cast(dB, dX.dtype)
        return (), (cast(dA, A.dtype), dB[..., 0] if is_vector else dB)

    return Layer(no_params, forward, backward, who)


@called_as(triangular_solve)
def reference(params: tuple[()], x: tuple[Array, Array], lower, transpose, unit_diagonal) -> Array:
    A, B = (widen(v) for v in x)
    options = {"lower": lower, "trans": int(transpose), "unit_diagonal": unit_diagonal}
    if B.ndim < A.ndim:
        return jax.scipy.linalg.solve_triangular(A, B[..., None], **options)[..., 0].astype(x[1].dtype)
    return jax.scipy.linalg.solve_triangular(A, B, **options).astype(x[1].dtype)


_SYSTEM = (Real("B n n", domain=dominant_diagonal), Real("B n k"))
_VECTOR = (Real("B n n", domain=dominant_diagonal), Real("B n"))

RULE = Rule(
    "triangular_solve",
    triangular_solve,
    reference,
    cases=(
        Case("upper", _SYSTEM, fixed=SMALL_BATCH),
        Case("lower", _SYSTEM, {"lower": True}, fixed=SMALL_BATCH, timed={"B": 16, "n": 96, "k": 64}),
        Case(
            "lower, transposed, unit diagonal",
            _VECTOR,
            {"lower": True, "transpose": True, "unit_diagonal": True},
            fixed=SMALL_BATCH,
        ),
        Case("upper, transposed", _VECTOR, {"transpose": True}, fixed=SMALL_BATCH),
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 2.3.1, on a triangle",
    covers=("solve_triangular", "forward substitution", "back substitution"),
)
