"""What the norms share: x less its mean, divided by its standard deviation, over some axes; and the way back.

Forward, every mean over the n values of the reduced axes, and kept in size 1 along them:

    mu = mean(x),   var = mean((x - mu)^2),   rstd = 1 / sqrt(var + eps),   xhat = (x - mu) rstd

Differential. The deviations sum to 0, so delta mu drops out of delta var:

    delta var  = 2 mean((x - mu) delta x)
    delta rstd = -1/2 rstd^3 delta var = -rstd^2 mean(xhat delta x)
    delta xhat = rstd (delta x - mean(delta x)) - xhat rstd mean(xhat delta x)

With g the cotangent of xhat, exchange the sums to read off the adjoint:

    dx = rstd (g - mean(g) - xhat mean(g xhat))

mean(xhat^2) is taken for 1 nowhere: it is var / (var + eps), and the formula holds however small var is.
"""

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import cast, widen
from bpref.formulas.long_sums import sum_over
from bpref.formulas.reduced import count, mean_of

Axes = tuple[int, ...]


def mean_over(x: Array, axes: Axes) -> Array:
    """The mean of at least float32 values over `axes`, of size 1 along them."""
    return sum_over(x, axes, keepdims=True) / count(x.shape, axes)


def moments(x: Array, axes: Axes) -> tuple[Array, Array]:
    """Mean and variance in two passes: the squares of deviations are summed, which cannot cancel."""
    mean = mean_of(x, axes)
    return mean, mean_over(jnp.square(x - mean), axes)


def pull_standardized(g: Array, xhat: Array, rstd: Array, axes: Axes) -> Array:
    """dx of `xhat = (x - mean) rstd`, from the cotangent `g` of xhat."""
    return rstd * (g - mean_over(g, axes) - xhat * mean_over(g * xhat, axes))


def scale_and_shift(xhat: Array, scale: Array | None, shift: Array | None) -> Array:
    """`scale xhat + shift`, one factor and one term for each feature of the last axis; None leaves one out."""
    y = xhat if scale is None else xhat * on_last_axis(scale, xhat)
    return y if shift is None else y + on_last_axis(shift, xhat)


def pull_scale_and_shift(
    dy: Array, xhat: Array, scale: Array | None, shift: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """The cotangents of xhat, scale and shift: `scale dy`, and `dy xhat` and `dy` summed over all axes but the last."""
    examples = tuple(range(dy.ndim - 1))
    dxhat = dy if scale is None else dy * on_last_axis(scale, dy)
    dscale = None if scale is None else cast(sum_over(dy * xhat, examples), scale.dtype)
    dshift = None if shift is None else cast(sum_over(dy, examples), shift.dtype)
    return dxhat, dscale, dshift


def on_last_axis(v: Array, like: Array) -> Array:
    """A vector as an array of `like`'s rank and dtype, to be broadcast over all axes but the last."""
    return cast(lax.expand_dims(widen(v), range(like.ndim - 1)), like.dtype)
