"""rms_norm: each example divided by the root mean square of its features, then scaled.

Forward, with the mean over the d features of the last axis, and n an example:

    r_n = 1 / sqrt(mean_k x_nk^2 + eps)                                   (..., 1)
    xhat_nk = x_nk r_n                                                    (..., d)
    y_nk = gamma_k xhat_nk                                                (..., d)

Differential:

    delta r_n     = -1/2 r_n^3 2 mean_j x_nj delta x_nj = -r_n^2 mean_j xhat_nj delta x_nj
    delta xhat_nk = r_n (delta x_nk - xhat_nk mean_j xhat_nj delta x_nj)
    delta y_nk    = gamma_k delta xhat_nk + xhat_nk delta gamma_k

With g = gamma dy, the factor of each perturbation is

    dx_nk    = r_n (g_nk - xhat_nk mean_j g_nj xhat_nj)                   (..., d)
    dgamma_k = sum_n dy_nk xhat_nk                                        (d,)

Layer norm's backward without the path through the mean. In code xhat r stands as x r^2: then dx is made of x and of
numbers for each example, and nothing of x's size is written in between.

Cached: x, and 1 / r, one number for each example. xhat is one division away, and in half precision would be rounded.

Numerical care: xhat is x divided by 1 / r, one rounding less than x times r. The squares are summed in float32 at
least, where they overflow beyond 1e19. dx does not suppose that mean(xhat^2) = 1, which is wrong by r^2 eps: at x = 0
it is g / sqrt(eps), as it should be.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.standardize import mean_over, pull_scale_and_shift, scale_and_shift
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Interval, Real, Rule


class RmsNormParams(NamedTuple):
    scale: Float[Array, " d"] | None


class RmsNormCache(NamedTuple):
    x: Float[Array, "... d"]
    rms: Float[Array, "... 1"]


def rms_norm(eps: float = 1e-6, scale: bool = True) -> Layer[RmsNormParams, Array, Reals, RmsNormCache]:
    """y = gamma x / sqrt(mean(x^2) + eps), the mean over the last axis.

    Args:
      eps: what is added to the mean square, in units of x squared.
      scale: whether there is a gamma.

    Returns:
      A layer with params `RmsNormParams(scale: (d,) or None)`, ones at first, x `(..., d)` and y `(..., d)`.

    Raises:
      ValueError: eps is not positive; x has no features, or another number of them than scale.
      TypeError: x is not floating-point, or not of scale's dtype.
    """
    who = "rms_norm"
    require_flags(who, scale=scale)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        return RmsNormParams(jnp.ones(x.shape[-1], x.dtype) if scale else None)

    def forward(params, x: Float[Array, "... d>0"]):
        wide = widen(x)
        rms = jnp.sqrt(mean_over(jnp.square(wide), (x.ndim - 1,)) + eps)
        y = scale_and_shift(wide / rms, params.scale, None)
        return cast(y, x.dtype), RmsNormCache(x, rms)

    def backward(params, cache, dy):
        x, rms = cache
        wide = widen(x)
        g, dgamma, _ = pull_scale_and_shift(widen(dy), wide / rms, params.scale, None)
        r = 1 / rms
        dx = r * (g - wide * (r * (r * mean_over(g * wide, (x.ndim - 1,)))))
        return RmsNormParams(dgamma), cast(dx, x.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


def reference(params: RmsNormParams, x: Array, eps: float = 1e-6, scale: bool = True) -> Array:
    y = x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps)
    return y if params.scale is None else y * jnp.broadcast_to(params.scale, y.shape)


_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "rms_norm",
    rms_norm,
    reference,
    cases=(
        Case("scale", Real("N d"), {"eps": _EPS}, ("d",), timed={"N": 2048, "d": 512}),
        Case("sequence, no scale", Real("B T d"), {"eps": _EPS, "scale": False}, ("d",)),
    ),
    cite="arXiv:1910.07467, equation 4",
)
