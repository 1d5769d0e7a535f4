"""log_determinant: l = log |det A|, and the sign of the determinant.

Forward, by LU factorisation with pivoting, P A = L U, where L has ones on its diagonal:

    l = sum_i log |U_ii|                                A: (..., n, n)    l: (...)
    s = (-1)^swaps prod_i sign(U_ii)                                      s: (...)

Differential: det A is linear in each A_ij, with the cofactor (det A) A^-1_ji as its slope (Jacobi), hence

    delta l = sum_ij A^-1_ji delta A_ij                     delta s = 0

s is constant wherever det A is not 0; its cotangent ds contributes nothing. The adjoint:

    dA_ij = dl A^-1_ji                      dA = dl A^-T                  (..., n, n)

which is one solve with the transposed factors, of dl I.

Cached: the factors L, U in one matrix, in at least float32, and the permutation P. The inverse would be as large, and
a forward that is not followed by a backward would have paid for it.

Numerical care: the determinant itself, which over- and underflows at a few dozen rows, is never formed. Half precision
is factorised and summed in float32. A singular matrix has l = -inf and s = 0, and a cotangent of inf or NaN; other
matrices of the batch are not touched. A matrix that is singular but for rounding has a large negative l of no sound
digit, as from `jnp.linalg.slogdet`.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

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


def log_determinant() -> Layer[tuple[()], Array, tuple[Reals, Reals], Factors]:
    """The sign s of det A and l = log |det A|, for each matrix of a batch, in the order of `jnp.linalg.slogdet`.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)` and y `(s, l)`, both `(...)` in A's dtype; s is 1, -1 or,
      for a singular matrix, 0, where l is -inf. The cotangent of s is not looked at.

    Raises:
      ValueError: A is not square.
      TypeError: A is not floating-point.
    """
    who = "log_determinant"

    def forward(params, A: Float[Array, "... n n"]):
        factors, pivots = factorise(widen(A))
        diagonal = jnp.diagonal(factors.lu, axis1=-2, axis2=-1)
        unmoved = jnp.broadcast_to(jnp.arange(A.shape[-1], dtype=pivots.dtype), pivots.shape)
        parity = jnp.where(pivots == unmoved, 1, -1).astype(diagonal.dtype)
        s = jnp.prod(jnp.sign(diagonal) * parity, -1)
        l = jnp.sum(jnp.log(jnp.abs(diagonal)), -1)
        return (cast(s, A.dtype), cast(l, A.dtype)), factors

    def backward(params, factors, dy):
        _, dl = dy
        if dl is None:
            return (), None
        scaled = identity_like(factors.lu) * widen(dl)[..., None, None]
        return (), cast(solve_factorised_transposed(factors, scaled), dl.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> tuple[Array, Array]:
    s, l = jnp.linalg.slogdet(widen(A))
    return s.astype(A.dtype), l.astype(A.dtype)


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
    ),
    cite="Giles, 'Collected matrix derivative results for forward and reverse mode algorithmic differentiation' "
    "(2008), section 2.2.4",
    covers=("slogdet", "logdet"),
)
