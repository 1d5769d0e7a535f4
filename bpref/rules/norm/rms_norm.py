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

A scale that is stored less 1 (zero-centred: Gemma, Qwen3-Next), w with gamma = 1 + w, has delta gamma = delta w, and
so dw = dgamma: nothing but what y and g are made of changes, and weight decay pulls gamma to 1. A scale for each head
has gamma_nk of shape (N, d) for x of shape (..., N, d), and the sum is over all axes before those two.

Layer norm's backward without the path through the mean. In code xhat r stands as x r^2: then dx is made of x and of
numbers for each example, and nothing of x's size is written in between.

Cached: x, and 1 / r, one number for each example. xhat is one division away, and in half precision would be rounded.

Numerical care: xhat is x divided by 1 / r, one rounding less than x times r. The squares are summed in float32 at
least, where they overflow beyond 1e19. dx does not suppose that mean(xhat^2) = 1, which is wrong by r^2 eps: at x = 0
it is g / sqrt(eps), as it should be. 1 + w is added in float32 at least, where w of half precision keeps all its bits.
"""

from typing import NamedTuple

from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.norm.standardize import (
    init_scale,
    pull_divided_by_rms,
    pull_scale_and_shift,
    root_mean_square,
    scale_and_shift,
)
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as


class RmsNormParams(NamedTuple):
    scale: Float[Array, " d"] | Float[Array, "N d"] | None


class RmsNormCache(NamedTuple):
    x: Float[Array, "... d"]
    rms: Float[Array, "... 1"]


def rms_norm(
    eps: float = 1e-6, scale: bool = True, zero_centred: bool = False, per_head: bool = False
) -> Layer[RmsNormParams, Array, Reals, RmsNormCache]:
    """y = gamma x / sqrt(mean(x^2) + eps), the mean over the last axis.

    Args:
      eps: what is added to the mean square, in units of x squared.
      scale: whether there is a gamma.
      zero_centred: whether the scale is stored as w with gamma = 1 + w, as in Gemma.
      per_head: whether each head, of the last axis but one, has a gamma of its own.

    Returns:
      A layer with params `RmsNormParams(scale: (d,), of each head (N, d), or None)`, ones at first, or zeros where it
      is zero-centred, x `(..., d)`, of heads `(..., N, d)`, and y of x's shape.

    Raises:
      ValueError: eps is not positive; x has no features, or another number of them than scale; it has no heads.
      TypeError: x is not floating-point, or not of scale's dtype.
    """
    who = "rms_norm"
    require_flags(who, scale=scale, zero_centred=zero_centred, per_head=per_head)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        return RmsNormParams(init_scale(who, x, zero_centred, per_head) if scale else None)

    def forward(params, x: Float[Array, "... d>0"]):
        wide = widen(x)
        rms = root_mean_square(wide, (x.ndim - 1,), eps)
        y = scale_and_shift(wide / rms, params.scale, None, zero_centred)
        return cast(y, x.dtype), RmsNormCache(x, rms)

    def backward(params, cache, dy):
        x, rms = cache
        wide = widen(x)
        g, dgamma, _ = pull_scale_and_shift(widen(dy), wide / rms, params.scale, None, zero_centred)
        dx = pull_divided_by_rms(g, wide, rms, (x.ndim - 1,))
        return RmsNormParams(dgamma), cast(dx, x.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


@called_as(rms_norm)
def reference(params: RmsNormParams, x: Array, eps, zero_centred, **_) -> Array:
    return naive_norm(x, params.scale, None, eps, zero_centred=zero_centred)


_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "rms_norm",
    rms_norm,
    reference,
    cases=(
        Case("scale", Real("N d"), {"eps": _EPS}, ("d",), timed={"N": 2048, "d": 512}),
        Case("sequence, no scale", Real("B T d"), {"eps": _EPS, "scale": False}, ("d",)),
        Case(
            "zero-centred, of each head", Real("T N d"), {"eps": _EPS, "zero_centred": True, "per_head": True}, ("d",)
        ),
    ),
    cite="arXiv:1910.07467, equation 4",
)
