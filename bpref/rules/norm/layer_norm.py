"""layer_norm: each example brought to mean 0 and variance 1 over its features, then scaled and shifted.

Forward, with the means over the d features of the last axis, and n an example:

    mu_n = mean_k x_nk      var_n = mean_k (x_nk - mu_n)^2      r_n = 1 / sqrt(var_n + eps)       (..., 1)
    xhat_nk = (x_nk - mu_n) r_n                                                                   (..., d)
    y_nk = gamma_k xhat_nk + beta_k                                                               (..., d)

Differential: delta y = gamma delta xhat + xhat delta gamma + delta beta, and, since the deviations sum to 0,

    delta var_n   = 2 mean_k (x_nk - mu_n) delta x_nk         delta r_n = -r_n^2 mean_k xhat_nk delta x_nk
    delta xhat_nk = r_n (delta x_nk - mean_j delta x_nj - xhat_nk mean_j xhat_nj delta x_nj)

Three paths lead from x to xhat: directly, by the mean, by the variance. With g = gamma dy, the factor of each
perturbation is

    dx_nk    = r_n (g_nk - mean_j g_nj - xhat_nk mean_j g_nj xhat_nj)     (..., d)
    dgamma_k = sum_n dy_nk xhat_nk                                        (d,)
    dbeta_k  = sum_n dy_nk                                                (d,)

A scale that is stored less 1 (zero-centred), w with gamma = 1 + w, has delta gamma = delta w, and so dw = dgamma. A
scale and a shift for each head are of shape (N, d) for x of shape (..., N, d), and the sums over n are over all axes
before those two.

Cached: x, which the layer before has made anyway, and two numbers for each example, mu and r, so that the backward
sums nothing over the features that the forward has summed. xhat is one subtraction and one product away; to keep it
in half precision would round what x still has exactly.

Numerical care:
- The variance is the mean of squared deviations (two passes). E[x^2] - mu^2 cancels once mu is large.
- dx does not suppose that mean(xhat^2) = 1, which is wrong by eps / (var + eps): features that are nearly equal, where
  eps is all that r is made of, have the same relative precision as others. Where all are equal xhat is 0 and
  dx = (g - mean g) / sqrt(eps).
- Half precision is widened to float32 throughout, 1 + w added there, and rounded once.
"""

from typing import NamedTuple

from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.norm.standardize import (
    init_scale,
    moments,
    pull_scale_and_shift,
    pull_standardized,
    scale_and_shift,
)
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as


class LayerNormParams(NamedTuple):
    scale: Float[Array, " d"] | Float[Array, "N d"] | None
    shift: Float[Array, " d"] | Float[Array, "N d"] | None


class LayerNormCache(NamedTuple):
    x: Float[Array, "... d"]
    mean: Float[Array, "... 1"]
    rstd: Float[Array, "... 1"]


def layer_norm(
    eps: float = 1e-5, scale: bool = True, shift: bool = True, zero_centred: bool = False, per_head: bool = False
) -> Layer[LayerNormParams, Array, Reals, LayerNormCache]:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance over the last axis.

    Args:
      eps: what is added to the variance, in units of x squared.
      scale: whether there is a gamma.
      shift: whether there is a beta.
      zero_centred: whether the scale is stored as w with gamma = 1 + w.
      per_head: whether each head, of the last axis but one, has a gamma and a beta of its own, as in Command R+.

    Returns:
      A layer with params `LayerNormParams(scale: (d,), of each head (N, d), or None, shift: alike)`, ones and zeros at
      first, zeros alone where it is zero-centred, x `(..., d)`, of heads `(..., N, d)`, and y of x's shape.

    Raises:
      ValueError: eps is not positive; x has no features, or another number of them than scale and shift; no heads.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "layer_norm"
    require_flags(who, scale=scale, shift=shift, zero_centred=zero_centred, per_head=per_head)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        return LayerNormParams(
            init_scale(who, x, zero_centred, per_head) if scale else None,
            init_scale(who, x, True, per_head) if shift else None,
        )

    def forward(params, x: Float[Array, "... d>0"]):
        gamma, beta = params
        wide = widen(x)
        mean, var = moments(wide, (x.ndim - 1,))
        rstd = lax.rsqrt(var + eps)
        y = scale_and_shift((wide - mean) * rstd, gamma, beta, zero_centred)
        return cast(y, x.dtype), LayerNormCache(x, mean, rstd)

    def backward(params, cache, dy):
        x, mean, rstd = cache
        gamma, beta = params
        xhat = (widen(x) - mean) * rstd
        g, dgamma, dbeta = pull_scale_and_shift(widen(dy), xhat, gamma, beta, zero_centred)
        dx = pull_standardized(g, xhat, rstd, (x.ndim - 1,))
        return LayerNormParams(dgamma, dbeta), cast(dx, x.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


@called_as(layer_norm)
def reference(params: LayerNormParams, x: Array, eps, zero_centred, **_) -> Array:
    return naive_norm(x, *params, eps, "layer", zero_centred)


_EPS = Interval(1e-6, 0.1, 1e-5)

RULE = Rule(
    "layer_norm",
    layer_norm,
    reference,
    cases=(
        Case("sequence", Real("B T d"), {"eps": _EPS}, ("d",), timed={"B": 8, "T": 256, "d": 512}),
        Case("off centre, scale alone", Real("N d", 4.0, 12.0), {"eps": _EPS, "shift": False}, ("d",)),
        Case(
            "zero-centred, of each head", Real("T N d"), {"eps": _EPS, "zero_centred": True, "per_head": True}, ("d",)
        ),
        Case("neither", Real("N d"), {"eps": _EPS, "scale": False, "shift": False}, ("d",)),
    ),
    cite="arXiv:1607.06450, equations 3 and 4",
)
