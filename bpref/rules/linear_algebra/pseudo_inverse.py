"""pseudo_inverse: Y = A^+, the Moore-Penrose inverse.

Forward, by the thin singular value decomposition A = U diag(s) V^T, for each matrix of the batch, with s above
t = max(atol, rtol max_l s_l) kept and the others taken for 0:

    Y = V diag([s > t] / s) U^T                             A: (..., m, n)    Y: (..., n, m)

Differential, while the rank stays what it is (Golub and Pereyra); P = I - A Y and Q = I - Y A project on what A does
not reach, and on what it takes to 0:

    delta Y = -Y (delta A) Y + Y Y^T (delta A)^T P + Q (delta A)^T Y^T Y

The adjoint <dY, delta Y>, each term turned round so that delta A stands alone, P and Q being symmetric:

    dA = -Y^T dY Y^T + P dY^T Y Y^T + Y^T Y dY^T Q                        (..., m, n)

Of complex matrices every transpose is a conjugate one, in the pairing Re sum conj(G) delta Y of the cotangents G. JAX
pairs without the conjugate: G is conj(dY), and dA the conjugate of what is found (PyTorch's are G, and that itself).

With `hermitian` A is square and its Hermitian part alone counts, S = 1/2 (A + A^H) = V diag(w) V^H, whose singular
values are |w|. Y = S^+ is Hermitian too, and Q is P, so that of dY only the Hermitian part D counts: the cotangent of S
is above with S for A, and its own Hermitian part, which the symmetrisation asks for, is

    D = 1/2 (dY + dY^H)         dA = K + K^H - Y D Y,         K = P D Y Y

Of full rank Q is 0 where m >= n, and P where m <= n. Where the rank changes Y jumps, and has no derivative. What is
taken for 0 is so in dA too, as in PyTorch and JAX: exact where it is 0 but for round-off.

Cached: A, or S, and Y, in at least float32. P and Q are not formed, P X = X - A (Y X), X Q = X - (X Y) A, and for
m >= n no product is larger than n by n but dA's own, with T = Y dY^T; for m < n of the transposes the same:

    dA = Y^T (T Q - T^T) + P dY^T Y Y^T

Numerical care: half precision is decomposed in float32. The relative error of Y is that of the condition number over
the singular values that are kept, that of dA twice as much. No gap between singular values is needed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float, Inexact

from bpref.checks.hyperparameters import require_flags, require_non_negative, require_share
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    adjoint,
    hermitian_part,
    product,
    spread_eigenvalues,
    spread_singular_values,
)
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class PseudoInverseCache(NamedTuple):
    A: Inexact[Array, "... m n"]
    Y: Inexact[Array, "... n m"]


def pseudo_inverse(
    rtol: float | None = None, atol: float = 0.0, hermitian: bool = False
) -> Layer[tuple[()], Array, Reals, PseudoInverseCache]:
    """Y = A^+, for each matrix of a batch.

    Args:
      rtol: singular values of at most this share of the largest are taken for 0; None for max(m, n) round-offs, or for
        0 where atol is not, as in PyTorch.
      atol: singular values of at most this are taken for 0 as well.
      hermitian: whether A is symmetric, or Hermitian, and is decomposed as such; of another A that part alone counts.

    Returns:
      A layer with params `()`, x `A` of shape `(..., m, n)`, real or complex, and y `(..., n, m)`.

    Raises:
      ValueError: rtol is no share, atol negative, or hermitian no boolean; A is no matrix, or is to be Hermitian and is
        not square.
      TypeError: A is neither floating-point nor complex.
    """
    who = "pseudo_inverse"
    if rtol is not None:
        rtol = require_share(who, "rtol", rtol)
    atol = require_non_negative(who, "atol", atol)
    require_flags(who, hermitian=hermitian)

    def forward(params, A: Float[Array, "... m n"] | Complex[Array, "... m n"]):
        m, n = A.shape[-2:]
        if hermitian and m != n:
            raise ValueError(f"{who}: x has shape {A.shape}, expected (..., n, n): a Hermitian matrix is square")
        if hermitian:
            wide = hermitian_part(widen(A))
            w, V = jnp.linalg.eigh(wide, symmetrize_input=False)
            U, s = V, jnp.abs(w)
        else:
            wide = widen(A)
            U, s, Vt = jnp.linalg.svd(wide, full_matrices=False)
            w, V = s, adjoint(Vt)
        share = rtol if rtol is not None else 0.0 if atol else max(m, n) * float(jnp.finfo(wide.dtype).eps)
        is_kept = s > jnp.maximum(share * jnp.max(s, -1, keepdims=True, initial=0), atol)
        inverted = jnp.where(is_kept, 1 / jnp.where(is_kept, w, 1), 0).astype(wide.dtype)
        Y = product(V * inverted[..., None, :], adjoint(U))
        return cast(Y, A.dtype), PseudoInverseCache(wide, Y)

    def backward(params, cache, dy):
        A, Y = cache
        dY = jnp.conj(widen(dy))
        if hermitian:
            D = hermitian_part(dY)
            DY = product(D, Y)
            K = product(DY - product(Y, product(A, DY)), Y)
            dA = K + adjoint(K) - product(Y, DY)
        else:
            is_wide = Y.shape[-1] < Y.shape[-2]
            if is_wide:  # of A^T it is Y^T
                A, Y, dY = map(adjoint, (A, Y, dY))
            Yt, dYt = adjoint(Y), adjoint(dY)
            T = product(Y, dYt)
            inside = product(Yt, T - product(product(T, Y), A) - adjoint(T))
            dA = inside + product(dYt - product(A, T), product(Y, Yt))
            dA = adjoint(dA) if is_wide else dA
        return (), cast(jnp.conj(dA), dy.dtype)

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()], A: Array, rtol: float | None = None, atol: float = 0.0, hermitian: bool = False
) -> Array:
    wide = widen(A)
    if hermitian:
        wide = (wide + wide.swapaxes(-1, -2).conj()) / 2
    share = rtol if rtol is not None else 0.0 if atol else max(A.shape[-2:]) * float(jnp.finfo(wide.dtype).eps)
    if atol:
        largest = jnp.linalg.svd(wide, compute_uv=False).max(-1, initial=0)
        share = jnp.maximum(share, atol / jax.lax.stop_gradient(jnp.where(largest == 0, 1, largest)))
    return jnp.linalg.pinv(wide, rtol=share).astype(A.dtype)


RULE = Rule(
    "pseudo_inverse",
    pseudo_inverse,
    reference,
    cases=(
        Case(
            "tall",
            Real("B m n", domain=spread_singular_values),
            fixed=SMALL_BATCH,
            timed={"B": 16, "m": 64, "n": 32},
        ),
        Case("wide", Real("B m n", domain=spread_singular_values), {"rtol": 1e-3}, fixed=SMALL_BATCH | {"m": 3}),
        Case("square", Real("B n n", domain=spread_singular_values), fixed=SMALL_BATCH),
        Case(
            "Hermitian, of rank 4",
            Real("B n n", domain=spread_eigenvalues, is_complex=True),
            {"atol": 0.5, "hermitian": True},
            fixed=SMALL_BATCH | {"n": 5},
        ),
        Case(
            "complex",
            Real("B m n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"m": 4, "n": 2},
        ),
    ),
    cite="Golub and Pereyra, 'The differentiation of pseudo-inverses and nonlinear least squares problems whose "
    "variables separate' (1973), SIAM J. Numer. Anal. 10, equation 4.12 (number not checked)",
    covers=("pinv",),
)
