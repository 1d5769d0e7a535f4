"""log_determinant: l = log |det A|, and the sign of the determinant.

Forward, by LU factorisation with pivoting, P A = L U, where L has ones on its diagonal:

    l = sum_i log |U_ii|                                A: (..., n, n)    l: (...)
    s = (-1)^swaps prod_i sign(U_ii)                                      s: (...)

Differential: det A is linear in each A_ij, with the cofactor (det A) A^-1_ji as its slope (Jacobi), hence

    delta l = sum_ij A^-1_ji delta A_ij                     delta s = 0

s is constant wherever det A is not 0; its cotangent ds contributes nothing. The adjoint:

    dA_ij = dl A^-1_ji                      dA = dl A^-T                  (..., n, n)

which is one solve with the transposed factors, of dl I.

Of a complex matrix s is a phase, det A = s e^l, and tr(A^-1 delta A) = delta l + delta s / s, the first real and the
second imaginary: delta s = i s Im tr(A^-1 delta A). In JAX's pairing without conjugates, Re(ds delta s) + dl delta l,

    dA = (dl + i Im(s ds)) A^-T                                           PyTorch's is the conjugate

Cached: the factors L, U in one matrix, in at least float32, the permutation P, and s if complex. The inverse
would be as large, and a forward that is not followed by a backward would have paid for it.

Numerical care: the determinant itself, which over- and underflows at a few dozen rows, is never formed. Half precision
is factorised and summed in float32. A singular matrix has l = -inf and s = 0, and a cotangent of inf or NaN; other
matrices of the batch are not touched. A matrix that is singular but for rounding has a large negative l of no sound
digit, as from `jnp.linalg.slogdet`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Complex, Float

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import (
    SMALL_BATCH,
    Factors,
    factorise,
    identity_like,
    solve_factorised_transposed,
    spread_singular_values,
)
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class LogDeterminantCache(NamedTuple):
    factors: Factors
    s: Complex[Array, "..."] | None


def log_determinant() -> Layer[tuple[()], Array, tuple[Reals, Reals], LogDeterminantCache]:
    """The sign s of det A and l = log |det A|, for each matrix of a batch, in the order of `jnp.linalg.slogdet`.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)`, real or complex, and y `(s, l)`, both `(...)` in A's dtype
      but for l of complex A, which is real; s is 1, -1, of complex A a phase, or, for a singular matrix, 0, where l is
      -inf. The cotangent of a real s is not looked at.

    Raises:
      ValueError: A is not square.
      TypeError: A is neither floating-point nor complex.
    """
    who = "log_determinant"

    def forward(params, A: Float[Array, "... n n"] | Complex[Array, "... n n"]):
        factors, pivots = factorise(widen(A))
        diagonal = jnp.diagonal(factors.lu, axis1=-2, axis2=-1)
        unmoved = jnp.broadcast_to(jnp.arange(A.shape[-1], dtype=pivots.dtype), pivots.shape)
        parity = jnp.where(pivots == unmoved, 1, -1).astype(diagonal.dtype)
        size = jnp.abs(diagonal)
        is_complex = jnp.iscomplexobj(A)  # whose sign is constant to JAX
        signs = diagonal / jnp.where(size == 0, 1, size).astype(diagonal.dtype) if is_complex else jnp.sign(diagonal)
        s = jnp.prod(signs * parity, -1)
        l = jnp.sum(jnp.log(size), -1)
        y = cast(s, A.dtype), cast(l, jnp.finfo(A.dtype).dtype)
        return y, LogDeterminantCache(factors, s if is_complex else None)

    def backward(params, cache, dy):
        factors, s = cache
        ds, dl = dy
        if s is not None and ds is not None:
            turned, dtype = jnp.imag(s * ds), s.dtype
            d = lax.complex(jnp.zeros_like(turned) if dl is None else dl, turned)
        elif dl is not None:
            dtype = dl.dtype if s is None else s.dtype
            d = widen(dl) if s is None else dl.astype(dtype)
        else:
            return (), None
        return (), cast(solve_factorised_transposed(factors, identity_like(factors.lu) * d[..., None, None]), dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> tuple[Array, Array]:
    s, l = jnp.linalg.slogdet(widen(A))
    return s.astype(A.dtype), l.astype(jnp.finfo(A.dtype).dtype)


RULE = Rule(
    "log_determinant",
    log_determinant,
    reference,
    cases=(
        Case(
            "batch",
            Real("B n n", domain=spread_singular_values),
            fixed=SMALL_BATCH,
            timed={"B": 16, "n": 96},
        ),
        Case(
            "two batch axes",
            Real("B T n n", domain=spread_singular_values),
            fixed=SMALL_BATCH | {"T": 3},
        ),
        Case(
            "complex",
            Real("B n n", domain=spread_singular_values, is_complex=True),
            fixed=SMALL_BATCH | {"n": 3},
        ),
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 2.2.4",
    covers=("slogdet", "logdet"),
)
