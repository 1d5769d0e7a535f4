"""conjugate_gradient: X = S^-1 B for a positive definite S, by products with S alone.

Forward, for each matrix A of the batch, of which only the symmetric part S counts, and each of the k right-hand sides:

    S = 1/2 (A + A^T)        S X = B                    A: (..., n, n)    B, X: (..., n, k) or (..., n)

by iteration, each right-hand side by itself, from X = 0, R = P = B. With r = R^T R, and r' that of the new R:

    a = r / (P^T S P)
    X <- X + a P        R <- R - a S P        P <- R + (r' / r) P

R is what is left, B - S X. Each step makes the error of X, in the norm of S, as small as the directions P so far can, n
of which span the space; with a condition number c it falls by (sqrt(c) - 1) / (sqrt(c) + 1) a step or faster.

Differential: how X was found does not matter, only what it solves. (delta S) X + S (delta X) = delta B, so

    delta X = S^-1 (delta B - (delta S) X)

The adjoint sum_ik dX_ik delta X_ik, the factor of each perturbation, with S^-T = S^-1:

    dB = S^-1 dX                                                          like B
    dS = -dB X^T        dA = 1/2 (dS + dS^T)                              (..., n, n)

so the backward is one more iteration, the forward's own, with dX in the place of B. The last step is the adjoint of
taking the symmetric part, as in `cholesky`.

Cached: A and X. The steps are not: autodiff of the loop keeps R, P and S P of each.

Numerical care: half precision is iterated in float32. R is what ends the iteration, and falls on where rounding keeps
B - S X from doing so: once it is small it is computed from X anew, and the few steps that are due are taken from there,
without which X has three times the error that a factorisation leaves. B is divided by its largest element, so that
r neither overflows nor vanishes. A right-hand side that is done stays as it is while others go on, and a step in
which all are is skipped. The gradient is that of the solution, not of where a `tolerance` or `steps` too small stop:
dB is off by as much as a forward on dX would be, and dA by that and by the error of X. Where P^T S P <= 0 A is not
positive definite, which cannot be seen while tracing: X is NaN, and so are the cotangents.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive_or_none, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    System,
    SystemCache,
    as_matrices,
    hermitian_part,
    positive_definite,
    product,
    transpose,
)
from bpref.layer import Layer, Reals, no_params
from bpref.loops import cond, scan
from bpref.naive.dense import naive_solve
from bpref.rule import Case, Real, Rule, called_as


class _Reached(NamedTuple):
    """Where the iteration is: X, what is left, the direction of the next step, and r."""

    X: Float[Array, "... n k"]
    R: Float[Array, "... n k"]
    P: Float[Array, "... n k"]
    r: Float[Array, "... 1 k"]


def conjugate_gradient(
    tolerance: float | None = None, steps: int | None = None
) -> Layer[tuple[()], tuple[Array, Array], Reals, SystemCache]:
    """X with 1/2 (A + A^T) X = B for positive definite matrices, by conjugate gradients, forward and backward.

    Args:
      tolerance: a right-hand side is done when |B - S X| is at most this times |B|; `None` for the round-off of the
        dtype that is computed in.
      steps: how many there are at most, before B - S X is computed anew and after; `None` for 2 n.

    Returns:
      A layer with params `()`, x `(A, B)`: A `(..., n, n)`, B `(..., n, k)` or, as vectors, `(..., n)`, with the same
      batch axes; y is X, of B's shape. Where A is seen not to be positive definite, X and the cotangents are NaN.

    Raises:
      ValueError: A is not square; B does not fit A; tolerance is not positive, or steps no positive integer.
      TypeError: x is no pair; A is not floating-point; B has another dtype.
    """
    who = "conjugate_gradient"
    tolerance = require_positive_or_none(who, "tolerance", tolerance)
    steps = steps if steps is None else require_size(who, "steps", steps)

    def forward(params, x: System):
        A, B, is_vector = as_matrices(x)
        X = _solved(A, widen(B), tolerance, steps)
        y = cast(X, B.dtype)
        return y[..., 0] if is_vector else y, SystemCache(A, X)

    def backward(params, cache, dX):
        is_vector = dX.ndim < cache.X.ndim
        dB = _solved(cache.A, widen(dX[..., None] if is_vector else dX), tolerance, steps)
        half = -0.5 * product(dB, transpose(cache.X))
        dB = cast(dB, dX.dtype)
        return (), (cast(half + transpose(half), dX.dtype), dB[..., 0] if is_vector else dB)

    return Layer(no_params, forward, backward, who)


def _solved(A: Array, B: Array, tolerance: float | None, steps: int | None) -> Array:
    S = hermitian_part(widen(A))
    tolerance = float(jnp.finfo(S.dtype).eps) if tolerance is None else tolerance
    largest = lax.stop_gradient(jnp.max(jnp.abs(B), -2, keepdims=True, initial=0))
    scale = jnp.where(largest == 0, 1, largest)
    R = B / scale
    r = _rows_summed(R, R)
    enough = tolerance**2 * r

    def step(reached, _):
        return cond(jnp.any(reached.r > enough), turn, lambda reached: reached, reached), None

    def turn(reached):
        X, R, P, r = reached
        goes_on = r > enough
        SP = product(S, P)
        curvature = jnp.where(goes_on, _rows_summed(P, SP), 1)
        a = jnp.where(goes_on, jnp.where(curvature > 0, r / curvature, jnp.nan), 0)
        R = R - a * SP
        new = _rows_summed(R, R)
        return _Reached(X + a * P, R, R + new / jnp.where(goes_on, r, 1) * P, new)

    length = 2 * S.shape[-1] if steps is None else steps
    X = scan(step, _Reached(jnp.zeros_like(R), R, R, r), length=length)[0].X
    left = R - product(S, X)
    return scale * scan(step, _Reached(X, left, left, _rows_summed(left, left)), length=length)[0].X


def _rows_summed(U: Array, V: Array) -> Array:
    """sum_i U_i V_i, of each column."""
    return jnp.sum(U * V, -2, keepdims=True)


@called_as(conjugate_gradient)
def reference(params: tuple[()], x: tuple[Array, Array], **how) -> Array:
    A, B = (widen(v) for v in x)
    return naive_solve((A + jnp.swapaxes(A, -1, -2)) / 2, B).astype(x[1].dtype)


_A = Real("B n n", domain=positive_definite)

RULE = Rule(
    "conjugate_gradient",
    conjugate_gradient,
    reference,
    cases=(
        Case("matrix", (_A, Real("B n k")), fixed=SMALL_BATCH, timed={"B": 16, "n": 96, "k": 32}),
        Case("vector", (_A, Real("B n")), {"tolerance": 1e-16, "steps": 60}, fixed=SMALL_BATCH),
    ),
    cite="Hestenes and Stiefel, 'Methods of conjugate gradients for solving linear systems' (1952), J. Res. Natl. Bur. "
    "Stand. 49, section 3; the adjoint: Giles, 'Collected matrix derivative results for forward and reverse mode "
    "algorithmic differentiation' (2008), section 2.3.1",
    covers=("cg", "linear_solve", "iterative solve"),
)
