"""vector_norm: the p-norm over some axes, for any p from 1 to infinity.

Forward, with i over the reduced axes, and x with them left out the shape of y:

    p = 1:           y = sum_i |x_i|
    p = 2:           y = sqrt(sum_i x_i^2)
    p = inf:         y = m = max_i |x_i|
    1 < p < inf:     y = m (sum_i (|x_i| / m)^p)^(1/p)                    m as above

Differential, of the p-th power of the last, p y^(p-1) delta y = sum_i p |x_i|^(p-1) sign(x_i) delta x_i:

    p < inf:         dx_i = dy sign(x_i) (|x_i| / y)^(p-1)                x's shape
    p = 1, p = 2:    dx_i = dy sign(x_i),      dx_i = dy x_i / y
    p = inf:         dx_i = dy sign(x_i) M_i / c

with M_i = 1 where |x_i| = y and 0 elsewhere, c = sum_i M_i. m is a factor that cancels, and is held constant.

Kinks: at x = 0 no norm has a derivative; the subgradient 0 is taken (`jax.numpy.linalg.norm` gives NaN for p = 2). For
p = 1, each x_i = 0 has sign 0 (`jax.numpy.abs` takes 1 there). For p = inf, values that are equally large share the
gradient equally, as in `reduce_max`.

Cached: x and y, which is as small as the result; for p = 1 and p = inf sign(x_i) and sign(x_i) M_i, in one byte each.

Numerical care: powers other than squares are of |x| / m, at most 1, and never overflow. Squares are not divided by m
first, which would be one more pass over x for those who need it least: beyond 1e19 they overflow in float32, and below
1e-19 they lose their digits. Half precision is computed and summed in float32. A NaN makes y NaN, and all dx with it;
for p = 1, where no slope depends on another value, its own alone. The byte that keeps a sign has a value for that.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int8

from bpref.checks.hyperparameters import is_number, plain, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.reduced import Axis, numbered, require_axes, restored, without
from bpref.formulas.signs import as_byte, from_byte
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule


class VectorNormCache(NamedTuple):
    x: Float[Array, "..."] | None
    y: Float[Array, "..."] | None
    sign: Int8[Array, "..."] | None


def vector_norm(
    p: float = 2, axis: Axis = None, keepdims: bool = False
) -> Layer[tuple[()], Array, Reals, VectorNormCache]:
    """y = (sum of |x|^p over some axes)^(1/p), or the largest |x| for p = inf.

    Args:
      p: a number of at least 1, or `math.inf`.
      axis: one axis, several, or None for all of them, as one long vector.
      keepdims: whether y keeps the reduced axes, with size 1.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. Where y is 0, dx is 0. The
      norm of nothing is 0.

    Raises:
      ValueError: p is less than 1; x has no such axis, or an axis is named twice.
      TypeError: x is not floating-point.
    """
    who = "vector_norm"
    require_flags(who, keepdims=keepdims)
    if not (is_number(p) and p >= 1):
        raise ValueError(f"{who}: p is {p!r}, expected a number of at least 1, or math.inf")
    p = plain(p)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        wide = widen(x)
        y = length(wide, axes)
        if p == 1:
            cache = VectorNormCache(None, None, as_byte(wide))
        elif p == math.inf:
            largest = jnp.where(jnp.abs(wide) == y, wide, jnp.where(jnp.isnan(y), y, 0))
            cache = VectorNormCache(None, None, as_byte(largest))
        else:
            cache = VectorNormCache(x, y, None)
        return cast(without(y, axes, keepdims), x.dtype), cache

    def length(x, axes):
        if p == 1:
            return jnp.sum(jnp.abs(x), axes, keepdims=True)
        if p == 2:
            squares = jnp.sum(jnp.square(x), axes, keepdims=True)
            return jnp.where(squares == 0, 0, jnp.sqrt(_or_one(squares)))
        m = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
        if p == math.inf:
            return m
        m = lax.stop_gradient(m)
        powers = jnp.sum(_power(jnp.abs(x) / _or_one(m), p), axes, keepdims=True)
        return m * _power(_or_one(powers), 1 / p)

    def backward(params, cache, dy):
        wide = widen(dy)
        if cache.sign is not None:
            axes = numbered(axis, cache.sign.ndim)
            slope = restored(wide, axes, keepdims)
            sign = from_byte(cache.sign, 1, wide.dtype)
            if p == math.inf:
                slope = slope / _or_one(jnp.sum(jnp.abs(sign), axes, keepdims=True))
            return (), cast(jnp.where(sign == 0, 0, slope * sign), dy.dtype)
        x, y = widen(cache.x), cache.y
        slope = restored(wide, numbered(axis, x.ndim), keepdims)
        if p == 2:
            dx = jnp.where(y == 0, 0, slope / _or_one(y)) * x
        else:
            dx = slope * jnp.sign(x) * _power(jnp.abs(x) / _or_one(y), p - 1)
        return (), cast(dx, dy.dtype)

    return Layer(no_params, forward, backward, who)


def _or_one(v: Array) -> Array:
    """1 in place of 0, to divide by."""
    return jnp.where(v == 0, 1, v)


def _power(v: Array, exponent: float) -> Array:
    whole = float(exponent).is_integer()
    return lax.integer_pow(v, int(exponent)) if whole else lax.pow(v, jnp.full_like(v, exponent))


def reference(params: tuple[()], x: Array, p: float = 2, axis: Axis = None, keepdims: bool = False) -> Array:
    if p == math.inf:
        return jnp.max(jnp.abs(x), axis, keepdims=keepdims, initial=0)
    total = jnp.sum(jnp.abs(x) ** p, axis, keepdims=keepdims)
    return jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / p))


RULE = Rule(
    "vector_norm",
    vector_norm,
    reference,
    cases=(
        Case("p = 2", Real("N d"), {"axis": -1}, timed={"N": 1024, "d": 2048}),
        Case("p = 1, kept", Real("N d T"), {"p": 1, "axis": (0, 2), "keepdims": True}),
        Case("p = inf", Real("N d", points=(4.0, -4.0)), {"p": math.inf, "axis": 1}),
        Case("any p", Real("N d"), {"p": Interval(1.5, 7.5, 3.0), "axis": -1}),
    ),
    cite="Boyd and Vandenberghe, 'Convex optimization' (2004), section 2.2.2 and appendix A.1",
    covers=("norm",),
)
