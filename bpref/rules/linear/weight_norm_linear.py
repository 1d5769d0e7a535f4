"""weight_norm_linear: Z = A W^T + b with W_k = g_k v_k / ||v_k||, length and direction apart.

Forward, with A of shape (..., d), v of shape (m, d) whose row v_k is the direction of output k, lengths g of shape
(m,), b of shape (m,), and n running over all leading axes (the examples):

    l_k  = (sum_j v_kj^2)^(1/2)               the length of v_k           (m,)
    u_kj = v_kj / l_k                         the direction               (m, d)
    W_kj = g_k u_kj                                                       (m, d)
    Z_nk = sum_j A_nj W_kj + b_k                                          (..., m)

Differential. The linear layer's is as in `linear`, with dW_kj = sum_n dZ_nk A_nj; into W's parts it goes on with

    delta W_kj = (delta g_k) u_kj + g_k delta u_kj
    delta u_kj = (delta v_kj - u_kj sum_i u_ki (delta v_ki)) / l_k

so a change of v_k along itself does nothing. The factor of each perturbation:

    dg_k  = sum_j dW_kj u_kj                                              (m,)
    dv_kj = g_k / l_k (dW_kj - dg_k u_kj)                                 (m, d)
    db_k  = sum_n dZ_nk                                                   (m,)
    dA_nj = sum_k dZ_nk W_kj                  dA = dZ W                   (..., d)

dv_k is orthogonal to v_k: a gradient step can only make v_k longer.

Cached: A alone, as in `linear`. W, u and l are made again from the parameters.

Numerical care: l, W and the cotangents' sums are computed in at least float32; W is rounded to v's dtype once, so that
the product with A is one of that dtype. dW - dg u cancels where dW_k is nearly parallel to v_k, which is a property
of the function. A row v_k = 0 has no direction: its outputs and gradients are NaN. The square of an element beyond
1e19 overflows in float32, so such directions are NaN or 0 too.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.formulas.caches import RowsCache
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_affine
from bpref.rule import Case, Real, Rule, Size


class WeightNormLinearParams(NamedTuple):
    g: Float[Array, " m"]
    v: Float[Array, "m d"]
    b: Float[Array, " m"] | None


def weight_norm_linear(features: int, bias: bool = True) -> Layer[WeightNormLinearParams, Array, Reals, RowsCache]:
    """Z = A W^T + b with W_k = g_k v_k / ||v_k||.

    Args:
      features: the number of outputs m.
      bias: whether there is a b.

    Returns:
      A layer with params `WeightNormLinearParams(g: (m,), v: (m, d), b: (m,) or None)`, x `(..., d)` and y
      `(..., m)`. v is drawn uniformly with variance 1/d, g is the length of its rows (so that W = v) and b is 0.

    Raises:
      ValueError: `features` is not a positive integer; g does not have one length for each row of v; x does not
        have d features in its last axis.
      TypeError: x is not floating-point, or not of v's dtype.
    """
    who = "weight_norm_linear"
    require_flags(who, bias=bias)
    features = require_size(who, "features", features)

    def init(key, x):
        d = x.shape[-1]
        v = lecun_uniform(key, (features, d), d, x.dtype)
        b = jnp.zeros((features,), x.dtype) if bias else None
        return WeightNormLinearParams(cast(_length(v)[:, 0], x.dtype), v, b)

    def forward(params, A: Float[Array, "... d>0"]):
        g, v, b = params
        Z = plus(times_transposed(A, _weight(g, v)), b)
        return cast(Z, A.dtype), RowsCache(A)

    def backward(params, cache, dZ):
        g, v, b = params
        dW = transposed_times(dZ, cache.A)
        over_l = 1 / _length(v)
        u = widen(v) * over_l
        dg = jnp.sum(dW * u, -1, keepdims=True)
        dv = widen(g)[:, None] * over_l * (dW - dg * u)
        dA = times(dZ, _weight(g, v))
        dparams = WeightNormLinearParams(cast(dg[:, 0], g.dtype), cast(dv, v.dtype), bias_cotangent(dZ, b))
        return dparams, cast(dA, dZ.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


def _length(v: Array) -> Array:
    """The length of each row, (m, 1), in at least float32."""
    v = widen(v)
    return jnp.sqrt(jnp.sum(v * v, -1, keepdims=True))


def _weight(g: Array, v: Array) -> Array:
    """W, rounded to v's dtype once."""
    return cast(widen(g)[:, None] * widen(v) / _length(v), v.dtype)


def reference(params: WeightNormLinearParams, x: Array, features: int, bias: bool = True) -> Array:
    g, v, b = params
    W = g[:, None] * v / jnp.linalg.norm(v, axis=1, keepdims=True)
    return naive_affine(W, b, x)


_NOT_EMPTY = ("d", "m")

RULE = Rule(
    "weight_norm_linear",
    weight_norm_linear,
    reference,
    cases=(
        Case("bias", Real("N d"), {"features": Size("m")}, _NOT_EMPTY),
        Case(
            "sequence, no bias",
            Real("B T d"),
            {"features": Size("m"), "bias": False},
            _NOT_EMPTY,
            timed={"B": 8, "T": 64, "d": 256, "m": 256},
        ),
        Case("one example", Real("d"), {"features": Size("m")}, _NOT_EMPTY),
    ),
    cite="arXiv:1602.07868, equations 2 and 3",
    covers=("weight normalization",),
)
