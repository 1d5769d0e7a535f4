"""dynamic_tanh: y = gamma tanh(alpha x) + beta, a curve in the place of layer norm.

Forward, with alpha one number for the layer, k a feature and n an example:

    t_nk = tanh(alpha x_nk)                                               (..., d)
    y_nk = gamma_k t_nk + beta_k                                          (..., d)

Differential:

    delta y_nk = t_nk delta gamma_k + delta beta_k
                 + gamma_k (1 - t_nk^2) (alpha delta x_nk + x_nk delta alpha)

With h = gamma dy (1 - t^2), the cotangent of alpha x, the factor of each perturbation is

    dx_nk    = alpha h_nk                                                 (..., d)
    dalpha   = sum_nk h_nk x_nk                                           ()
    dgamma_k = sum_n dy_nk t_nk                                           (d,)
    dbeta_k  = sum_n dy_nk                                                (d,)

Cached: x alone. t is made again: dalpha needs x itself, which is not to be had from t where the curve is flat.

Numerical care: 1 - t^2 is computed as (1 - t)(1 + t), where squaring first would cancel. Half precision is widened to
float32, and the sums are taken there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.long_sums import sum_over
from bpref.formulas.norm.standardize import pull_scale_and_shift, scale_and_shift
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_scaled
from bpref.rule import Case, Real, Rule


class DynamicTanhParams(NamedTuple):
    alpha: Float[Array, ""]
    scale: Float[Array, " d"] | None
    shift: Float[Array, " d"] | None


class DynamicTanhCache(NamedTuple):
    x: Float[Array, "... d"]


def dynamic_tanh(alpha: float = 0.5, affine: bool = True) -> Layer[DynamicTanhParams, Array, Reals, DynamicTanhCache]:
    """y = gamma tanh(alpha x) + beta.

    Args:
      alpha: what the parameter alpha is at first.
      affine: whether there are gamma and beta.

    Returns:
      A layer with params `DynamicTanhParams(alpha: (), scale: (d,) or None, shift: (d,) or None)`, scale and shift 1
      and 0 at first, x `(..., d)` and y `(..., d)`.

    Raises:
      ValueError: alpha is not finite; x has no features, or another number of them than scale and shift.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "dynamic_tanh"
    require_flags(who, affine=affine)
    alpha = require_finite(who, "alpha", alpha)

    def init(key, x):
        d = x.shape[-1]
        vectors = (jnp.ones(d, x.dtype), jnp.zeros(d, x.dtype)) if affine else (None, None)
        return DynamicTanhParams(jnp.full((), alpha, x.dtype), *vectors)

    def curve(params, x):
        return jnp.tanh(lax.broadcast(widen(params.alpha), x.shape) * widen(x))

    def forward(params, x: Float[Array, "... d>0"]):
        y = scale_and_shift(curve(params, x), params.scale, params.shift)
        return cast(y, x.dtype), DynamicTanhCache(x)

    def backward(params, cache, dy):
        x = cache.x
        t = curve(params, x)
        dt, dscale, dshift = pull_scale_and_shift(widen(dy), t, params.scale, params.shift)
        h = dt * ((1 - t) * (1 + t))
        dalpha = sum_over(h * widen(x), tuple(range(x.ndim)))
        dx = lax.broadcast(widen(params.alpha), x.shape) * h
        return DynamicTanhParams(cast(dalpha, params.alpha.dtype), dscale, dshift), cast(dx, x.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


def reference(params: DynamicTanhParams, x: Array, alpha: float = 0.5, affine: bool = True) -> Array:
    return naive_scaled(jnp.tanh(params.alpha * x), params.scale, params.shift)


_ALPHA = Real("", 0.25, 1.0)

RULE = Rule(
    "dynamic_tanh",
    dynamic_tanh,
    reference,
    cases=(
        Case(
            "scale and shift",
            Real("N d", -3.0, 3.0, (0.0, 20.0, -20.0)),
            never_empty=("d",),
            params=DynamicTanhParams(_ALPHA, Real("d"), Real("d")),  # type: ignore[arg-type]
            timed={"N": 2048, "d": 256},
        ),
        Case(
            "sequence, alpha alone",
            Real("B T d"),
            {"affine": False},
            ("d",),
            DynamicTanhParams(_ALPHA, None, None),  # type: ignore[arg-type]
        ),
    ),
    cite="arXiv:2503.10622, equation 3",
)
