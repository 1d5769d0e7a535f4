"""matrix_norm: the Frobenius, nuclear, spectral, column-sum or row-sum norm of each matrix of a batch.

Forward, with A of shape (m, n), U, s, V its thin singular value decomposition, and ext the largest, or with a minus the
smallest:

    "fro":         y = sqrt(sum_ij A_ij^2)                                A: (..., m, n)    y: (...)
    "nuc":         y = sum_l s_l
    2, -2:         y = ext_l s_l
    1, -1:         y = ext_j sum_i |A_ij|
    inf, -inf:     y = ext_i sum_j |A_ij|

Differential: delta s_l = sum_ij U_il (delta A_ij) V_jl, and delta |a| = sign(a) delta a. With M_l, or M_j or M_i, 1
where the extreme is attained and 0 elsewhere, and c their number,

    "fro":         dA_ij = dy A_ij / y                                    (..., m, n)
    "nuc":         dA_ij = dy sum_l U_il V_jl
    2, -2:         dA_ij = dy sum_l U_il V_jl M_l / c
    1, inf:        dA_ij = dy sign(A_ij) M_j / c,         dA_ij = dy sign(A_ij) M_i / c

Kinks: where several attain the extreme they share equally, as in `reduce_max` and PyTorch. Each A_ij = 0 has sign 0; at
A = 0 the Frobenius norm has the subgradient 0. A singular value of 0 has the vectors that the decomposition gives it,
one subgradient of many.

Cached: the slope dA / dy, in at least float32; for 1 and inf sign(A_ij) M / c, whose factors are in one byte, and c.

Numerical care: half precision is decomposed and summed in float32. No gap between singular values is needed, for the
vectors themselves are not differentiated. Squares are not scaled, and overflow beyond 1e19 in float32.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int8

from bpref.checks.hyperparameters import is_number, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.loss.signs import as_byte, from_byte
from bpref.formulas.matrices import SMALL_BATCH, product, spread_singular_values
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule

ORDERS = ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf)


class MatrixNormCache(NamedTuple):
    slope: Float[Array, "... m n"] | None
    sign: Int8[Array, "... m n"] | None
    c: Float[Array, "... 1 1"] | None


def matrix_norm(p: float | str = "fro", keepdims: bool = False) -> Layer[tuple[()], Array, Reals, MatrixNormCache]:
    """y = |A|_p, for each matrix of a batch.

    Args:
      p: "fro", "nuc", 1, -1, 2, -2, `math.inf` or `-math.inf`.
      keepdims: whether y keeps the last two axes, with size 1.

    Returns:
      A layer with params `()`, x `A` of shape `(..., m, n)` with rows and columns, and y `(...)`, or `(..., 1, 1)`.

    Raises:
      ValueError: there is no such norm; A is no matrix, or has no rows or columns.
      TypeError: A is not floating-point.
    """
    who = "matrix_norm"
    require_flags(who, keepdims=keepdims)
    if not (isinstance(p, str) or is_number(p)) or p not in ORDERS:
        raise ValueError(f"{who}: p is {p!r}, expected one of fro, nuc, 1, -1, 2, -2, inf, -inf")

    def forward(params, A: Float[Array, "... m>0 n>0"]):
        wide = widen(A)
        if p == "fro":
            squares = jnp.sum(jnp.square(wide), (-2, -1), keepdims=True)
            y = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
            cache = MatrixNormCache(wide / jnp.where(y == 0, 1, y), None, None)
        elif p in ("nuc", 2, -2):
            U, s, Vt = jnp.linalg.svd(wide, full_matrices=False)
            y = jnp.sum(s, -1) if p == "nuc" else s[..., 0] if p == 2 else s[..., -1]
            M = jnp.ones_like(s) if p == "nuc" else _shares(s, y[..., None], -1)
            y, cache = y[..., None, None], MatrixNormCache(product(U * M[..., None, :], Vt), None, None)
        else:
            sums = jnp.sum(jnp.abs(wide), -2 if abs(p) == 1 else -1, keepdims=True)
            y = (jnp.max if p > 0 else jnp.min)(sums, (-2, -1), keepdims=True)
            is_in = sums == y
            c = jnp.sum(is_in, (-2, -1), keepdims=True, dtype=wide.dtype)
            cache = MatrixNormCache(None, as_byte(jnp.where(is_in | jnp.isnan(y), wide + 0 * y, 0)), c)
        y = cast(y, A.dtype)
        return y if keepdims else y[..., 0, 0], cache

    def backward(params, cache, dy):
        v = widen(dy) if keepdims else widen(dy)[..., None, None]
        if cache.slope is not None:
            return (), cast(v * cache.slope, dy.dtype)
        return (), cast(from_byte(cache.sign, 1, v.dtype) * (v / jnp.maximum(cache.c, 1)), dy.dtype)

    return Layer(no_params, forward, backward, who)


def _shares(s: Array, y: Array, axis: int) -> Array:
    """M / c along an axis."""
    M = (s == y).astype(s.dtype)
    return M / jnp.sum(M, axis, keepdims=True)


def reference(params: tuple[()], A: Array, p: float | str = "fro", keepdims: bool = False) -> Array:
    wide = widen(A) if p in ("nuc", 2, -2) else A
    return jnp.linalg.norm(wide, p, (-2, -1), keepdims).astype(A.dtype)


_A = Real("B m n", domain=spread_singular_values)

RULE = Rule(
    "matrix_norm",
    matrix_norm,
    reference,
    cases=(
        Case("Frobenius", Real("N m n"), never_empty=("m", "n")),
        Case("nuclear", _A, {"p": "nuc"}, ("m", "n"), fixed=SMALL_BATCH, timed={"B": 16, "m": 64, "n": 32}),
        Case("spectral, kept", _A, {"p": 2, "keepdims": True}, ("m", "n"), fixed=SMALL_BATCH | {"m": 3}),
        Case("smallest singular value", _A, {"p": -2}, ("m", "n"), fixed=SMALL_BATCH),
        Case("columns", Real("N m n"), {"p": 1}, ("m", "n")),
        Case("smallest row, kept", Real("N m n"), {"p": -math.inf, "keepdims": True}, ("m", "n")),
        Case("rows", Real("N m n"), {"p": math.inf}, ("m", "n")),
    ),
    cite="Watson, 'Characterization of the subdifferential of some matrix norms' (1992), Linear Algebra and its "
    "Applications 170",
    covers=("nuclear norm", "spectral norm", "frobenius norm"),
)
