"""add_norm: the residual stream and its norm: what is added to the stream, and what the next layer reads of it.

Forward, with the means over the d features of the last axis, mu = 0 and beta = 0 for the RMS norm, and n an example:

    h_n  = x_n + residual_n                                               (..., d)        the stream
    r_n  = 1 / sqrt(mean_k (h_nk - mu_n)^2 + eps)                         (..., 1)
    y_nk = gamma_k (h_nk - mu_n) r_n + beta_k                             (..., d)        its norm

Both y and h are put out: y goes into the next layer, h around it.

Differential: delta h = delta x + delta residual, and delta y of delta h as in `rms_norm` and `layer_norm`. h acts
twice, on y and as what it is, so that its cotangent is a sum of two, with f = gamma dy and dh what arrives of h itself:

    dh'_nk   = r_n (f_nk - mean_j f_nj - xhat_nk mean_j f_nj xhat_nj) + dh_nk       no mean of f for the RMS norm
    dx       = dresidual = dh'                                            (..., d)
    dgamma_k = sum_n dy_nk xhat_nk        dbeta_k = sum_n dy_nk           (d,)

Cached: h, which is an output anyway, and one number for each example, or two. Neither x nor the residual.

Numerical care: h is rounded to its dtype, as the stream that it is, and normed as it is rounded: what backward reads is
what forward normed. dh is added before dh' is rounded. That of the norms besides.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.norm.pre_norm import (
    NormParams,
    Statistics,
    init_norm,
    normalize,
    pull_normalize,
    require_norm,
    statistics,
)
from bpref.layer import Layer, Reals, each_position
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as


class Addends(NamedTuple):
    x: Float[Array, "*n d>0"]
    residual: Float[Array, "*n d"]


class AddNormCache(NamedTuple):
    h: Float[Array, "*n d"]
    of_h: Statistics


def add_norm(
    norm: str = "rms", eps: float = 1e-6, zero_centred: bool = False
) -> Layer[NormParams, tuple[Array, Array], tuple[Reals, Reals], AddNormCache]:
    """(norm(x + residual), x + residual).

    Args:
      norm: "rms" or "layer".
      eps: what is added to the mean square or variance, in units of x squared.
      zero_centred: whether the scale is stored as w with gamma = 1 + w, as in Gemma.

    Returns:
      A layer with params `NormParams(scale: (d,), shift: (d,) or None)`, which change nothing at first, x
      `(x, residual)`, both `(*n, d)`, and y `(y, h)` of their shape.

    Raises:
      ValueError: an argument is out of its range; x and residual are of different shapes, or have no features.
      TypeError: x is no pair; x or residual is not floating-point, or not of scale's dtype.
    """
    who = "add_norm"
    require_norm(who, norm)
    require_flags(who, zero_centred=zero_centred)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        return init_norm(norm, x[0].shape[-1], x[0].dtype, zero_centred)

    def forward(params, x: Addends):
        h = x[0] + x[1]
        of_h = statistics(norm, h, eps)
        return (normalize(params, h, of_h, zero_centred), h), AddNormCache(h, of_h)

    def backward(params, cache, dys):
        h, of_h = cache
        dy, dh = with_zeros(dys, (h, h))
        dparams, of_norm = pull_normalize(params, h, of_h, dy, zero_centred)
        dh = cast(of_norm + widen(dh), h.dtype)
        return dparams, (dh, dh)

    return Layer(init, forward, backward, who, decoding=each_position)


@called_as(add_norm)
def reference(params: NormParams, x: tuple[Array, Array], norm, eps, zero_centred) -> tuple[Array, Array]:
    h = jnp.add(*x)
    return naive_norm(h, *params, eps, norm, zero_centred), h


_X = (Real("B T d"), Real("B T d"))
_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "add_norm",
    add_norm,
    reference,
    cases=(
        Case("rms", _X, {"eps": _EPS}, ("d",), timed={"B": 4, "T": 512, "d": 512}),
        Case("layer, zero-centred", _X, {"norm": "layer", "eps": _EPS, "zero_centred": True}, ("d",)),
    ),
    cite="arXiv:1607.06450, equations 3 and 4; arXiv:1910.07467, equation 4; the stream: arXiv:1512.03385, equation 1",
    covers=("fused_add_rms_norm", "add & norm", "skip_layer_norm"),
)
