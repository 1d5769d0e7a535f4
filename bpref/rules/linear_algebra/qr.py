"""qr: A = Q R, with orthonormal columns of Q and R upper triangular.

Forward, for each matrix of the batch, with k = min(m, n) (the reduced decomposition):

    A_ij = sum_l Q_il R_lj                A: (..., m, n)    Q: (..., m, k)    R: (..., k, n)

Differential, first for m >= n, where R is square. Q^T (delta Q) =: C is antisymmetric, and with G = Q^T (delta A) R^-1,

    delta A = (delta Q) R + Q (delta R)     gives       G = C + (delta R) R^-1

The last term is upper triangular, so C is the lower half of G, mirrored with the other sign: with Low for what is
strictly below the diagonal, C = Low(G) - Low(G)^T. What leaves the span of Q is (I - Q Q^T) (delta A) R^-1. Hence

    delta Q = Q C + (I - Q Q^T) (delta A) R^-1          delta R = (G - C) R

The adjoint <dQ, delta Q> + <dR, delta R>, where delta R = Q^T (delta A) - C R, with X = Q^T dQ - dR R^T:

    <dR, Q^T (delta A)> + <X, C> + <dQ - Q Q^T dQ, (delta A) R^-1>,           <X, C> = <Low(X - X^T), G>

    dA = Q dR + (dQ - Q Q^T dQ + Q Low(X - X^T)) R^-T                         (..., m, n)

dR counts on and above the diagonal alone; below it R is always 0.

For m < n, A = (A_1 A_2) and R = (R_1 R_2) with m columns first: A_1 = Q R_1 is a square decomposition, which has C,
with R_1 in the place of R, and no dQ outside of the span of Q. Nothing else changes: R = Q^T A, and

    dA = Q dR + (Q Low(X - X^T) R_1^-T  0)              0 for the columns of A_2

Of complex matrices every transpose is a conjugate one. LAPACK makes R's diagonal real, so that of (delta R) R^-1 too,
and C has an imaginary diagonal, that of G: C = Low(G) - Low(G)^H + i Im diag(G), and Low(X - X^H) stands with half of
the diagonal of X - X^H besides, which is 0 of real ones. In JAX's pairing, without the conjugate, what comes in and
what goes out are the conjugates of dQ, dR and dA.

`mode="complete"` has a square Q, which for m <= n is the same one. For m > n its last m - n columns are any basis of
what A does not reach, and have no derivative: that is refused. `mode="r"` gives R alone: dQ is 0.

Cached: Q and R, the outputs, in at least float32. A is their product, and is not needed.

Numerical care: half precision is decomposed in float32. R is not inverted but solved with, once, and only for what Q's
rotation adds: what dR gives directly is Q dR, and does not pass through R and R^-1, which would cancel where R_1 is
small beside R_2. The error of dA is
round-off times the condition number of A (of A_1 where m < n). Dependent columns, which cannot be seen while tracing,
leave a 0 on R's diagonal: the cotangent is inf or NaN, or large where rounding made the 0 a small number. The signs of
R's diagonal are those of LAPACK.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax.linalg import triangular_solve
from jaxtyping import Complex, Float, Inexact

from bpref.checks.hyperparameters import require_choice
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, adjoint, product, spread_singular_values, with_diagonal
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class QrCache(NamedTuple):
    Q: Inexact[Array, "... m k"]
    R: Inexact[Array, "... k n"]


MODES = ("reduced", "complete", "r")


def qr(mode: str = "reduced") -> Layer[tuple[()], Array, tuple[Reals, Reals] | Reals, QrCache]:
    """The decomposition A = Q R, for each matrix of a batch.

    Args:
      mode: "reduced", "complete" for a square Q, or "r" for R alone.

    Returns:
      A layer with params `()`, x `A` of shape `(..., m, n)`, real or complex, and y `(Q, R)`: with k = min(m, n), Q
      `(..., m, k)` and R `(..., k, n)`, real on the diagonal and 0 below; or y is R. Where the first k columns of A are
      dependent, dA is inf, NaN or large.

    Raises:
      ValueError: there is no such mode; A is no matrix, or has more rows than columns where Q is to be complete.
      TypeError: A is neither floating-point nor complex.
    """
    who = "qr"
    require_choice(who, "mode", mode, MODES)

    def forward(params, A: Float[Array, "... m n"] | Complex[Array, "... m n"]):
        m, n = A.shape[-2:]
        if mode == "complete" and m > n:
            raise ValueError(
                f"{who}: x has shape {A.shape}, expected (..., m, n) with m <= n: of a complete Q the last m - n "
                f"columns are any basis, and have no derivative"
            )
        Q, R = jnp.linalg.qr(widen(A))
        return cast(R, A.dtype) if mode == "r" else (cast(Q, A.dtype), cast(R, A.dtype)), QrCache(Q, R)

    def backward(params, cache, dy):
        Q, R = cache
        dtype = jax.tree.leaves(dy)[0].dtype
        dQ, dR = (jnp.conj(widen(d)) for d in with_zeros((None, dy) if mode == "r" else dy, (Q, R)))
        dR = jnp.triu(dR)
        m, k, n = *Q.shape[-2:], R.shape[-1]
        of_Q = product(adjoint(Q), dQ)
        X = of_Q - product(dR, adjoint(R))
        X = X - adjoint(X)
        turned = jnp.tril(X, -1)
        if jnp.iscomplexobj(X):
            turned = with_diagonal(turned, 0.5 * jnp.diagonal(X, axis1=-2, axis2=-1))
        turned = product(Q, turned) if m == k else dQ + product(Q, turned - of_Q)
        turned = triangular_solve(R[..., :k], turned, left_side=False, lower=False, transpose_a=True, conjugate_a=True)
        dA = product(Q, dR) + jnp.pad(turned, [(0, 0)] * (R.ndim - 1) + [(0, n - k)])
        return (), cast(jnp.conj(dA), dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array, mode: str = "reduced") -> tuple[Array, Array] | Array:
    Q, R = jnp.linalg.qr(widen(A))
    return R.astype(A.dtype) if mode == "r" else (Q.astype(A.dtype), R.astype(A.dtype))


RULE = Rule(
    "qr",
    qr,
    reference,
    cases=(
        Case(
            "tall",
            Real("B m n", domain=spread_singular_values),
            fixed=SMALL_BATCH,
            timed={"B": 16, "m": 96, "n": 64},
        ),
        Case("wide", Real("B m n", domain=spread_singular_values), fixed=SMALL_BATCH | {"m": 2}),
        Case("square", Real("B n n", domain=spread_singular_values), {"mode": "complete"}, fixed=SMALL_BATCH),
        Case("R alone", Real("B m n", domain=spread_singular_values), {"mode": "r"}, fixed=SMALL_BATCH | {"n": 3}),
        Case(
            "complex, tall",
            Real("B m n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"m": 4, "n": 3},
        ),
        Case(
            "complex, wide",
            Real("B m n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"m": 2, "n": 3},
        ),
    ),
    cite="Walter and Lehmann, 'Algorithmic differentiation of linear algebra functions' (2010), arXiv:1001.1654, "
    "section 4.2; Liao et al., 'Differentiable programming tensor networks' (2019), arXiv:1903.09650, appendix A",
)
