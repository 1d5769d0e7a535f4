"""mxfp8_linear: an affine map of numbers in 8 bits, each 32 along a product's sum by a power of 2 of their own.

Forward, with examples as rows, A of shape (..., d), W of shape (m, d), and Q_x the rounding of each block of 32 along
the axis x, the last of fewer, to the nearest numbers of e4m3 (3 bits behind the point, up to 448) times s (MXFP8):

    s = 2^(floor(log2(max |block|)) - 8),   Q_d(A) = s e4m3(A / s)        s: (..., d / 32)
    Z = Q_d(A) Q_d(W)^T + b                                               (..., m)

2^8 is the largest power of 2 in e4m3; what is beyond 448 s, less than 512 s, is 448 s, as the specification has it.

Differential: Q takes steps, and its derivative is 0 almost everywhere. By decision (straight-through) it is that of the
identity, and s a constant. A unit that multiplies blocks has them along what is summed over. That is d in Z alone: the
adjoint of delta A W^T sums over m, that of A delta W^T over the N examples, all axes but the last as one. By decision,
too, each factor is rounded along what its adjoint sums over:

    delta Z = delta A Q_m(W)^T + Q_N(A) delta W^T + delta b

The factors of delta W, delta b and delta A in sum dZ delta Z, summed over the examples:

    dW = dZ^T Q_N(A)                                                      (m, d)
    db = sum dZ                                                           (m,)
    dA = dZ Q_m(W)                                                        (..., d)

With `cotangent`, dW has Q'_N(dZ) in the place of dZ and dA has Q'_m(dZ), of blocks likewise, and of e5m2 (2 bits
behind the point, up to 57344), whose reach is what cotangents need. It is an estimate then, not linear in dZ, and the
adjoint of no map: the laws are tried without it.

Cached: A. Its 8 bits along d are of no use to dW, whose are along N.

Numerical care: a power of 2 rounds nothing, neither at A / s nor on the way back, so that products are those of the
numbers in 8 bits, exact and summed in float32 at least. db is summed of dZ as it is. s is no smaller than 2^-126, where
the format has 2^-127, which processors make zero of; a block of zeros stays one.
"""

from math import prod

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed
from bpref.formulas.caches import RowsCache
from bpref.formulas.formats import microscaled
from bpref.formulas.long_sums import transposed_times
from bpref.layer import Layer, Reals, each_position
from bpref.naive.formats import nearest_e4m3
from bpref.rule import Case, Real, Rule, Size, called_as
from bpref.rules.quantization.fp8_linear import BACKWARD, FORWARD, Fp8LinearParams
from bpref.tangents import by_decision


