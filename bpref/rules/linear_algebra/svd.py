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
that is independent of the choice of a basis can see, there is none but that of signs or phases, chosen as U's:

    delta E = -U (delta U)^T E              <dE, delta E> = <-E dE^T U, delta U>

so dU - E dE^T U stands for dU below, where m > n, and dV - E dE^T V for dV where n > m. (A second derivative is right
where E is a single vector, or nothing depends on which basis it is.)

The adjoint of ds, dU and dV: with the antisymmetric K = U^T dU - (U^T dU)^T and L = V^T dV - (V^T dV)^T, the factor of
G_ij is the same quotient, (K_ij s_j + s_i L_ij) / (s_j^2 - s_i^2), which falls into partial fractions:

    M_ii = ds_i       M_ij = 1/2 (K_ij + L_ij) / (s_j - s_i) + 1/2 (K_ij - L_ij) / (s_j + s_i)

    dA = U M V^T                                                          (..., m, n)
       + (dU - U U^T dU) diag(1/s) V^T                                    where m > n
       + U diag(1/s) (dV - V V^T dV)^T                                    where n > m

Of complex matrices every transpose is a conjugate one, and s is real. C and D are imaginary on their diagonals, where
delta A says of their difference alone what it is, C_ii - D_ii = i Im(G_ii) / s_i: a phase that u_i and v_i turn by
together is open. It is such that the largest element of u_i is real, in row p, and as in `eigh` the phase is held by

    dU_pi <- dU_pi - i t_i / U_pi           t_i = Im(u_i^H du_i + v_i^H dv_i)

after which no turning of both has a factor: C_ii may have all of the difference, and adds i Im(u_i^H du_i) / s_i to
M_ii, which is what the partial fractions with s_j + s_i have on the diagonal. The phases of E's columns are chosen and
held likewise, each by itself. In JAX's pairing, without the conjugate, what comes in and what goes out are the
conjugates of dU, dV and dA.

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
from jaxtyping import Complex, Float, Inexact

from bpref.checks.hyperparameters import require_flags
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    adjoint,
    complement,
    dtype_of_matrix,
    of_oriented,
    off_diagonal,
    orientation,
    product,
    quotient,
    spread_singular_values,
    transpose,
    turning,
    with_diagonal,
)
from bpref.layer import Layer, Reals, no_params
from bpref.naive.vectors import turning_largest_positive
from bpref.rule import Case, Real, Rule


class SvdCache(NamedTuple):
    U: Inexact[Array, "... m r"]
    s: Float[Array, "... k"]
    Vt: Inexact[Array, "... q n"]


