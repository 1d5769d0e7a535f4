"""eig: the eigenvalues w and eigenvectors V of any square matrix, A V = V diag(w), complex of real A too.

Forward, for each matrix of the batch; w ascends by Re(w_i) + Im(w_i), as real ones do, and a conjugate pair whichever
way it is rounded; v_i, column i of V, has length 1 and a largest element, in row p, that is real and positive:

    A V = V diag(w)                                     A, V: (..., n, n)    w: (..., n)

Differential, with G = V^-1 (delta A) V and delta V = V C. What A V and V diag(w) change by, from the left with V^-1:

    G + diag(w) C = C diag(w) + diag(delta w)
    delta w_i = G_ii        C_ij = G_ij / (w_j - w_i)   for i != j

C_ii = r_i + i phi_i is left open by the equation: how long v_i is, and its phase. With u_i = sum_(j != i) v_j C_ji, the
length stays 1, and the largest element real, by

    r_i = -Re(v_i^H u_i)            phi_i = -Im(u_pi) / V_pi

The adjoint, in the pairing Re sum conj(D) delta V of cotangents D: with h_i = v_i^H d_i, r_i has the factor Re(h_i) and
phi_i the factor Im(h_i), so both are held by

    D_pi <- D_pi - i Im(h_i) / V_pi             d_i <- d_i - Re(h_i) v_i

after which h_i is 0, and C_ii has no factor. With H = V^H D of that, the factor of G_ij is H_ij / conj(w_j - w_i), that
of G_ii is w_i's, and of the matrix M of these A's cotangent is V^-H M V^H. JAX pairs without the conjugate: D is
conj(dV), and dA the conjugate of what is found (PyTorch's are D, and that itself). With N = conj(M),

    N_ii = dw_i             N_ij = conj(H_ij) / (w_j - w_i)         dA = V^-T N V^T         (..., n, n)

Of real A delta A is real, and meets only the real part of this.

Cached: w and V, the outputs, in at least complex64, and whether A is real. V is factorised when a backward asks.

Numerical care: half precision is decomposed in complex64. Nothing is orthogonal here: relative to dw and dV the error
of dA is round-off times the condition number of V, of dV over the smallest gap besides. A matrix whose eigenvectors are
dependent has no derivative, and V^-1 is inf, NaN or large; at repeated eigenvalues the same is true of V, but not of w:
of eigenvalues alone (dV is 0 or `None`) no gap is needed. w and V jump where two change places, or two elements
are largest together. JAX decomposes on a CPU, has a GPU's matrices decomposed there or by cuSOLVER, and has no form for
a TPU. Its own differentiation of the forward, for second derivatives, needs `enable_eigvec_derivs` of its `eig`.
"""

import inspect
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Complex, Float, Shaped

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    factorise,
    identity_like,
    of_oriented,
    off_diagonal,
    orientation,
    product,
    quotient,
    solve_factorised_transposed,
    spread_singular_values,
    transpose,
    with_diagonal,
)
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.naive.vectors import turning_largest_positive
from bpref.rule import Case, Real, Rule


class _Options(TypedDict, total=False):
    enable_eigvec_derivs: bool


DIFFERENTIABLE: _Options = (
    {"enable_eigvec_derivs": True} if "enable_eigvec_derivs" in inspect.signature(lax.linalg.eig).parameters else {}
)
"""What JAX is told where it has a derivative of eigenvectors, as 0.10.0 has not."""


class EigCache(NamedTuple):
    w: Complex[Array, "... n"]
    V: Complex[Array, "... n n"]
    of_A: Shaped[Array, "0 ... n n"]


