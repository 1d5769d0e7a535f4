"""pseudo_inverse: Y = A^+, the Moore-Penrose inverse.

Forward, by the thin singular value decomposition A = U diag(s) V^T, for each matrix of the batch, with s above
t = rtol max_l s_l kept and the others taken for 0:

    Y = V diag([s > t] / s) U^T                             A: (..., m, n)    Y: (..., n, m)

Differential, while the rank stays what it is (Golub and Pereyra); P = I - A Y and Q = I - Y A project on what A does
not reach, and on what it takes to 0:

    delta Y = -Y (delta A) Y + Y Y^T (delta A)^T P + Q (delta A)^T Y^T Y

The adjoint <dY, delta Y>, each term turned round so that delta A stands alone, P and Q being symmetric:

    dA = -Y^T dY Y^T + P dY^T Y Y^T + Y^T Y dY^T Q                        (..., m, n)

Of complex matrices every transpose is a conjugate one, in the pairing Re sum conj(G) delta Y of the cotangents G. JAX
pairs without the conjugate: G is conj(dY), and dA the conjugate of what is found (PyTorch's are G, and that itself).

Of full rank Q is 0 where m >= n, and P where m <= n. Where the rank changes Y jumps, and has no derivative.

Cached: A and Y, in at least float32. P and Q are not formed: P X = X - A (Y X), X Q = X - (X Y) A.

Numerical care: half precision is decomposed in float32. The relative error of Y is that of the condition number over
the singular values that are kept, that of dA twice as much. No gap between singular values is needed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float, Inexact

from bpref.checks.hyperparameters import require_share
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, adjoint, product, spread_singular_values
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class PseudoInverseCache(NamedTuple):
    A: Inexact[Array, "... m n"]
    Y: Inexact[Array, "... n m"]


def pseudo_inverse(rtol: float | None = None) -> Layer[tuple[()], Array, Reals, PseudoInverseCache]:
    """Y = A^+, for each matrix of a batch.

    Args:
      rtol: singular values of at most this share of the largest are taken for 0; None for max(m, n) round-offs, as in
        PyTorch.

    Returns:
      A layer with params `()`, x `A` of shape `(..., m, n)`, real or complex, and y `(..., n, m)`.

    Raises:
      ValueError: rtol is no share; A is no matrix.
      TypeError: A is neither floating-point nor complex.
    """
    who = "pseudo_inverse"
    if rtol is not None:
        rtol = require_share(who, "rtol", rtol)

    def forward(params, A: Float[Array, "... m n"] | Complex[Array, "... m n"]):
        wide = widen(A)
        U, s, Vt = jnp.linalg.svd(wide, full_matrices=False)
        share = max(A.shape[-2:]) * float(jnp.finfo(wide.dtype).eps) if rtol is None else rtol
        is_kept = s > share * jnp.max(s, -1, keepdims=True, initial=0)
        inverted = jnp.where(is_kept, 1 / jnp.where(is_kept, s, 1), 0).astype(wide.dtype)
        Y = product(adjoint(Vt) * inverted[..., None, :], adjoint(U))
        return cast(Y, A.dtype), PseudoInverseCache(wide, Y)

    def backward(params, cache, dy):
        A, Y = cache
        dY = jnp.conj(widen(dy))
        Yt, dYt = adjoint(Y), adjoint(dY)
        outside = product(dYt - product(A, product(Y, dYt)), product(Y, Yt))
        inside = product(product(Yt, Y), dYt - product(product(dYt, Y), A))
        return (), cast(jnp.conj(outside + inside - product(product(Yt, dY), Yt)), dy.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array, rtol: float | None = None) -> Array:
    wide = widen(A)
    share = max(A.shape[-2:]) * float(jnp.finfo(wide.dtype).eps) if rtol is None else rtol
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
            "complex",
            Real("B m n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"m": 4, "n": 2},
        ),
    ),
    cite="Golub and Pereyra, 'The differentiation of pseudo-inverses and nonlinear least squares problems whose "
    "variables separate' (1973), SIAM J. Numer. Anal. 10, equation 4.12 (number not checked)",
    covers=("pinv",),
)
