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
from bpref.formulas.norm.reduced import count, mean_of

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


def root_mean_square(x: Array, axes: Axes, eps: float) -> Array:
    """sqrt(mean(x^2) + eps) of at least float32 values, of size 1 along the axes."""
    return jnp.sqrt(mean_over(jnp.square(x), axes) + eps)


def pull_divided_by_rms(g: Array, x: Array, rms: Array, axes: Axes) -> Array:
    """dx of `xhat = x / rms`, from the cotangent `g` of xhat: r (g - xhat mean(g xhat)) with r = 1 / rms.

    xhat r stands as x r^2: dx is made of x and of numbers for each example, and nothing of x's size is written between.
    """
    r = 1 / rms
    return r * (g - x * (r * (r * mean_over(g * x, axes))))


def scale_and_shift(xhat: Array, scale: Array | None, shift: Array | None, zero_centred: bool = False) -> Array:
    """`scale xhat + shift`, a factor and a term for each entry of the last axes; None leaves one out.

    The factor is 1 + scale where that is `zero_centred`.
    """
    y = xhat if scale is None else xhat * gain(scale, xhat, zero_centred)
    return y if shift is None else y + on_last_axes(shift, xhat)


def pull_scale_and_shift(
    dy: Array, xhat: Array, scale: Array | None, shift: Array | None, zero_centred: bool = False
) -> tuple[Array, Array | None, Array | None]:
    """The cotangents of xhat, scale and shift: `scale dy`; `dy xhat` and `dy` summed over all axes before theirs."""
    dxhat = dy if scale is None else dy * gain(scale, dy, zero_centred)
    dscale = None if scale is None else cast(sum_over(dy * xhat, _before(scale, dy)), scale.dtype)
    dshift = None if shift is None else cast(sum_over(dy, _before(shift, dy)), shift.dtype)
    return dxhat, dscale, dshift


def init_scale(who: str, x: Array, zero_centred: bool, per_head: bool) -> Array:
    """A scale that changes nothing, of x's last axis or, for each head, its last two."""
    if per_head and len(x.shape) < 2:
        raise ValueError(f"{who}: x has shape {x.shape}, expected (..., N, d) with a scale for each of N heads")
    return (jnp.zeros if zero_centred else jnp.ones)(x.shape[-2 if per_head else -1 :], x.dtype)


def gain(scale: Array, like: Array, zero_centred: bool) -> Array:
    """What is multiplied by: scale, or 1 + scale, which is added in at least float32."""
    factor = on_last_axes(scale, like)
    return 1 + factor if zero_centred else factor


def on_last_axes(v: Array, like: Array) -> Array:
    """An array of `like`'s last axes in its rank and dtype, to be broadcast over all axes before."""
    return cast(lax.expand_dims(widen(v), _before(v, like)), like.dtype)


def _before(v: Array, like: Array) -> Axes:
    return tuple(range(like.ndim - v.ndim))
