"""learned_step_quantizer: rounding to multiples of a step that is learned itself.

Forward, with i over the elements, s > 0 the step, and levels -Q_n, ..., Q_p, which for b bits are -2^(b-1), ...,
2^(b-1) - 1, or without a sign 0, ..., 2^b - 1:

    u_i = x_i / s
    q_i = the whole number nearest to min(max(u_i, -Q_n), Q_p), a half to the even one
    y_i = s q_i                                                           x, y: one shape, s: ()

Differential: q takes steps, and its derivative is 0 almost everywhere. By decision (straight-through) it is that of the
clipped u: delta q_i = [-Q_n < u_i < Q_p] (delta x_i - u_i delta s) / s. With it

    delta y_i = q_i delta s + s delta q_i = c_i delta s + [-Q_n < u_i < Q_p] delta x_i
    c_i       = q_i - u_i where -Q_n < u_i < Q_p,  q_i beyond (which is -Q_n or Q_p)

and the factor of each perturbation is

    dx_i = dy_i [-Q_n < u_i < Q_p]                                        x's shape
    ds   = g sum_i dy_i c_i,   g = 1 / sqrt(K Q_p)                        ()

The paper's g makes the step learn as fast, relative to its size, as the K numbers that it quantises: all elements of x,
or with E leading axes of examples all of one example. q and c are constants to a second derivative, as the estimator
has it.

Cached: x alone. s is a parameter, and u and q are cheap to compute again.

Numerical care: half precision is divided, rounded and summed in float32. At u = -Q_n and u = Q_p the cotangent of x is
0. c cancels where u is nearly whole, by as much as u was rounded: that is the true size of its error.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import is_integer, plain, require_count, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import InputCache
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Real, Rule
from bpref.tangents import by_decision


class LearnedStepQuantizerParams(NamedTuple):
    s: Float[Array, ""]


def learned_step_quantizer(
    bits: int = 8, signed: bool = True, example_axes: int = 0
) -> Layer[LearnedStepQuantizerParams, Array, Reals, InputCache]:
    """y = s round(clip(x / s)), s learned (LSQ).

    Args:
      bits: b, which makes 2^b levels.
      signed: whether half of them are below 0, as weights need; without, x below 0 becomes 0.
      example_axes: how many leading axes of x are examples: 0 for weights, 1 for activations (N, ...).

    Returns:
      A layer with params `LearnedStepQuantizerParams(s: ())`, x of any shape, and y of x's shape. `init` sets s to
      2 <|x|> / sqrt(Q_p), with <|x|> that of normal numbers where it is given a shape alone. s has to stay positive:
      at 0 everything is NaN.

    Raises:
      ValueError: `bits` leaves no level above 0; x has fewer axes than those of examples; s is no scalar.
      TypeError: x is not floating-point, or not of s's dtype.
    """
    who = "learned_step_quantizer"
    require_flags(who, signed=signed)
    least_bits = 2 if signed else 1
    if not is_integer(bits) or bits < least_bits:
        raise ValueError(f"{who}: bits is {bits!r}, expected an integer of at least {least_bits}")
    bits = plain(bits)
    example_axes = require_count(who, "example_axes", example_axes)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def init(key, x):
        has_values = isinstance(x, Array) and x.size
        size = jnp.mean(abs(widen(x))) if has_values else jnp.asarray(math.sqrt(2 / math.pi))
        return LearnedStepQuantizerParams(cast(2 * size / math.sqrt(high), x.dtype))

    def forward(params, x: Float[Array, "..."]):
        if x.ndim < example_axes:
            raise ValueError(f"{who}: x has shape {x.shape}, expected at least {example_axes} axes, of examples")
        y = by_decision(quantized, estimated)(widen(params.s), widen(x))
        return cast(y, x.dtype), InputCache(x)

    def backward(params, cache, dy):
        s, z, v = widen(params.s), widen(cache.x), widen(dy)
        u = z / _spread(s, z)
        inside = (low < u) & (u < high)
        q = jnp.clip(jnp.round(u), low, high)
        c = lax.stop_gradient(jnp.where(inside, q - u, q))
        ds = scale(z) * jnp.sum(v * c)
        return LearnedStepQuantizerParams(cast(ds, params.s.dtype)), jnp.where(inside, dy, 0)

    def quantized(s, z):
        s = _spread(s, z)
        return s * jnp.round(jnp.clip(z / s, low, high))

    def estimated(s, z):
        """The same number, with q's steps constant, and s as slow as g has it."""
        fixed = lax.stop_gradient(s)
        s = _spread(fixed + scale(z) * (s - fixed), z)
        u = jnp.clip(z / s, low, high)
        return s * (u + lax.stop_gradient(jnp.round(u) - u))

    def scale(x):
        return 1 / math.sqrt(max(math.prod(x.shape[example_axes:]), 1) * high)

    return Layer(init, forward, backward, who, decoding=each_position)


def _spread(s: Array, x: Array) -> Array:
    return jnp.broadcast_to(s, x.shape)


def reference(
    params: LearnedStepQuantizerParams, x: Array, bits: int = 8, signed: bool = True, example_axes: int = 0
) -> Array:
    """A function, linear in s and x, that has q s for its value and the paper's equations 3 and 5 for its slopes."""
    Q_n, Q_p = (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    g = 1 / math.sqrt(max(math.prod(x.shape[example_axes:]), 1) * Q_p)
    s = params.s * g + lax.stop_gradient(params.s - params.s * g)
    u = x / jnp.broadcast_to(params.s, x.shape)
    of_s = jnp.where(u <= -Q_n, -Q_n, jnp.where(u >= Q_p, Q_p, jnp.rint(u) - u))
    of_x = (-Q_n < u) & (u < Q_p)
    return lax.stop_gradient(of_s) * jnp.broadcast_to(s, x.shape) + jnp.where(of_x, x, 0)


_STEP = LearnedStepQuantizerParams._make([Real("", 0.3, 0.9)])

RULE = Rule(
    "learned_step_quantizer",
    learned_step_quantizer,
    reference,
    cases=(
        Case("weights", Real("m d"), {"bits": 3}, params=_STEP, timed={"m": 512, "d": 2048}),
        Case(
            "activations, no sign",
            Real("N d", -1.0, 4.0),
            {"bits": 2, "signed": False, "example_axes": 1},
            params=_STEP,
        ),
    ),
    cite="arXiv:1902.08153, equations 1 to 5 and section 2.2",
    covers=("lsq",),
)
