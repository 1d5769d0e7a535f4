"""adaptive_norm: a norm whose scale and shift come from a condition, the same for a whole sequence: adaLN.

Forward, with the means over the d features of the last axis, mu = 0 for the RMS norm, b a sequence and t a position:

    r_bt   = 1 / sqrt(mean_k (x_btk - mu_bt)^2 + eps)                     (*b, T, 1)
    xhat   = (x - mu) r                                                   (*b, T, d)
    y_btk  = (1 + s_bk) xhat_btk + c_bk                                   (*b, T, d)      s, c: (*b, d)

s and c are outputs of a layer on the condition (a time step, a class), which begins at zero: then y is the plain norm.

Differential: that of xhat as in `layer_norm` and `rms_norm`, and

    delta y_btk = (1 + s_bk) delta xhat_btk + xhat_btk delta s_bk + delta c_bk

s and c act at all positions of their sequence, so that their cotangents are sums over them. With g = (1 + s) dy:

    dx_btk = r_bt (g_btk - mean_j g_btj - xhat_btk mean_j g_btj xhat_btj)   (*b, T, d)
    ds_bk  = sum_t dy_btk xhat_btk                                        (*b, d)
    dc_bk  = sum_t dy_btk                                                 (*b, d)

The RMS norm's dx has no mean of g, since nothing was taken off x.

Cached: x, two numbers for each position (one for the RMS norm), and s. Neither c nor xhat.

Numerical care: that of the norms; 1 + s is added in float32 at least, and sums over T are made there.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.long_sums import sum_over
from bpref.formulas.norm.pre_norm import Statistics, pull_row, require_norm, standardized, statistics
from bpref.layer import Layer, Reals, no_params
from bpref.naive.dense import naive_norm
from bpref.rule import Case, Interval, Real, Rule, called_as


class Modulated(NamedTuple):
    x: Float[Array, "*b T d>0"]
    scale: Float[Array, "*b d"]
    shift: Float[Array, "*b d"]


class AdaptiveNormCache(NamedTuple):
    x: Float[Array, "*b T d"]
    of_x: Statistics
    scale: Float[Array, "*b d"]


def adaptive_norm(
    norm: str = "layer", eps: float = 1e-6
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, AdaptiveNormCache]:
    """y = norm(x) (1 + scale) + shift, scale and shift of a condition, the same at all positions of a sequence.

    Args:
      norm: "layer" or "rms"; neither has parameters of its own.
      eps: what is added to the variance or mean square, in units of x squared.

    Returns:
      A layer with params `()`, x `(x: (*b, T, d), scale: (*b, d), shift: (*b, d))` and y `(*b, T, d)`.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit; x has no features.
      TypeError: x is no tuple of three; one of its arrays is not floating-point, or not of the first's dtype.
    """
    who = "adaptive_norm"
    require_norm(who, norm)
    eps = require_positive(who, "eps", eps)

    def forward(params, x: Modulated):
        v, scale, shift = x
        of_x = statistics(norm, v, eps)
        y = standardized(v, of_x) * (1 + _everywhere(scale)) + _everywhere(shift)
        return cast(y, v.dtype), AdaptiveNormCache(v, of_x, scale)

    def backward(params, cache, dy):
        x, of_x, scale = cache
        xhat, wide, positions = standardized(x, of_x), widen(dy), (dy.ndim - 2,)
        dx = pull_row(wide * (1 + _everywhere(scale)), xhat, of_x)
        dscale, dshift = sum_over(wide * xhat, positions), sum_over(wide, positions)
        return (), tuple(cast(d, x.dtype) for d in (dx, dscale, dshift))

    return Layer(no_params, forward, backward, who)


def _everywhere(v: Array) -> Array:
    """(*b, d) as (*b, 1, d), in at least float32."""
    return jnp.expand_dims(widen(v), -2)


@called_as(adaptive_norm)
def reference(params: tuple[()], x: tuple[Array, Array, Array], norm, eps) -> Array:
    v, scale, shift = x
    y = naive_norm(v, None, None, eps, norm) * (1 + jnp.broadcast_to(scale[..., None, :], v.shape))
    return y + jnp.broadcast_to(shift[..., None, :], v.shape)


_EPS = Interval(1e-6, 0.1, 1e-6)
_X = (Real("B T d"), Real("B d"), Real("B d"))

RULE = Rule(
    "adaptive_norm",
    adaptive_norm,
    reference,
    cases=(
        Case("layer", _X, {"eps": _EPS}, ("d",), timed={"B": 8, "T": 256, "d": 512}),
        Case("rms", _X, {"norm": "rms", "eps": _EPS}, ("d",)),
    ),
    cite="arXiv:2212.09748, section 3.2 (adaptive layer norm)",
    covers=("adaln", "adaptive layer norm", "modulate"),
)
