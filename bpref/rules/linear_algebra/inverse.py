"""inverse: Y = A^-1.

Forward, for each square matrix of the batch, n by n:

    sum_j A_ij Y_jk = [i = k]                                             A, Y: (..., n, n)

Differential: A Y = I gives (delta A) Y + A (delta Y) = 0, so

    delta Y_ij = -sum_kl Y_ik (delta A_kl) Y_lj

The adjoint sum_ij dY_ij delta Y_ij, the factor of each delta A_kl:

    dA_kl = -sum_ij Y_ik dY_ij Y_lj        dA = -Y^T dY Y^T               (..., n, n)

Complex matrices need nothing else: Y is holomorphic in A, and JAX does not conjugate cotangents (those of PyTorch are
the conjugates of these).

Cached: Y alone, in at least float32. Neither A nor its factors are needed: the backward is two products, where
autodiff keeps LU factors beside Y and solves with them once more.

Numerical care: half precision is inverted in float32. The relative error of Y is the condition number of A times
round-off, that of dA twice as much, as of every derivative of the inverse. A singular matrix cannot be seen while
tracing: Y holds inf or NaN, as `jnp.linalg.inv` has it, and so does dA; other matrices of the batch are not touched.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Complex, Float, Inexact

from bpref.dtypes import cast, widen
from bpref.formulas.matrices import SMALL_BATCH, product, spread_singular_values, transpose
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class InverseCache(NamedTuple):
    Y: Inexact[Array, "... n n"]


def inverse() -> Layer[tuple[()], Array, Reals, InverseCache]:
    """Y = A^-1, for each matrix of a batch.

    Returns:
      A layer with params `()`, x `A` of shape `(..., n, n)`, real or complex, and y of the same shape. Where A is
      singular, y and dA hold inf or NaN.

    Raises:
      ValueError: A is not square.
      TypeError: A is neither floating-point nor complex.
    """
    who = "inverse"

    def forward(params, A: Float[Array, "... n n"] | Complex[Array, "... n n"]):
        Y = jnp.linalg.inv(widen(A))
        return cast(Y, A.dtype), InverseCache(Y)

    def backward(params, cache, dY):
        Yt = transpose(cache.Y)
        return (), cast(-product(product(Yt, widen(dY)), Yt), dY.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], A: Array) -> Array:
    return jnp.linalg.inv(widen(A)).astype(A.dtype)


RULE = Rule(
    "inverse",
    inverse,
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
    "(2008), section 2.2.3",
    covers=("inv",),
)
