"""What the rules of linear algebra share: products, the LU factorisation, systems, and matrices to try.

A matrix is the last two axes, whatever stands in front is a batch. JAX factorises in float32 and wider, so half
precision is widened, and what is cached stays wide: factors rounded to 8 bits would spoil the backward.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.lax.linalg import triangular_solve
from jaxtyping import Float, Inexact, Int, PyTree

SMALL_BATCH = {"B": 4}
"""The batch of a case, `fixed`. Beyond about 32 matrices jaxlib splits a batch among its threads, from one of which it
waits for the others: factorisations that run side by side, a rule's and autodiff's, may wait for each other."""


def product(A: Array, B: Array) -> Array:
    """A B, in the full precision of its dtype on every device."""
    return jnp.matmul(A, B, precision=lax.Precision.HIGHEST)


def transpose(A: Array) -> Array:
    return jnp.swapaxes(A, -1, -2)


def adjoint(A: Array) -> Array:
    """A^H, which of real A is A^T."""
    return jnp.conj(transpose(A))


def hermitian_part(A: Array) -> Array:
    """1/2 (A + A^H), which of real A is the symmetric part."""
    return 0.5 * (A + adjoint(A))


def identity_like(A: Array) -> Array:
    """The identity for each square matrix of the batch A."""
    return jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=A.dtype), A.shape)


def with_diagonal(A: Array, d: Array) -> Array:
    """A, with its diagonal replaced by d."""
    return jnp.where(jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=bool), A.shape), d[..., None], A)


def off_diagonal(A: Array) -> Array:
    """A, with zeros on its diagonal."""
    return jnp.where(jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=bool), A.shape), jnp.zeros((), A.dtype), A)


def quotient(a: Array, gap: Array) -> Array:
    """a / gap, and 0 for 0 / 0: where nothing asks for a vector, no gap is needed."""
    if jnp.iscomplexobj(a) and not jnp.iscomplexobj(gap):
        return lax.complex(quotient(jnp.real(a), gap), quotient(jnp.imag(a), gap))
    return a / jnp.where((a == 0) & (gap == 0), 1, gap)


def orientation(V: Array) -> Array:
    """For each column of V, `(..., 1, k)`, the number of size 1 that makes its largest element real and positive.

    A decomposition leaves the signs of its vectors open, of complex ones the phases, and libraries, devices and dtypes
    choose differently; by this they agree.
    """
    if V.shape[-2] == 0:
        return jnp.ones((*V.shape[:-2], 1, V.shape[-1]), V.dtype)
    largest = jnp.take_along_axis(V, _of_largest(V), -2)
    if jnp.iscomplexobj(V):
        return jnp.conj(largest) / jnp.abs(largest).astype(V.dtype)
    return jnp.where(largest < 0, jnp.full((), -1, V.dtype), jnp.full((), 1, V.dtype))


def of_oriented(V: Array, dV: Array, turned: Array) -> Array:
    """dV, of complex columns V that `orientation` turned, with what holding their largest elements real adds to it.

    A phase of v, delta v = i phi v, has the factor t = Im v^H dv, and `turned`, `(..., 1, k)`, is t of all that turns
    with v, for eigenvectors of v alone. Whatever else happens to v, phi keeps v_p real: Im (delta v_p) + phi v_p = 0,

        t phi = -t Im(delta v_p) / v_p              dv_p <- dv_p - i t / v_p

    after which no phase has a factor, and it can be left out.
    """
    if V.shape[-2] == 0:
        return dV
    row = _of_largest(V)
    largest = jnp.real(jnp.take_along_axis(V, row, -2))
    is_largest = lax.broadcasted_iota(row.dtype, V.shape, V.ndim - 2) == row
    held = jnp.where(is_largest, turned / largest, 0)
    return dV - lax.complex(jnp.zeros_like(held), held)


def _of_largest(V: Array) -> Array:
    """The row of the largest element of each column, `(..., 1, k)`."""
    return jnp.argmax(jnp.abs(V), axis=-2, keepdims=True)


def turning(V: Array, dV: Array) -> Array:
    """t = Im v^H dv for each column of V, `(..., 1, k)`."""
    return jnp.imag(jnp.sum(jnp.conj(V) * dV, -2, keepdims=True))


def complement(U: Array) -> Array:
    """An orthonormal basis, `(..., m, m - k)`, of what the orthonormal columns of U, `(..., m, k)`, do not reach.

    Each basis is as good as another: to JAX it is one that turns no more than U makes it, delta E = -U (delta U)^H E.
    """
    m, k = U.shape[-2:]
    Q = jnp.linalg.qr(lax.stop_gradient(U), mode="complete")[0] if k else jnp.eye(m, dtype=U.dtype)
    E = jnp.broadcast_to(lax.stop_gradient(Q[..., k:]), (*U.shape[:-2], m, m - k))
    return E - product(U, product(adjoint(U), E))


class Factors(NamedTuple):
    """P A = L U: L below the diagonal (its own is 1), U on and above it; row i of P A is row permutation_i of A."""

    lu: Inexact[Array, "... n n"]
    permutation: Int[Array, "... n"]


def factorise(A: Array) -> tuple[Factors, Array]:
    """The factors of A, and the pivots, `(..., n)`: row i was swapped with row pivot_i."""
    lu, pivots, permutation = lax.linalg.lu(A)
    return Factors(lu, permutation), pivots


def solve_factorised(factors: Factors, B: Array) -> Array:
    """A^-1 B = U^-1 L^-1 P B for a matrix B."""
    lu, permutation = factors
    X = jnp.take_along_axis(B, permutation[..., None], -2)
    X = triangular_solve(lu, X, left_side=True, lower=True, unit_diagonal=True)
    return triangular_solve(lu, X, left_side=True, lower=False)


def solve_factorised_transposed(factors: Factors, B: Array) -> Array:
    """A^-T B = P^T L^-T U^-T B for a matrix B."""
    lu, permutation = factors
    X = triangular_solve(lu, B, left_side=True, lower=False, transpose_a=True)
    X = triangular_solve(lu, X, left_side=True, lower=True, unit_diagonal=True, transpose_a=True)
    return jnp.take_along_axis(X, jnp.argsort(permutation, -1)[..., None], -2)


def dtype_of_matrix(dy: PyTree, V: Array) -> np.dtype:
    """The dtype of a matrix with vectors V, from cotangents that are real where it is complex."""
    return V.dtype if jnp.iscomplexobj(V) else jax.tree.leaves(dy)[0].dtype


class System(NamedTuple):
    A: Float[Array, "*b n n"]
    B: Float[Array, "*b n"] | Float[Array, "*b n k"]


class SystemCache(NamedTuple):
    A: Float[Array, "... n n"]
    X: Float[Array, "... n k"]


def as_matrices(x: tuple[Array, Array]) -> tuple[Array, Array, bool]:
    """A, the right-hand sides as matrices, and whether these came as vectors."""
    A, B = x
    is_vector = B.ndim < A.ndim
    return A, B[..., None] if is_vector else B, is_vector


def spread_singular_values(v: np.ndarray) -> np.ndarray:
    """A matrix with v's singular vectors and singular values from 1 to 3, equally far apart."""
    if v.size == 0:
        return v
    U, s, Vt = np.linalg.svd(v, full_matrices=False)
    return U * np.linspace(1, 3, s.shape[-1]) @ Vt