def eig() -> Layer[tuple[()], Array, tuple[Reals, Reals], EigCache]:
    """The eigenvalues and eigenvectors of A, symmetric or not, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)`, real or complex, and y `(w, V)`, complex of either: w
      `(..., n)`, ascending by the sum of real and imaginary part, V `(..., n, n)` with the eigenvectors as columns, of
      length 1, the largest element of each real and positive. Where eigenvectors are dependent dA is inf, NaN or
      large, at repeated eigenvalues unless dV is 0. A matrix without rows has neither.

    Raises:
      ValueError: A is not square.
      TypeError: A is neither floating-point nor complex.
      NotImplementedError: on a TPU, where JAX has no such decomposition.
    """
    who = "eig"

    def forward(params, A: Float[Array, "... n n"] | Complex[Array, "... n n"]):
        w, V = lax.linalg.eig(widen(A), compute_left_eigenvectors=False, **DIFFERENTIABLE)
        order = jnp.argsort(jnp.real(w) + jnp.imag(w), -1)
        w, V = jnp.take_along_axis(w, order, -1), jnp.take_along_axis(V, order[..., None, :], -1)
        V = V * orientation(V)
        return (w, V), EigCache(w, V, shape_keeper(A))

    def backward(params, cache, dy):
        w, V, of_A = cache
        dw, dV = dy
        if dV is None:
            N = identity_like(V) * dw[..., None, :]
        else:
            D = jnp.conj(dV)
            h = jnp.sum(jnp.conj(V) * D, -2, keepdims=True)
            D = of_oriented(V, D, jnp.imag(h)) - V * jnp.real(h).astype(V.dtype)
            conjugate_H = product(transpose(V), jnp.conj(D))
            N = quotient(off_diagonal(conjugate_H), w[..., None, :] - w[..., :, None])
            N = N if dw is None else with_diagonal(N, dw)
        dA = solve_factorised_transposed(factorise(V)[0], product(N, transpose(V)))
        return (), cast(dA if jnp.iscomplexobj(of_A) else jnp.real(dA), of_A.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> tuple[Array, Array]:
    """By perturbation of constant vectors: once is right to first order, and once more, from there, to the third."""
    A = widen(A)
    w, V = jax.lax.stop_gradient(jnp.linalg.eig(jax.lax.stop_gradient(A)))
    order = jnp.argsort(w.real + w.imag, -1)
    w, V = jnp.take_along_axis(w, order, -1), jnp.take_along_axis(V, order[..., None, :], -1)
    of_rounded = V * w[..., None, :] @ jnp.linalg.inv(V)  # whose vectors V are, where A's are that but for rounding
    w0, A = w, of_rounded + (A - jax.lax.stop_gradient(A)).astype(V.dtype)
    for _ in range(2):
        B = jnp.linalg.solve(V, A @ V)
        B = B - jax.lax.stop_gradient(B)
        gap = w[..., None, :] - w[..., :, None]
        V = V + V @ jnp.where(gap == 0, 0, B / jnp.where(gap == 0, 1, gap))
        V = V / jnp.linalg.norm(V, axis=-2, keepdims=True).astype(V.dtype)
        w = w0 + jnp.diagonal(B, axis1=-2, axis2=-1)
    return w, V * turning_largest_positive(V)[..., None, :]


def _spread_spectrum(v: np.ndarray) -> np.ndarray:
    """Eigenvalues that are at least 1 apart, the first two of a real matrix a conjugate pair, and eigenvectors of
    condition number 3 that are those of v's singular ones."""
    n = v.shape[-1]
    if v.size == 0:
        return v
    spectrum = np.diag(np.arange(n) - 0.4 * n + (0.5j * np.arange(n)[::-1] if np.iscomplexobj(v) else 0))
    if n > 1 and not np.iscomplexobj(v):
        spectrum[:2, :2] = [[spectrum[0, 0], 0.7], [-0.7, spectrum[0, 0]]]
    X = spread_singular_values(v)
    return X @ spectrum @ np.linalg.inv(X)


RULE = Rule(
    "eig",
    eig,
    reference,
    cases=(
        Case("real", Real("B n n", domain=_spread_spectrum), fixed=SMALL_BATCH, timed={"B": 16, "n": 32}),
        Case("complex", Real("B n n", domain=_spread_spectrum, is_complex=True), fixed=SMALL_BATCH | {"n": 3}),
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 3.1; van der Aa, ter Morsche and Mattheij, 'Computation of eigenvalue and eigenvector derivatives "
    "for a general complex-valued eigensystem' (2007), Electronic Journal of Linear Algebra 16 (number not checked)",
    covers=("eigendecomposition", "eigvals", "nonsymmetric eigenvalues"),
)