def mxfp8_linear(
    features: int, bias: bool = True, cotangent: bool = False
) -> Layer[Fp8LinearParams, Array, Reals, RowsCache]:
    """Z = Q_d(A) Q_d(W)^T + b, blocks of 32 rounded to 8 bits (e4m3) and a scale, with the backward at such numbers.

    Args:
      features: the number of outputs m.
      bias: whether there is a b.
      cotangent: whether the backward's products have dZ rounded to 8 bits, too (e5m2), as training in 8 bits does.

    Returns:
      A layer with params `Fp8LinearParams(W: (m, d), b: (m,) or None)`, x `(..., d)` and y `(..., m)`. W is drawn
      uniformly with variance 1 / d (LeCun), b is zero. Arrays keep their dtypes; their values are those of 8 bits.
      Examples of one block share a scale in dW, whose parts are no examples' own.

    Raises:
      ValueError: an argument is out of its range; x has no axis, or another d than W.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "mxfp8_linear"
    m = require_size(who, "features", features)
    require_flags(who, bias=bias, cotangent=cotangent)

    def init(key, x):
        W = lecun_uniform(key, (m, x.shape[-1]), max(x.shape[-1], 1), x.dtype)
        return Fp8LinearParams(W, jnp.zeros((m,), x.dtype) if bias else None)

    def forward(params, x: Float[Array, "*n d"]):
        W, b = params
        Z = jnp.reshape(_product(_examples(x), widen(W)), (*x.shape[:-1], W.shape[0]))
        return cast(plus(Z, b), x.dtype), RowsCache(x)

    def backward(params, cache, dZ):
        W, b = params

        def rounded(axis):
            return microscaled(_examples(dZ), axis, BACKWARD) if cotangent else _examples(dZ)

        dW = transposed_times(rounded(0), _rounded(_examples(cache.A), 0))
        dA = jnp.reshape(times(rounded(1), _rounded(widen(W), 0)), cache.A.shape)
        return Fp8LinearParams(cast(dW, W.dtype), bias_cotangent(dZ, b)), cast(dA, cache.A.dtype)

    return Layer(init, forward, backward, who, couples="the scales of blocks", decoding=each_position)


def _examples(v: Array) -> Array:
    """(..., d) -> (N, d)"""
    return jnp.reshape(widen(v), (prod(v.shape[:-1]), v.shape[-1]))


def _rounded(v: Array, axis: int) -> Array:
    return by_decision(lambda v: microscaled(v, axis, FORWARD), lambda v: v)(v)


def _decided(A: Array, W: Array) -> Array:
    """What has the differential delta A Q_m(W)^T + Q_N(A) delta W^T."""
    off = by_decision(lambda A: microscaled(A, 0, FORWARD) - A, jnp.zeros_like)
    return times_transposed(A, _rounded(W, 0)) + times_transposed(off(A), W)


_product = by_decision(lambda A, W: times_transposed(_rounded(A, 1), _rounded(W, 1)), _decided)


@called_as(mxfp8_linear)
def reference(params: Fp8LinearParams, x: Array, **_) -> Array:
    def blocks(v, axis):
        """Q, each block by itself: the largest power of 2 that its largest number has is made 256."""
        powers, done = jnp.asarray(2.0 ** np.arange(-118, 128), v.dtype), [v[:0] if axis == 0 else v[:, :0]]
        for start in range(0, v.shape[axis], 32):
            block = lax.slice_in_dim(v, start, min(start + 32, v.shape[axis]), axis=axis)
            most = jnp.max(jnp.abs(block), axis, keepdims=True)
            s = powers[jnp.maximum(jnp.searchsorted(powers, most, side="right") - 1, 0)] / 256
            s = jnp.broadcast_to(s, block.shape)
            done.append(s * nearest_e4m3(block / s))
        return lax.stop_gradient(jnp.concatenate(done, axis))

    def of_no_value(v):
        return v - lax.stop_gradient(v)

    wide = wide_dtype(x.dtype)
    A, W = x.reshape(prod(x.shape[:-1]), x.shape[-1]).astype(wide), params.W.astype(wide)
    Z = blocks(A, 1) @ blocks(W, 1).T
    differential = A @ (W + lax.stop_gradient(blocks(W, 0) - W)).T + lax.stop_gradient(blocks(A, 0) - A) @ W.T
    Z = Z + of_no_value(differential)
    Z = Z.reshape(*x.shape[:-1], Z.shape[-1])
    if params.b is not None:
        Z = Z + jnp.broadcast_to(params.b.astype(wide), Z.shape)
    return Z.astype(x.dtype)


RULE = Rule(
    "mxfp8_linear",
    mxfp8_linear,
    reference,
    cases=(
        Case(
            "",
            Real("N d"),
            {"features": Size("m")},
            fixed={"N": 34, "d": 40, "m": 36},
            timed={"N": 256, "d": 512, "m": 512},
        ),
        Case("sequences, no b", Real("B T d", -900.0, 900.0), {"features": 3, "bias": False}),
    ),
    cite="Open Compute Project, 'Microscaling formats (MX) specification', version 1.0, section 6.3 (number not "
    "checked); Rouhani et al., 'Microscaling data formats for deep learning', arXiv:2310.10537; straight-through: "
    "arXiv:1308.3432",
    covers=("mxfp8", "microscaling", "mx formats", "e8m0"),
)
