"""eigh: the eigenvalues w and eigenvectors V of a symmetric or Hermitian matrix, A = V diag(w) V^T.

Forward, for each matrix of the batch, of which only the symmetric part counts; w ascends, V's columns are orthonormal:

    1/2 (A + A^T) V = V diag(w)                         A, V: (..., n, n)    w: (..., n)

Differential, with S for the symmetric part and G = V^T (delta S) V. V stays orthogonal, so V^T (delta V) =: C is
antisymmetric, and (delta S) V + S (delta V) = (delta V) diag(w) + V diag(delta w), from the left with V^T:

    G + diag(w) C = C diag(w) + diag(delta w)
    delta w_i = G_ii        C_ij = G_ij / (w_j - w_i)   for i != j        C_ii = 0

The adjoint sum_i dw_i delta w_i + <dV, V C>, with H = V^T dV, is <M, G> for

    M_ii = dw_i             M_ij = H_ij / (w_j - w_i)

Since G is symmetric only the symmetric part of M counts, and 1 / (w_j - w_i) is antisymmetric:

    M_ij <- 1/2 (H_ij - H_ji) / (w_j - w_i)             dA = V M V^T      (..., n, n)

which is symmetric: the symmetrisation of A is its own transpose, and asks nothing more.

Of complex matrices the Hermitian part counts, every transpose is a conjugate one, and w is real. The diagonal of C is
imaginary, C_ii = i phi_i, a turning of v_i's phase, which the equation leaves open. Here the largest element of each
v_i is real, in row p: whatever else happens to it, phi_i keeps it so,

    delta v_i = sum_j v_j C_ji + i phi_i v_i            phi_i = -Im(sum_j V_pj C_ji) / V_pi

In the pairing Re sum conj(D) delta V of cotangents D, phi_i has the factor t_i = Im(v_i^H d_i), so the phase is held by

    D_pi <- D_pi - i t_i / V_pi

after which no turning has a factor, and M is as above, of H = V^H D, with conj(H_ji) for H_ji. JAX pairs without the
conjugate: D is conj(dV), and dA the conjugate of V M V^H (PyTorch's are D, and that itself).

Cached: w and V, the outputs, in at least float32.

Numerical care: half precision is decomposed in float32. Each element of M is a difference over a gap: relative to dV,
the error of dA is round-off times |A| over the smallest gap. Where the numerator is 0 no gap is needed, and 0 / 0 is
taken as 0: of eigenvalues alone (dV = 0) dA is V diag(dw) V^T, at repeated ones too, and where V is not used (dV is
`None`) that is all that is computed. There V is any basis of their
space and has no derivative: where dV asks for it, dA is inf or NaN, as autodiff's is. The equation leaves the sign of
each column of V open, and devices and dtypes choose differently: here its largest element is positive, so that they
agree. V jumps where two elements are largest together. What does not depend on phases has t = 0.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float, Inexact

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    adjoint,
    dtype_of_matrix,
    of_oriented,
    off_diagonal,
    orientation,
    product,
    quotient,
    spread_eigenvalues,
    turning,
    with_diagonal,
)
from bpref.layer import Layer, Reals, no_params
from bpref.naive.vectors import turning_largest_positive
from bpref.rule import Case, Real, Rule


class EighCache(NamedTuple):
    w: Float[Array, "... n"]
    V: Inexact[Array, "... n n"]


def eigh() -> Layer[tuple[()], Array, tuple[Reals, Reals], EighCache]:
    """The eigenvalues, ascending, and eigenvectors of the symmetric or Hermitian part of A, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)`, real or complex, and y `(w, V)`: w `(..., n)`, real, V
      `(..., n, n)` with the eigenvectors as columns, the largest element of each real and positive. dA is symmetric or
      Hermitian; at repeated eigenvalues it is inf or NaN unless dV is 0. A matrix without rows has neither.

    Raises:
      ValueError: A is not square.
      TypeError: A is neither floating-point nor complex.
    """
    who = "eigh"

    def forward(params, A: Float[Array, "... n n"] | Complex[Array, "... n n"]):
        w, V = jnp.linalg.eigh(widen(A))
        V = V * orientation(V)
        return (cast(w, jnp.finfo(A.dtype).dtype), cast(V, A.dtype)), EighCache(w, V)

    def backward(params, cache, dy):
        w, V = cache
        dw, dV = dy
        dtype = dtype_of_matrix(dy, V)
        dw = None if dw is None else widen(dw).astype(V.dtype)
        if dV is None:
            assert dw is not None
            VM = V * dw[..., None, :]
        else:
            D = jnp.conj(widen(dV))
            if jnp.iscomplexobj(V):
                D = of_oriented(V, D, turning(V, D))
            H = product(adjoint(V), D)
            M = quotient(off_diagonal(0.5 * (H - adjoint(H))), w[..., None, :] - w[..., :, None])
            VM = product(V, M if dw is None else with_diagonal(M, dw))
        return (), cast(jnp.conj(product(VM, adjoint(V))), dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> tuple[Array, Array]:
    w, V = jnp.linalg.eigh(widen(A))
    V = V * turning_largest_positive(V)[..., None, :]
    return w.astype(jnp.finfo(A.dtype).dtype), V.astype(A.dtype)


def _lopsided(v):
    """Only the symmetric part, or the Hermitian, has separated eigenvalues."""
    return spread_eigenvalues(v) + (v - v.swapaxes(-1, -2).conj())


RULE = Rule(
    "eigh",
    eigh,
    reference,
    cases=(
        Case(
            "batch",
            Real("B n n", domain=spread_eigenvalues),
            fixed=SMALL_BATCH,
            timed={"B": 16, "n": 48},
        ),
        Case("not symmetric", Real("B n n", domain=_lopsided), fixed=SMALL_BATCH),
        Case("complex", Real("B n n", domain=_lopsided, is_complex=True), fixed=SMALL_BATCH | {"n": 3}),
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 3.1",
    covers=("symmetric eigendecomposition", "hermitian eigendecomposition", "eigvalsh"),
)
