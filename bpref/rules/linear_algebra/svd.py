"""svd: the singular value decomposition, A = U diag(s) V^T.

Forward, for each matrix of the batch, with k = min(m, n), s descending, and orthonormal columns of U and V:

    A_ij = sum_l U_il s_l V_jl            A: (..., m, n)    U: (..., m, k)    s: (..., k)    V^T: (..., k, n)

Differential, with G = U^T (delta A) V. Orthonormality makes C = U^T (delta U) and D = V^T (delta V) antisymmetric, and
delta A = (delta U) diag(s) V^T + U diag(delta s) V^T + U diag(s) (delta V)^T from both sides:

    G = C diag(s) + diag(delta s) - diag(s) D
    delta s_i = G_ii
    C_ij = (G_ij s_j + s_i G_ji) / (s_j^2 - s_i^2)      D_ij = (s_i G_ij + G_ji s_j) / (s_j^2 - s_i^2)      i != j

For m > n, U spans a part of the space only, and what leaves it is (I - U U^T) (delta U) = (I - U U^T) (delta A) V / s;
for n > m the same of V.

With `full_matrices` the longer of U and V is completed to a square orthogonal matrix, (U E) or (V E), by any basis E of
what is left. It stays orthonormal to U, E^T (delta U) + (delta E)^T U = 0, and of its own turning, which nothing
that is independent of the choice of a basis can see, there is none:

    delta E = -U (delta U)^T E              <dE, delta E> = <-E dE^T U, delta U>

so dU - E dE^T U stands for dU below, where m > n, and dV - E dE^T V for dV where n > m. (A second derivative is right
where E is a single vector, or nothing depends on which basis it is.)

The adjoint of ds, dU and dV: with the antisymmetric K = U^T dU - (U^T dU)^T and L = V^T dV - (V^T dV)^T, the factor of
G_ij is the same quotient, (K_ij s_j + s_i L_ij) / (s_j^2 - s_i^2), which falls into partial fractions:

    M_ii = ds_i       M_ij = 1/2 (K_ij + L_ij) / (s_j - s_i) + 1/2 (K_ij - L_ij) / (s_j + s_i)

    dA = U M V^T                                                          (..., m, n)
       + (dU - U U^T dU) diag(1/s) V^T                                    where m > n
       + U diag(1/s) (dV - V V^T dV)^T                                    where n > m

Cached: U, s and V^T, the outputs, in at least float32, completed ones if asked for.

Numerical care: half precision is decomposed in float32. In the partial fractions no square of a singular value is
formed, so that small ones neither underflow nor lose half of their digits; rotations of U and V together meet the gap
s_j - s_i, rotations against each other only the sum. The error of dA is round-off times |A| over the smallest gap, and
where m != n over the smallest s: 1e-12 is reached in float64 while these ratios are below 1e3 or so, and no formula
reaches more, since that is the condition of the singular vectors. Where a numerator is 0 no gap is needed, and 0 / 0
is taken as 0: of singular values alone (dU = dV = 0) dA is U diag(ds) V^T, at repeated ones and at 0 too, and
where neither U nor V is used (their cotangents are `None`) that is all that is computed. U and V have no derivative at
repeated singular values, nor at 0 where m != n: where dU or dV asks for it, dA is inf or NaN. The signs of u_l and
v_l, open together, are such that the largest element of u_l is positive, on every device and in every
dtype.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    complement,
    orientation,
    product,
    quotient,
    spread_singular_values,
    transpose,
    with_diagonal,
)
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class SvdCache(NamedTuple):
    U: Float[Array, "... m r"]
    s: Float[Array, "... k"]
    Vt: Float[Array, "... q n"]


def svd(full_matrices: bool = False) -> Layer[tuple[()], Array, tuple[Reals, Reals, Reals], SvdCache]:
    """The singular value decomposition of each matrix of a batch.

    Args:
      full_matrices: whether U and Vt are square, completed by an orthonormal basis of what they do not reach, which one
        is open; the cotangent is right where nothing depends on which.

    Returns:
      A layer with params `()`, x `A` of shape `(..., m, n)` and y `(U, s, Vt)`: with k = min(m, n), U `(..., m, k)`,
      s `(..., k)` descending, Vt `(..., k, n)`, or U `(..., m, m)` and Vt `(..., n, n)`; the largest element of each of
      the first k columns of U is positive. At repeated singular values, and at 0 where m != n, dA is inf or NaN unless
      dU and dVt are 0. Without rows or columns there is no singular value.

    Raises:
      ValueError: A is no matrix.
      TypeError: A is not floating-point, or full_matrices no boolean.
    """
    who = "svd"
    require_flags(who, full_matrices=full_matrices)

    def forward(params, A: Float[Array, "... m n"]):
        U, s, Vt = jnp.linalg.svd(widen(A), full_matrices=False)
        sign = orientation(U)
        U, Vt = U * sign, Vt * transpose(sign)
        if full_matrices:
            U = jnp.concatenate([U, complement(U)], -1)
            Vt = jnp.concatenate([Vt, transpose(complement(transpose(Vt)))], -2)
        return (cast(U, A.dtype), cast(s, A.dtype), cast(Vt, A.dtype)), SvdCache(U, s, Vt)

    def backward(params, cache, dy):
        U, s, Vt = cache
        dtype = jax.tree.leaves(dy)[0].dtype
        dU, ds, dVt = dy
        m, k, n = U.shape[-2], s.shape[-1], Vt.shape[-1]
        if dU is None and dVt is None:
            return (), cast(product(U[..., :k] * widen(ds)[..., None, :], Vt[..., :k, :]), dtype)
        dU, ds, dVt = (widen(d) for d in with_zeros((dU, ds, dVt), (U, s, Vt)))
        U, dU = of_thin(U, dU, k)
        V, dV = of_thin(transpose(Vt), transpose(dVt), k)
        Vt, dVt = transpose(V), transpose(dV)
        of_U, of_V = product(transpose(U), dU), product(Vt, transpose(dVt))
        K, L = of_U - transpose(of_U), of_V - transpose(of_V)
        s_i, s_j = s[..., :, None], s[..., None, :]
        M = with_diagonal(0.5 * (quotient(K + L, s_j - s_i) + quotient(K - L, s_j + s_i)), ds)
        if m > n:
            dA = product(product(U, M - quotient(of_U, s_j)) + quotient(dU, s_j), Vt)
        elif n > m:
            dA = product(U, product(M - quotient(transpose(of_V), s_i), Vt) + quotient(dVt, s_i))
        else:
            dA = product(product(U, M), Vt)
        return (), cast(dA, dtype)

    def of_thin(U, dU, k):
        """The first k columns, and their cotangent with what that of E adds."""
        if U.shape[-1] == k:
            return U, dU
        U, E, dU, dE = U[..., :k], U[..., k:], dU[..., :k], dU[..., k:]
        return U, dU - product(E, product(transpose(dE), U))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array, full_matrices: bool = False) -> tuple[Array, Array, Array]:
    U, s, Vt = jnp.linalg.svd(widen(A), full_matrices=False)
    sign = jnp.where(-U.min(-2, initial=0) > U.max(-2, initial=0), -1, 1).astype(U.dtype)
    U, Vt = U * sign[..., None, :], Vt * sign[..., :, None]
    if full_matrices:
        U, Vt = _completed(U), _completed(Vt.swapaxes(-1, -2)).swapaxes(-1, -2)
    return U.astype(A.dtype), s.astype(A.dtype), Vt.astype(A.dtype)


def _completed(U: Array) -> Array:
    """U, and a basis of the rest: any one, constant, projected and made orthonormal again, by a step that suffices."""
    Ut = U.swapaxes(-1, -2)
    E = jax.lax.stop_gradient(jnp.linalg.qr(jax.lax.stop_gradient(U), mode="complete")[0])[..., U.shape[-1] :]
    left = E - U @ (Ut @ E)
    return jnp.concatenate([U, 1.5 * left - 0.5 * left @ (left.swapaxes(-1, -2) @ left)], -1)


RULE = Rule(
    "svd",
    svd,
    reference,
    cases=(
        Case(
            "tall",
            Real("B m n", domain=spread_singular_values),
            fixed=SMALL_BATCH,
            timed={"B": 16, "m": 64, "n": 32},
        ),
        Case("wide", Real("B m n", domain=spread_singular_values), fixed=SMALL_BATCH | {"m": 3}),
        Case("square", Real("B n n", domain=spread_singular_values), fixed=SMALL_BATCH),
        Case(
            "tall, full",
            Real("B m n", domain=spread_singular_values),
            {"full_matrices": True},
            fixed=SMALL_BATCH | {"m": 4, "n": 3},
        ),
        Case(
            "wide, full",
            Real("B m n", domain=spread_singular_values),
            {"full_matrices": True},
            fixed=SMALL_BATCH | {"m": 2, "n": 3},
        ),
    ),
    cite="Townsend, 'Differentiating the singular value decomposition' (2016); Giles, 'Collected "
    "matrix derivative results for forward and reverse mode algorithmic differentiation' (2008), section 3.2",
    covers=("singular value decomposition",),
)