def spread_eigenvalues(v: np.ndarray) -> np.ndarray:
    """A symmetric or Hermitian matrix with eigenvalues of both signs, 1 apart, and eigenvectors of that part of v."""
    n = v.shape[-1]
    return _with_eigenvalues(v, np.arange(n) - 0.4 * n)


def positive_definite(v: np.ndarray) -> np.ndarray:
    """A symmetric or Hermitian matrix with eigenvalues from 1 to 3, and eigenvectors of that part of v."""
    return _with_eigenvalues(v, np.linspace(1, 3, v.shape[-1]))


def dominant_diagonal(v: np.ndarray) -> np.ndarray:
    """v, values within 4, with 1.5 to 2.5 on the diagonal and at most 1 in the rest of each row."""
    n = v.shape[-1]
    on = np.eye(n, dtype=bool)
    return np.where(on, np.where(v < 0, -1, 1) * (1.5 + np.abs(v) / 4), v / (4 * max(n, 1)))


def _with_eigenvalues(v: np.ndarray, w: np.ndarray) -> np.ndarray:
    if v.size == 0:
        return v
    V = np.linalg.eigh(v + np.conj(np.swapaxes(v, -1, -2)))[1]
    A = V * w @ np.conj(np.swapaxes(V, -1, -2))
    return (A + np.conj(np.swapaxes(A, -1, -2))) / 2