def svd(full_matrices: bool = False) -> Layer[tuple[()], Array, tuple[Reals, Reals, Reals], SvdCache]:
    """The singular value decomposition of each matrix of a batch.

    Args:
      full_matrices: whether U and Vt are square, completed by an orthonormal basis of what they do not reach, which one
        is open; the cotangent is right where nothing depends on which.

    Returns:
      A layer with params `()`, x `A` of shape `(..., m, n)`, real or complex, and y `(U, s, Vt)`: with k = min(m, n),
      U `(..., m, k)`, s `(..., k)` descending and real, Vt `(..., k, n)`, of complex A the conjugate transpose of V, or
      U `(..., m, m)` and Vt `(..., n, n)`; the largest element of each of the first k columns of U is real and
      positive. At repeated singular values, and at 0 where m != n or A is complex, dA is inf or NaN unless dU and dVt
      are 0. Without rows or columns there is no singular value.

    Raises:
      ValueError: A is no matrix.
      TypeError: A is neither floating-point nor complex, or full_matrices no boolean.
    """
    who = "svd"
    require_flags(who, full_matrices=full_matrices)

    def forward(params, A: Float[Array, "... m n"] | Complex[Array, "... m n"]):
        U, s, Vt = jnp.linalg.svd(widen(A), full_matrices=False)
        sign = orientation(U)
        U, Vt = U * sign, Vt * adjoint(sign)
        if full_matrices:
            U = jnp.concatenate([U, rest(U)], -1)
            Vt = jnp.concatenate([Vt, adjoint(rest(adjoint(Vt)))], -2)
        y = cast(U, A.dtype), cast(s, jnp.finfo(A.dtype).dtype), cast(Vt, A.dtype)
        return y, SvdCache(U, s, Vt)

    def backward(params, cache, dy):
        U, s, Vt = cache
        dtype = dtype_of_matrix(dy, U)
        dU, ds, dVt = dy
        m, k, n = U.shape[-2], s.shape[-1], Vt.shape[-1]
        if dU is None and dVt is None:
            ds = widen(ds).astype(U.dtype)
            return (), cast(jnp.conj(product(U[..., :k] * ds[..., None, :], Vt[..., :k, :])), dtype)
        dU, ds, dVt = (widen(d) for d in with_zeros((dU, ds, dVt), (U, s, Vt)))
        U, dU = of_thin(U, jnp.conj(dU), k)
        V, dV = of_thin(adjoint(Vt), transpose(dVt), k)
        Vt, dVt = adjoint(V), adjoint(dV)
        if jnp.iscomplexobj(U):
            dU = of_oriented(U, dU, turning(U, dU) + turning(V, dV))
        of_U, of_V = product(adjoint(U), dU), product(Vt, dV)
        K, L = of_U - adjoint(of_U), of_V - adjoint(of_V)
        s_i, s_j = s[..., :, None], s[..., None, :]
        M = with_diagonal(quotient(off_diagonal(K + L), s_j - s_i), (2 * ds).astype(U.dtype))
        M = 0.5 * (M + quotient(K - L, s_j + s_i))
        if m > n:
            dA = product(product(U, M - quotient(of_U, s_j)) + quotient(dU, s_j), Vt)
        elif n > m:
            dA = product(U, product(M - quotient(adjoint(of_V), s_i), Vt) + quotient(dVt, s_i))
        else:
            dA = product(product(U, M), Vt)
        return (), cast(jnp.conj(dA), dtype)

    def rest(U):
        E = complement(U)
        return E * orientation(E)

    def of_thin(U, dU, k):
        """The first k columns, and their cotangent with what that of E adds."""
        if U.shape[-1] == k:
            return U, dU
        U, E, dU, dE = U[..., :k], U[..., k:], dU[..., :k], dU[..., k:]
        dE = of_oriented(E, dE, turning(E, dE)) if jnp.iscomplexobj(E) else dE
        return U, dU - product(E, product(adjoint(dE), U))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array, full_matrices: bool = False) -> tuple[Array, Array, Array]:
    U, s, Vt = jnp.linalg.svd(widen(A), full_matrices=False)
    sign = turning_largest_positive(U)
    U, Vt = U * sign[..., None, :], Vt * sign.conj()[..., :, None]
    if full_matrices:
        U, Vt = _completed(U), _completed(Vt.swapaxes(-1, -2)).swapaxes(-1, -2)
    return U.astype(A.dtype), s.astype(jnp.finfo(A.dtype).dtype), Vt.astype(A.dtype)


def _completed(U: Array) -> Array:
    """U, and a basis of the rest: any one, constant, projected and made orthonormal again, by a step that suffices."""
    E = jax.lax.stop_gradient(jnp.linalg.qr(jax.lax.stop_gradient(U), mode="complete")[0])[..., U.shape[-1] :]
    left = E - U @ (U.swapaxes(-1, -2).conj() @ E)
    E = 1.5 * left - 0.5 * left @ (left.swapaxes(-1, -2).conj() @ left)
    return jnp.concatenate([U, E * turning_largest_positive(E)[..., None, :]], -1)


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
        Case(
            "complex, tall",
            Real("B m n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"m": 4, "n": 2},
        ),
        Case(
            "complex, wide, full",
            Real("B m n", domain=spread_singular_values, is_complex=True),
            {"full_matrices": True},
            fixed=SMALL_BATCH | {"m": 2, "n": 3},
        ),
    ),
    cite="Townsend, 'Differentiating the singular value decomposition' (2016); Giles, 'Collected "
    "matrix derivative results for forward and reverse mode algorithmic differentiation' (2008), section 3.2",
    covers=("singular value decomposition",),
)
