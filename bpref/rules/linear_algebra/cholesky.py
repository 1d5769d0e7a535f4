"""cholesky: A = L L^T, with L lower triangular and positive on its diagonal.

Forward, for each positive definite matrix of the batch, of which only the symmetric part counts:

    1/2 (A + A^T)_ij = sum_k L_ik L_jk                  A, L: (..., n, n)

Differential, with S for the symmetric part: delta S = (delta L) L^T + L (delta L)^T. From both sides,

    L^-1 (delta S) L^-T = K + K^T                       K = L^-1 (delta L), lower triangular

so K is the lower half of what stands on the left: K = Phi(L^-1 (delta S) L^-T), where Phi keeps what is below the
diagonal, halves the diagonal, and drops the rest.

    delta L = L Phi(L^-1 (delta S) L^-T)

Phi is a multiplication by a mask, its own transpose. The adjoint <dL, delta L> = <Phi(L^T dL), L^-1 (delta S) L^-T>:

    dS = L^-T P L^-1                                    P = Phi(L^T dL)
    dA = 1/2 (dS + dS^T) = 1/2 L^-T (P + P^T) L^-1                        (..., n, n)

The last step is the symmetrisation of A, its own transpose too: dA is symmetric, where the textbook that takes A as
half a matrix has twice this below the diagonal and nothing above. P + P^T is L^T dL below the diagonal and on it,
mirrored. dL above the diagonal, where L is always 0, meets only zeros of L^T and dropped entries: it does not count.

Of complex matrices the Hermitian part counts, 1/2 (A + A^H) = L L^H with a real diagonal of L, and K is the lower half
of L^-1 (delta S) L^-H. In the pairing Re sum conj(G) delta L, of which the adjoint of a product is one with the
conjugate transpose, P = Phi(L^H G) and G's cotangent is 1/2 L^-H (P + P^H) L^-1. JAX pairs without the conjugate, as
Re sum dL delta L: G is conj(dL), and dA the conjugate of that (PyTorch's are G, and that itself). So, of either kind,

    P  = Phi(L^T dL)        dA = 1/2 L^-T (P + P^H) conj(L)^-1

of which the diagonal of P + P^H is real, as a change of L's own would be.

Cached: L alone, in at least float32.

Numerical care: two triangular solves and one product; no inverse is formed. Half precision is factorised in float32.
P + P^T is symmetric exactly, dA up to round-off. A matrix that is not positive definite, which cannot be seen while
tracing, has NaN for L, as from `jnp.linalg.cholesky`, and for dA; other matrices of the batch are not touched.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.lax.linalg import triangular_solve
from jaxtyping import Complex, Float, Inexact

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, hermitian_part, positive_definite, product, transpose, with_diagonal
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class CholeskyCache(NamedTuple):
    L: Inexact[Array, "... n n"]


def cholesky() -> Layer[tuple[()], Array, Reals, CholeskyCache]:
    """L with L L^T = (A + A^T) / 2, or of complex A L L^H = (A + A^H) / 2, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)`, real or complex, and y `L` of the same shape, 0 above the
      diagonal. Where A is not positive definite, y and dA are NaN.

    Raises:
      ValueError: A is not square.
      TypeError: A is neither floating-point nor complex.
    """
    who = "cholesky"

    def forward(params, A: Float[Array, "... n n"] | Complex[Array, "... n n"]):
        L = jnp.linalg.cholesky(widen(A))
        return cast(L, A.dtype), CholeskyCache(L)

    def backward(params, cache, dL):
        L = cache.L
        lower = jnp.tril(product(transpose(L), jnp.tril(widen(dL))))
        P = lower - 0.5 * with_diagonal(jnp.zeros_like(lower), jnp.diagonal(lower, axis1=-2, axis2=-1))
        left = triangular_solve(L, hermitian_part(P), left_side=True, lower=True, transpose_a=True)
        return (), cast(triangular_solve(jnp.conj(L), left, left_side=False, lower=True), dL.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> Array:
    return jnp.linalg.cholesky(widen(A)).astype(A.dtype)


def _lopsided(v):
    """Only the symmetric part, or the Hermitian, is positive definite."""
    return positive_definite(v) + (v - v.swapaxes(-1, -2).conj())


RULE = Rule(
    "cholesky",
    cholesky,
    reference,
    cases=(
        Case(
            "batch",
            Real("B n n", domain=positive_definite),
            fixed=SMALL_BATCH,
            timed={"B": 16, "n": 96},
        ),
        Case("not symmetric", Real("B n n", domain=_lopsided), fixed=SMALL_BATCH),
        Case("complex", Real("B n n", domain=_lopsided, is_complex=True), fixed=SMALL_BATCH | {"n": 3}),
    ),
    cite="Murray, 'Differentiation of the Cholesky decomposition' (2016), arXiv:1602.07527, equation 9",
)
