"""residual_convolution_block: y = x + conv(relu(norm(conv(relu(norm(x)))))), the residual block with pre-activation.

Forward, with x of shape (N, ..., C) and all spatial axes alike, P the group norm (of G groups, mean m and 1 / standard
deviation r of each group of each example), * a convolution with "same" padding and as many outputs as inputs, and
a = relu(n) = max(n, 0):

    n1 = gamma1 xhat + beta1,   xhat = (x - m1) r1         a1 = relu(n1)      (N, ..., C)
    u  = a1 * W1                                                              (N, ..., C)
    n2 = gamma2 uhat + beta2,   uhat = (u - m2) r2         a2 = relu(n2)      (N, ..., C)
    y  = x + a2 * W2                                                          (N, ..., C)

No nonlinearity stands on the way from x to y, so a stack of blocks has y_L = x_0 + the sum of what each adds.

Differential:

    delta y = delta x + delta a2 * W2 + a2 * delta W2          delta a2 = [n2 > 0] delta n2
    delta u = delta a1 * W1 + a1 * delta W1                    delta a1 = [n1 > 0] delta n1

and delta n as in group norm. With *^T the adjoint of the convolution in its input, and (x) in its window, read
backwards:

    da2 = dy *^T W2             dW2 = a2 (x) dy                                (N, ..., C), (C, *window, C)
    dn2 = [n2 > 0] da2          dgamma2 = sum dn2 uhat,   dbeta2 = sum dn2     (C,)
    du  = r2 (g - mean g - uhat mean(g uhat)),   g = gamma2 dn2                (N, ..., C)
    da1 = du *^T W1             dW1 = a1 (x) du
    dn1 = [n1 > 0] da1          dgamma1 = sum dn1 xhat,   dbeta1 = sum dn1
    dx  = dy + r1 (g - mean g - xhat mean(g xhat)),   g = gamma1 dn1           (N, ..., C)

Cached: x, u, and m and r of both norms, two numbers for each group of an example. a1 and a2, which the two dW need,
and n1 and n2, whose signs decide, are x and u shifted, scaled and cut: a few operations for each element, where u is a
whole convolution and cannot be had for less. Autodiff keeps the deviations, the normalised values, the masks and the
activations besides. y is not needed at all: the backward of a sum needs no values.

Numerical care: the moments in two passes, and everything between two convolutions in float32 at least; half precision
is rounded where a convolution reads. At n = 0 the derivative of relu is taken as 0, as `jax.nn.relu` does.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform
from bpref.formulas.correlate import Slide, correlate, correlate_dW, correlate_dx
from bpref.formulas.hyperparameters import require_positive, require_size
from bpref.formulas.standardize import moments, pull_scale_and_shift, pull_standardized, scale_and_shift
from bpref.formulas.windows import as_windows, place, require_elements, require_spatial
from bpref.layer import Layer
from bpref.rule import Case, Interval, Real, Rule

OVER_A_GROUP = (1, 3)
"""The axes of x as (N, S, G, C / G) that belong to one group of an example."""


class ResidualConvolutionBlockParams(NamedTuple):
    scale1: Float[Array, " C"]
    shift1: Float[Array, " C"]
    W1: Float[Array, "C *window C"]
    scale2: Float[Array, " C"]
    shift2: Float[Array, " C"]
    W2: Float[Array, "C *window C"]


class ResidualConvolutionBlockCache(NamedTuple):
    x: Float[Array, "N *sizes C"]
    mean1: Float[Array, "N 1 G 1"]
    rstd1: Float[Array, "N 1 G 1"]
    u: Float[Array, "N *sizes C"]
    mean2: Float[Array, "N 1 G 1"]
    rstd2: Float[Array, "N 1 G 1"]


def residual_convolution_block(groups: int = 32, window: tuple[int, ...] = (3, 3), eps: float = 1e-5) -> Layer:
    """y = x + conv(relu(norm(conv(relu(norm(x)))))), of group norms and "same" convolutions without a bias.

    Args:
      groups: the number of groups G of the norms, which divides the number of channels.
      window: the convolutions' window along each of 1 to 3 spatial axes.
      eps: what is added to the variances, in units of x squared.

    Returns:
      A layer with params `ResidualConvolutionBlockParams(scale1, shift1, W1, scale2, shift2, W2)`, scales and shifts
      `(C,)` and both W `(C, *window, C)`, x `(N, *sizes, C)` and y of x's shape. Scales are ones and shifts zeros
      at first, W are drawn uniformly with variance 1 over the number of their inputs.

    Raises:
      ValueError: groups is not a positive integer, or does not divide the channels; eps is not positive; the window
        is not of 1 to 3 positive integers; x has other axes than N, the window's and C, or none of its elements, or
        other channels than W.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "residual_convolution_block"
    windows = as_windows(who, window, 1, 1, "same")
    require_positive(who, "eps", eps)
    require_size(who, "groups", groups)

    def require_fit(x, W=None):
        require_spatial(who, x, windows.rank)
        require_elements(who, x)
        C = x.shape[-1]
        if C == 0 or C % groups:
            raise ValueError(f"{who}: x has {C} channels in its last axis, not a positive multiple of {groups} groups")
        if W is not None and W.shape[-1] != C:
            raise ValueError(f"{who}: x has {C} channels in its last axis, W1 expects {W.shape[-1]} (W1: {W.shape})")
        if W is not None and W.dtype != x.dtype:
            raise TypeError(f"{who}: x has dtype {x.dtype}, W1 has {W.dtype}; cast one to the other's")

    def grouped(v):
        """(N, S, G, C / G)"""
        return v.reshape(v.shape[0], math.prod(v.shape[1:-1]), groups, v.shape[-1] // groups)

    def moments_of(x):
        mean, var = moments(grouped(widen(x)), OVER_A_GROUP)
        return mean, lax.rsqrt(var + eps)

    def normalized(x, mean, rstd):
        return ((grouped(widen(x)) - mean) * rstd).reshape(x.shape)

    def activated(xhat, gamma, beta, dtype):
        return cast(jnp.maximum(scale_and_shift(xhat, gamma, beta), 0), dtype)

    def pull(da, a, xhat, rstd, gamma, beta):
        """The cotangents of what was normalised, in at least float32, of gamma and of beta."""
        dn = jnp.where(a > 0, da, 0)
        g, dgamma, dbeta = pull_scale_and_shift(dn, xhat, gamma, beta)
        assert dgamma is not None
        assert dbeta is not None
        return pull_standardized(grouped(g), grouped(xhat), rstd, OVER_A_GROUP).reshape(da.shape), dgamma, dbeta

    def slide_over(x):
        return Slide(windows.stride, windows.dilation, place(who, windows, x), 1)

    def init(key, x):
        require_fit(x)
        C = x.shape[-1]
        W1, W2 = (
            lecun_uniform(k, (C, *windows.size, C), math.prod(windows.size) * C, x.dtype) for k in jax.random.split(key)
        )
        ones, zeros = jnp.ones(C, x.dtype), jnp.zeros(C, x.dtype)
        return ResidualConvolutionBlockParams(ones, zeros, W1, ones, zeros, W2)

    def forward(params, x):
        gamma1, beta1, W1, gamma2, beta2, W2 = params
        require_fit(x, W1)
        slide = slide_over(x)
        m1, r1 = moments_of(x)
        a1 = activated(normalized(x, m1, r1), gamma1, beta1, x.dtype)
        u = cast(correlate(a1, W1, slide), x.dtype)
        m2, r2 = moments_of(u)
        a2 = activated(normalized(u, m2, r2), gamma2, beta2, x.dtype)
        y = cast(widen(x) + correlate(a2, W2, slide), x.dtype)
        return y, ResidualConvolutionBlockCache(x, m1, r1, u, m2, r2)

    def backward(params, cache, dy):
        gamma1, beta1, W1, gamma2, beta2, W2 = params
        x, m1, r1, u, m2, r2 = cache
        slide, sizes = slide_over(x), x.shape[1:-1]
        uhat = normalized(u, m2, r2)
        a2 = activated(uhat, gamma2, beta2, x.dtype)
        dW2 = cast(correlate_dW(a2, dy, windows.size, slide), W2.dtype)
        da2 = correlate_dx(dy, W2, sizes, slide)
        du, dgamma2, dbeta2 = pull(da2, a2, uhat, r2, gamma2, beta2)
        du = cast(du, x.dtype)
        xhat = normalized(x, m1, r1)
        a1 = activated(xhat, gamma1, beta1, x.dtype)
        dW1 = cast(correlate_dW(a1, du, windows.size, slide), W1.dtype)
        da1 = correlate_dx(du, W1, sizes, slide)
        dx, dgamma1, dbeta1 = pull(da1, a1, xhat, r1, gamma1, beta1)
        return (
            ResidualConvolutionBlockParams(dgamma1, dbeta1, dW1, dgamma2, dbeta2, dW2),
            cast(widen(dy) + dx, x.dtype),
        )

    return Layer(init, forward, backward, who)


def reference(
    params: ResidualConvolutionBlockParams,
    x: Array,
    groups: int = 32,
    window: tuple[int, ...] = (3, 3),
    eps: float = 1e-5,
) -> Array:
    def half(x, scale, shift, W):
        def normalized(group):
            return (group - jnp.mean(group)) / jnp.sqrt(jnp.var(group) + eps)

        n = jnp.concatenate([jax.vmap(normalized)(group) for group in jnp.split(x, groups, axis=-1)], -1)
        a = jax.nn.relu(n * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(shift, x.shape))
        letters = "DHW"[-len(window) :]
        layouts = (f"N{letters}C", f"O{letters}I", f"N{letters}C")
        return lax.conv_general_dilated(a, W, (1,) * len(window), "SAME", dimension_numbers=layouts)

    scale1, shift1, W1, scale2, shift2, W2 = params
    return x + half(half(x, scale1, shift1, W1), scale2, shift2, W2)


_EPS = Interval(1e-6, 0.1, 1e-5)

RULE = Rule(
    "residual_convolution_block",
    residual_convolution_block,
    reference,
    cases=(
        Case(
            "images",
            Real("N H W C"),
            {"groups": 3, "eps": _EPS},
            never_empty=("H", "W"),
            fixed={"N": 3, "W": 3, "C": 6},
            timed={"N": 4, "H": 16, "W": 16, "C": 48},
        ),
        Case(
            "sequences, an even window",
            Real("N T C"),
            {"groups": 2, "window": (4,), "eps": _EPS},
            never_empty=("T",),
            fixed={"C": 4},
        ),
    ),
    cite="arXiv:1603.05027, figure 1(b) and equation 3; with group norm as in arXiv:1803.08494",
    covers=("resnet block", "pre-activation residual block"),
)
