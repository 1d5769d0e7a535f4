"""fp8_linear: an affine map of numbers in 8 bits, each array by its own power of 2.

Forward, with examples as rows, A of shape (..., d), W of shape (m, d), and Q the rounding to the nearest number of
e4m3 (3 bits behind the point, up to 448) times s, the least power of 2 for which nothing is beyond the largest:

    s_A = 2^ceil(log2(max |A| / 448)),   Q(A) = s_A e4m3(A / s_A)         s_A: ()      W likewise
    Z   = Q(A) Q(W)^T + b                                                 (..., m)

Differential: Q takes steps, and its derivative is 0 almost everywhere. By decision (straight-through) it is that of the
identity, and s a constant:

    delta Z = delta A Q(W)^T + Q(A) delta W^T + delta b

The factors of delta W, delta b and delta A in sum dZ delta Z, summed over the examples:

    dW = dZ^T Q(A)                                                        (m, d)
    db = sum dZ                                                           (m,)
    dA = dZ Q(W)                                                          (..., d)

With `cotangent`, both products have Q'(dZ) in the place of dZ, of e5m2 (2 bits behind the point, up to 57344), whose
reach is what cotangents need. It is an estimate then, not linear in dZ, and the adjoint of no map: the laws are tried
without it.

Cached: A. Its 8 bits would do for dW, but for whoever differentiates the backward once more.

Numerical care: a power of 2 rounds nothing, neither at A / s nor on the way back, so that products are those of the
numbers in 8 bits, exact and summed in float32 at least; units that take 8 bits find these by themselves. db is summed
of dZ as it is. An array of zeros has s = 1.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed
from bpref.formulas.caches import RowsCache
from bpref.formulas.formats import power_below, to_nearest
from bpref.formulas.long_sums import transposed_times
from bpref.layer import Layer, Reals
from bpref.naive.formats import nearest_e4m3
from bpref.rule import Case, Real, Rule, Size, called_as
from bpref.tangents import by_decision

FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2


class Fp8LinearParams(NamedTuple):
    W: Float[Array, "m d"]
    b: Float[Array, " m"] | None


def fp8_linear(
    features: int, bias: bool = True, cotangent: bool = False
) -> Layer[Fp8LinearParams, Array, Reals, RowsCache]:
    """Z = Q(A) Q(W)^T + b, both arrays rounded to 8 bits (e4m3), with the backward of A W^T + b at these.

    Args:
      features: the number of outputs m.
      bias: whether there is a b.
      cotangent: whether the backward's products have dZ rounded to 8 bits, too (e5m2), as training in 8 bits does.

    Returns:
      A layer with params `Fp8LinearParams(W: (m, d), b: (m,) or None)`, x `(..., d)` and y `(..., m)`. W is drawn
      uniformly with variance 1 / d (LeCun), b is zero. Arrays keep their dtypes; their values are those of 8 bits.
      One scale is all examples': what one comes to depends on which others stand beside it.

    Raises:
      ValueError: an argument is out of its range; x has no axis, or another d than W.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "fp8_linear"
    m = require_size(who, "features", features)
    require_flags(who, bias=bias, cotangent=cotangent)

    def init(key, x):
        W = lecun_uniform(key, (m, x.shape[-1]), max(x.shape[-1], 1), x.dtype)
        return Fp8LinearParams(W, jnp.zeros((m,), x.dtype) if bias else None)

    def forward(params, x: Float[Array, "*n d"]):
        W, b = params
        Z = plus(times_transposed(rounded(x), rounded(W)), b)
        return cast(Z, x.dtype), RowsCache(x)

    def backward(params, cache, dZ):
        W, b = params
        wide = in_8_bits(widen(dZ), BACKWARD) if cotangent else widen(dZ)
        dW = cast(transposed_times(wide, rounded(cache.A)), W.dtype)
        return Fp8LinearParams(dW, bias_cotangent(dZ, b)), cast(times(wide, rounded(W)), cache.A.dtype)

    def rounded(v):
        return by_decision(lambda v: in_8_bits(v, FORWARD), lambda v: v)(widen(v))

    return Layer(init, forward, backward, who, couples="the scale")


def in_8_bits(v: Array, dtype: type) -> Array:
    """Q(v)."""
    share = jnp.max(abs(v), initial=0) / float(jnp.finfo(dtype).max)
    power = power_below(share, -126, 127)
    s = jnp.where(share == 0, 1, jnp.where(power < share, 2 * power, power))
    s = jnp.broadcast_to(s, v.shape)
    return s * to_nearest(v / s, dtype)


@called_as(fp8_linear)
def reference(params: Fp8LinearParams, x: Array, **_) -> Array:
    powers = 2.0 ** np.arange(-126, 128)

    def rounded(v):
        scales = jnp.asarray(powers, v.dtype)
        most = jnp.max(jnp.abs(v), initial=0)
        s = jnp.where(most == 0, 1, scales[jnp.searchsorted(scales, most / 448)])
        s = jnp.broadcast_to(s, v.shape)
        q = s * nearest_e4m3(v / s)
        return lax.stop_gradient(q) + (v - lax.stop_gradient(v))

    wide = wide_dtype(x.dtype)
    A, W = rounded(x.astype(wide)), rounded(params.W.astype(wide))
    Z = jnp.einsum("...d,md->...m", A, W)
    if params.b is not None:
        Z = Z + jnp.broadcast_to(params.b.astype(wide), Z.shape)
    return Z.astype(x.dtype)


RULE = Rule(
    "fp8_linear",
    fp8_linear,
    reference,
    cases=(
        Case("", Real("N d"), {"features": Size("m")}, never_empty=("m",), timed={"N": 256, "d": 512, "m": 512}),
        Case("sequences, no b", Real("B T d", -900.0, 900.0), {"features": 3, "bias": False}),
    ),
    cite="Micikevicius et al., 'FP8 formats for deep learning', arXiv:2209.05433; straight-through: arXiv:1308.3432",
    covers=("float8", "e4m3", "e5m2"),
)
