"""vector_norm: the p-norm over some axes, for any p.

Forward, with i over the reduced axes, and x with them left out the shape of y:

    p = 1:           y = sum_i |x_i|
    p = 2:           y = sqrt(sum_i x_i^2)
    p = inf:         y = m = max_i |x_i|
    p > 0, others:   y = m (sum_i (|x_i| / m)^p)^(1/p)                    m as above
    p < 0:           the same with m = min_i |x_i|;  p = -inf:  y = m;  where an x_i is 0, y = 0
    p = 0:           y = the number of x_i that are not 0

Below 1 these are no norms: the triangle inequality fails.

Differential, of the p-th power of the last, p y^(p-1) delta y = sum_i p |x_i|^(p-1) sign(x_i) delta x_i:

    finite p:        dx_i = dy sign(x_i) (|x_i| / y)^(p-1)                x's shape
    p = 1, p = 2:    dx_i = dy sign(x_i),      dx_i = dy x_i / y
    p = +-inf:       dx_i = dy sign(x_i) M_i / c
    p = 0:           dx_i = 0

with M_i = 1 where |x_i| = y and 0 elsewhere, c = sum_i M_i. m is a factor that cancels, and is held constant.

Kinks: at x = 0 no norm has a derivative; the subgradient 0 is taken (`jax.numpy.linalg.norm` gives NaN for p = 2). For
p = 1, and below, each x_i = 0 has sign 0 (`jax.numpy.abs` takes 1 there), although below 1 the slope is infinite. For
infinite p, values that are equally large share the gradient equally, as in `reduce_max`.

Cached: x and y, which is as small as the result; for p = 1 and infinite p sign(x_i) and sign(x_i) M_i, in one byte
each.

Numerical care: powers other than squares are of |x| / m, and are at most 1. Squares are not divided by m first, which
would be one more pass over x for those who need it least: beyond 1e19 they overflow in float32, and below 1e-19 they
lose their digits. Half precision is computed and summed in float32. A NaN makes y NaN, and all dx with it; for p = 1,
where no slope depends on another value, its own alone, and for p = 0 it is counted. The byte that keeps a sign has a
value for that.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int8

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.loss.signs import as_byte, from_byte
from bpref.formulas.norm.p_norms import or_one, p_length, p_slope, require_p
from bpref.formulas.norm.reduced import Axis, numbered, require_axes, require_values, restored, without
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule


class VectorNormCache(NamedTuple):
    x: Float[Array, "..."] | None
    y: Float[Array, "..."] | None
    sign: Int8[Array, "..."] | None


def vector_norm(
    p: float = 2, axis: Axis = None, keepdims: bool = False
) -> Layer[tuple[()], Array, Reals, VectorNormCache]:
    """y = (sum of |x|^p over some axes)^(1/p), the largest |x| for p = inf, the smallest for -inf, how many for 0.

    Args:
      p: a number, `math.inf` or `-math.inf`.
      axis: one axis, several, or None for all of them, as one long vector.
      keepdims: whether y keeps the reduced axes, with size 1.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. Where y is 0, dx is 0. The
      norm of nothing is 0.

    Raises:
      ValueError: p is no number, or NaN; x has no such axis, or an axis is named twice; p is below 0, and there is
        nothing along the axes.
      TypeError: x is not floating-point.
    """
    who = "vector_norm"
    require_flags(who, keepdims=keepdims)
    p = require_p(who, p)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        if p < 0:
            require_values(who, x, axes)
        wide = widen(x)
        y = p_length(wide, p, axes)
        if p in (0, 1):
            cache = VectorNormCache(None, None, as_byte(wide if p else 0 * jnp.sign(wide)))
        elif math.isinf(p):
            largest = jnp.where(jnp.abs(wide) == y, wide, jnp.where(jnp.isnan(y), y, 0))
            cache = VectorNormCache(None, None, as_byte(largest))
        else:
            cache = VectorNormCache(x, y, None)
        return cast(without(y, axes, keepdims), x.dtype), cache

    def backward(params, cache, dy):
        wide = widen(dy)
        if cache.sign is not None:
            axes = numbered(axis, cache.sign.ndim)
            slope = restored(wide, axes, keepdims)
            sign = from_byte(cache.sign, 1, wide.dtype)
            if math.isinf(p):
                slope = slope / or_one(jnp.sum(jnp.abs(sign), axes, keepdims=True))
            return (), cast(jnp.where(sign == 0, 0, slope * sign), dy.dtype)
        x, y = widen(cache.x), cache.y
        slope = restored(wide, numbered(axis, x.ndim), keepdims)
        if p == 2:
            dx = jnp.where(y == 0, 0, slope / or_one(y)) * x
        else:
            slope = slope if p >= 1 else jnp.where(y == 0, 0, slope)
            dx = slope * p_slope(x, y, p, ())
        return (), cast(dx, dy.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: Array, p: float = 2, axis: Axis = None, keepdims: bool = False) -> Array:
    if p == math.inf:
        return jnp.max(jnp.abs(x), axis, keepdims=keepdims, initial=0)
    if p == -math.inf:
        return jnp.min(jnp.abs(x), axis, keepdims=keepdims)
    if p == 0:
        return jnp.sum(x != 0, axis, keepdims=keepdims).astype(x.dtype) + 0 * jnp.sum(x, axis, keepdims=keepdims)
    if p < 1:
        a = jnp.where(x == 0, 1, jnp.abs(x))
        total = jnp.sum(jnp.where(x == 0, 0 if p > 0 else jnp.inf, a**p), axis, keepdims=keepdims)
        return jnp.where(total == 0, 0, jnp.where(total == 0, 1, total) ** (1 / p))
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
        Case("p below 1", Real("N d"), {"p": Interval(0.25, 0.9, 0.5), "axis": -1}),
        Case("p below 0", Real("N d", 0.5, 4.0), {"p": Interval(-3.0, -0.5, -1.0), "axis": -1}, ("d",)),
        Case("p = -inf", Real("N d", points=(0.125, -0.125)), {"p": -math.inf, "axis": 1}, ("d",)),
    ),
    cite="Boyd and Vandenberghe, 'Convex optimization' (2004), section 2.2.2 and appendix A.1",
    covers=("norm",),
)
