"""layer_scale: y = gamma x, a learned factor for each feature, small at first, of what a block adds to its stream.

Forward, with k a feature and n an example, beta only where there is a shift:

    y_nk = gamma_k x_nk + beta_k                                          (..., d)

Differential:

    delta y_nk = x_nk delta gamma_k + gamma_k delta x_nk + delta beta_k

gamma and beta act on every example, so that their cotangents are sums over them. The factor of each perturbation:

    dx_nk    = gamma_k dy_nk                                              (..., d)
    dgamma_k = sum_n dy_nk x_nk                                           (d,)
    dbeta_k  = sum_n dy_nk                                                (d,)

Cached: x, for dgamma; neither y nor gamma, which is a parameter.

Numerical care: half precision is multiplied and summed in float32, and rounded once. There is no kink.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.norm.standardize import pull_scale_and_shift, scale_and_shift
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Real, Rule


class LayerScaleParams(NamedTuple):
    scale: Float[Array, " d"]
    shift: Float[Array, " d"] | None


class LayerScaleCache(NamedTuple):
    x: Float[Array, "... d"]


def layer_scale(initial: float = 1e-5, shift: bool = False) -> Layer[LayerScaleParams, Array, Reals, LayerScaleCache]:
    """y = gamma x, or gamma x + beta.

    Args:
      initial: what each gamma is at first: near 0, so that a deep network of residual blocks begins as the identity.
      shift: whether there is a beta, 0 at first.

    Returns:
      A layer with params `LayerScaleParams(scale: (d,), shift: (d,) or None)`, x `(..., d)` and y `(..., d)`.

    Raises:
      ValueError: initial is not finite; x has no features, or another number of them than scale and shift.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "layer_scale"
    initial = require_finite(who, "initial", initial)
    require_flags(who, shift=shift)

    def init(key, x):
        d = x.shape[-1]
        return LayerScaleParams(jnp.full(d, initial, x.dtype), jnp.zeros(d, x.dtype) if shift else None)

    def forward(params, x: Float[Array, "... d>0"]):
        return cast(scale_and_shift(widen(x), params.scale, params.shift), x.dtype), LayerScaleCache(x)

    def backward(params, cache, dy):
        dx, dscale, dshift = pull_scale_and_shift(widen(dy), widen(cache.x), params.scale, params.shift)
        assert dscale is not None
        return LayerScaleParams(dscale, dshift), cast(dx, dy.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


def reference(params: LayerScaleParams, x: Array, initial: float = 1e-5, shift: bool = False) -> Array:
    y = jnp.einsum("...k,k->...k", x, params.scale)
    return y if params.shift is None else y + jnp.broadcast_to(params.shift, y.shape)


RULE = Rule(
    "layer_scale",
    layer_scale,
    reference,
    cases=(
        Case("features", Real("N d"), never_empty=("d",), timed={"N": 2048, "d": 256}),
        Case("sequence, scale and shift", Real("B T d"), {"initial": 1.0, "shift": True}, ("d",)),
    ),
    cite="Touvron et al., 'Going deeper with Image Transformers', arXiv:2103.17239, equation 4 (number not checked)",
    covers=("LayerScale", "elementwise_affine"),
)
