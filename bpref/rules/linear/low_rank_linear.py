"""low_rank_linear: Z = A (W + s U V)^T + b with W and b frozen, a low-rank adaptation (LoRA).

Forward, with A of shape (..., d), W of shape (m, d), b of shape (m,), the factors U of shape (m, r) and V of shape
(r, d), the scale s = alpha / r, and n running over all leading axes (the examples). The paper calls U and V B and A.
The product U V is never formed; A goes through the r features H:

    H_np = sum_j A_nj V_pj                    H = A V^T                   (..., r)
    Z_nk = sum_j A_nj W_kj + s sum_p H_np U_kp + b_k                      (..., m)

Differential, with W and b constant:

    dJ = sum_nk dZ_nk (sum_j (delta A_nj) W_kj + s sum_p (delta H_np) U_kp + s sum_p H_np (delta U_kp))
    delta H_np = sum_j (delta A_nj) V_pj + A_nj (delta V_pj)

The factor of each perturbation; s G is what reaches H, and through it V and A:

    G_np  = sum_k dZ_nk U_kp                  G = dZ U                    (..., r)
    dU_kp = s sum_n dZ_nk H_np                dU = s dZ^T H               (m, r)
    dV_pj = s sum_n G_np A_nj                 dV = s G^T A                (r, d)
    dA_nj = sum_k dZ_nk W_kj + s sum_p G_np V_pj                          (..., d)
            dA = dZ W + s G V

The cotangents of W and b are `None`: no product of shape (m, d) is made, which is half of what a trained linear
layer's backward costs, and an optimiser keeps no state for them. Held constant means to any order: a second
derivative does not reach W or b either.

U starts at 0, so that the layer starts as Z = A W^T + b. Then dV = 0 as well, until the first step has moved U.

Cached: A. H is r features made again from A, and V is a parameter.

Numerical care: products of half-precision matrices accumulate in float32; H and G stay in float32 on their way, and
all terms of Z and of dA are added before they are rounded. s, which is seldom a power of two, multiplies sums and not
what is summed, where its rounding could be amplified.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform, plus, times, times_transposed, transposed_times
from bpref.formulas.caches import RowsCache
from bpref.layer import Held, Layer, Reals, each_position
from bpref.naive.dense import naive_affine
from bpref.rule import Case, Interval, Real, Rule, Size


class LowRankLinearParams(NamedTuple):
    W: Float[Array, "m d"]
    b: Float[Array, " m"] | None
    U: Float[Array, "m r"]
    V: Float[Array, "r d"]


def low_rank_linear(
    features: int, rank: int = 8, alpha: float = 8.0, bias: bool = True
) -> Layer[LowRankLinearParams, Array, Reals, RowsCache]:
    """Z = A (W + (alpha / rank) U V)^T + b, of which U and V alone are trained.

    Args:
      features: the number of outputs m.
      rank: r, the number of features between V and U.
      alpha: the scale of the adaptation is alpha / r; at alpha = r it is 1.
      bias: whether there is a b.

    Returns:
      A layer with params `LowRankLinearParams(W: (m, d), b: (m,) or None, U: (m, r), V: (r, d))`, x `(..., d)` and
      y `(..., m)`. W and b have the cotangent None. At the start W and V are drawn uniformly with variance 1/d, U
      and b are 0; a trained layer's W and b are put in with `params._replace(W=..., b=...)`.

    Raises:
      ValueError: `features` or `rank` is not a positive integer; `alpha` is not finite; the factors do not
        fit W; x does not have d features in its last axis.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "low_rank_linear"
    require_flags(who, bias=bias)
    features = require_size(who, "features", features)
    rank = require_size(who, "rank", rank)
    alpha = require_finite(who, "alpha", alpha)
    s = alpha / rank

    def init(key, x):
        d = x.shape[-1]
        of_W, of_V = jax.random.split(key)
        W = lecun_uniform(of_W, (features, d), d, x.dtype)
        b = jnp.zeros((features,), x.dtype) if bias else None
        U = jnp.zeros((features, rank), x.dtype)
        return LowRankLinearParams(W, b, U, lecun_uniform(of_V, (rank, d), d, x.dtype))

    def forward(params, A: Float[Array, "... d>0"]):
        W, b, U, V = _frozen(params)
        H = times_transposed(A, V)
        Z = times_transposed(A, W) + s * times_transposed(H, widen(U))
        return cast(plus(Z, b), A.dtype), RowsCache(A)

    def backward(params, cache, dZ):
        A = cache.A
        W, _, U, V = _frozen(params)
        H = times_transposed(A, V)
        G = times(dZ, U)
        dU = s * transposed_times(widen(dZ), H)
        dV = s * transposed_times(G, widen(A))
        dA = times(dZ, W) + s * times(G, widen(V))
        dparams = params._replace(W=None, b=None, U=cast(dU, U.dtype), V=cast(dV, V.dtype))
        return dparams, cast(dA, dZ.dtype)

    return Layer(init, forward, backward, who, held=Held(("W", "b")), decoding=each_position)


def _frozen(params: LowRankLinearParams) -> LowRankLinearParams:
    """The parameters with W and b as constants, to whoever differentiates the backward once more as well."""
    return params._replace(W=lax.stop_gradient(params.W), b=lax.stop_gradient(params.b))


def reference(
    params: LowRankLinearParams, x: Array, features: int, rank: int = 8, alpha: float = 8.0, bias: bool = True
) -> Array:
    W, b = lax.stop_gradient((params.W, params.b))
    H = naive_affine(params.V, None, x)
    return naive_affine(W, b, x) + (alpha / rank) * naive_affine(params.U, None, H)


_NOT_EMPTY = ("d", "m", "r")
_HYPER = {"features": Size("m"), "rank": Size("r")}

RULE = Rule(
    "low_rank_linear",
    low_rank_linear,
    reference,
    cases=(
        Case("bias", Real("N d"), _HYPER | {"alpha": Interval(0.5, 32.0, 16.0)}, _NOT_EMPTY),
        Case(
            "sequence, no bias",
            Real("B T d"),
            _HYPER | {"bias": False},
            _NOT_EMPTY,
            timed={"B": 8, "T": 64, "d": 256, "m": 256, "r": 16},
        ),
        Case("one example", Real("d"), _HYPER, _NOT_EMPTY),
    ),
    cite="arXiv:2106.09685, equation 3",
    covers=("lora", "low-rank adaptation"),
)
