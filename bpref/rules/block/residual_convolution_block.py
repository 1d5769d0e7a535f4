"""residual_convolution_block: y = x + conv(relu(norm(conv(relu(norm(x)))))), the residual block with pre-activation.

Forward, with x of shape (N, ..., C) and all spatial axes alike, P the group norm (of G groups, mean m and 1 / standard
deviation r of each group of each example), * a convolution with "same" padding and, if nothing is said, as many outputs
F as inputs C, the first of some stride, and a = relu(n) = max(n, 0):

    n1 = gamma1 xhat + beta1,   xhat = (x - m1) r1         a1 = relu(n1)      (N, ..., C)
    u  = a1 * W1                                                              (N, /s, F)
    n2 = gamma2 uhat + beta2,   uhat = (u - m2) r2         a2 = relu(n2)      (N, /s, F)
    y  = x + a2 * W2                                                          (N, ..., C)
    y  = a1 * S + a2 * W2      where the shapes of x and y differ             (N, /s, F)

/s being ceil(n / s) for each axis of n. No nonlinearity stands on the way from x to y, so a stack of blocks of one
shape has y_L = x_0 + the sum of what each adds. Where stride or features change it, S (F, C) of one pixel's window and
the same stride makes the shortcut, and sees a1, as is usual of blocks with pre-activation.

Differential:

    delta y = delta x + delta a2 * W2 + a2 * delta W2          delta a2 = [n2 > 0] delta n2
    delta u = delta a1 * W1 + a1 * delta W1                    delta a1 = [n1 > 0] delta n1

with delta a1 * S + a1 * delta S for delta x where there is an S,

and delta n as in group norm. With *^T the adjoint of the convolution in its input, and (x) in its window, read
backwards:

    da2 = dy *^T W2             dW2 = a2 (x) dy                                (N, /s, F), (F, *window, F)
    dn2 = [n2 > 0] da2          dgamma2 = sum dn2 uhat,   dbeta2 = sum dn2     (F,)
    du  = r2 (g - mean g - uhat mean(g uhat)),   g = gamma2 dn2                (N, /s, F)
    da1 = du *^T W1             dW1 = a1 (x) du                                (N, ..., C), (F, *window, C)
    dn1 = [n1 > 0] da1          dgamma1 = sum dn1 xhat,   dbeta1 = sum dn1     (C,)
    dx  = dy + r1 (g - mean g - xhat mean(g xhat)),   g = gamma1 dn1           (N, ..., C)

and where there is an S, da1 = du *^T W1 + dy *^T S, dS = a1 (x) dy, and dx without its dy.

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

from bpref.checks.hyperparameters import require_positive, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform
from bpref.formulas.convolution.correlate import Slide, correlate, correlate_dW, correlate_dx
from bpref.formulas.convolution.windows import as_windows, place, require_spatial
from bpref.formulas.norm.groups import group_moments, group_standardized, pull_group_norm
from bpref.formulas.norm.standardize import scale_and_shift
from bpref.layer import Layer, Reals
from bpref.naive.dense import naive_group_norm, naive_scaled
from bpref.rule import Case, Interval, Real, Rule, called_as


class ResidualConvolutionBlockParams(NamedTuple):
    scale1: Float[Array, " C"]
    shift1: Float[Array, " C"]
    W1: Float[Array, "F *window C"]
    scale2: Float[Array, " F"]
    shift2: Float[Array, " F"]
    W2: Float[Array, "F *window F"]
    S: Float[Array, "F C"] | None = None


class ResidualConvolutionBlockCache(NamedTuple):
    x: Float[Array, "N *sizes C"]
    mean1: Float[Array, "N 1 G 1"]
    rstd1: Float[Array, "N 1 G 1"]
    u: Float[Array, "N *counts F"]
    mean2: Float[Array, "N 1 G 1"]
    rstd2: Float[Array, "N 1 G 1"]


def residual_convolution_block(
    groups: int = 32,
    window: tuple[int, ...] = (3, 3),
    eps: float = 1e-5,
    features: int | None = None,
    stride: int | tuple[int, ...] = 1,
) -> Layer[ResidualConvolutionBlockParams, Array, Reals, ResidualConvolutionBlockCache]:
    """y = x + conv(relu(norm(conv(relu(norm(x)))))), of group norms and "same" convolutions without a bias.

    Args:
      groups: the number of groups G of the norms, which divides the numbers of channels.
      window: the convolutions' window along each of 1 to 3 spatial axes.
      eps: what is added to the variances, in units of x squared.
      features: the number F of channels of y; `None` for as many as x has.
      stride: the first convolution's and the shortcut's; a number, or one for each axis.

    Returns:
      A layer with params `ResidualConvolutionBlockParams(scale1: (C,), shift1: (C,), W1: (F, *window, C), scale2: (F,),
      shift2: (F,), W2: (F, *window, F), S: (F, C) or None)`, x `(N, *sizes, C)` and y `(N, *counts, F)`, each count
      ceil(size / stride). There is an S where the stride is not 1, or F not C. Scales are ones and shifts zeros at
      first, W and S are drawn uniformly with variance 1 over the number of their inputs.

    Raises:
      ValueError: groups is not a positive integer, or does not divide the channels; eps is not positive; the window
        is not of 1 to 3 positive integers, the stride not of positive ones; x has other axes than N, the window's and
        C, or none of its elements, or other channels than W; there is no S where there should be, or one elsewhere.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "residual_convolution_block"
    first = as_windows(who, window, stride, 1, "same")
    second = as_windows(who, window, 1, 1, "same")
    once = second.stride
    eps = require_positive(who, "eps", eps)
    groups = require_size(who, "groups", groups)
    if features is not None:
        n = features = require_size(who, "features", features)
        if n % groups:
            raise ValueError(f"{who}: features is {features}, not a multiple of {groups} groups")

    def require_fit(x):
        """F, and whether there is an S."""
        require_spatial(who, x, first.rank)
        C = x.shape[-1]
        if C % groups:
            raise ValueError(f"{who}: x has {C} channels in its last axis, not a positive multiple of {groups} groups")
        F = features or C
        return F, F != C or first.stride != once

    def activated(xhat, gamma, beta, dtype):
        return cast(jnp.maximum(scale_and_shift(xhat, gamma, beta), 0), dtype)

    def pull(da, a, xhat, rstd, gamma, beta):
        """The cotangents of what was normalised, in at least float32, of gamma and of beta."""
        dx, dgamma, dbeta = pull_group_norm(jnp.where(a > 0, da, 0), xhat, rstd, gamma, beta)
        assert dgamma is not None
        assert dbeta is not None
        return dx, dgamma, dbeta

    def slide_over(x, windows):
        return Slide(windows.stride, windows.dilation, place(who, windows, x), 1)

    sampled = Slide(first.stride, once, ((0, 0),) * first.rank, 1)
    """How the shortcut's window of one element moves."""

    def as_kernel(S):
        return S.reshape(S.shape[0], *once, S.shape[1])

    def init(key, x):
        F, projected = require_fit(x)
        C, dtype = x.shape[-1], x.dtype
        keys = jax.random.split(key, 3 if projected else 2)
        W1, W2 = (
            lecun_uniform(k, (F, *window, inputs), math.prod(window) * inputs, dtype)
            for k, inputs in zip(keys[:2], (C, F), strict=True)
        )
        S = lecun_uniform(keys[2], (F, C), C, dtype) if projected else None
        of_norms = (v for n in (C, F) for v in (jnp.ones(n, dtype), jnp.zeros(n, dtype)))
        gamma1, beta1, gamma2, beta2 = of_norms
        return ResidualConvolutionBlockParams(gamma1, beta1, W1, gamma2, beta2, W2, S)

    def forward(params, x: Float[Array, "N some=*sizes C>0"]):
        gamma1, beta1, W1, gamma2, beta2, W2, S = params
        m1, r1 = group_moments(x, groups, eps)
        a1 = activated(group_standardized(x, m1, r1), gamma1, beta1, x.dtype)
        u = cast(correlate(a1, W1, slide_over(x, first)), x.dtype)
        m2, r2 = group_moments(u, groups, eps)
        a2 = activated(group_standardized(u, m2, r2), gamma2, beta2, x.dtype)
        shortcut = widen(x) if S is None else correlate(a1, as_kernel(S), sampled)
        y = cast(shortcut + correlate(a2, W2, slide_over(u, second)), x.dtype)
        return y, ResidualConvolutionBlockCache(x, m1, r1, u, m2, r2)

    def backward(params, cache, dy):
        gamma1, beta1, W1, gamma2, beta2, W2, S = params
        x, m1, r1, u, m2, r2 = cache
        sizes, slide = x.shape[1:-1], slide_over(u, second)
        uhat = group_standardized(u, m2, r2)
        a2 = activated(uhat, gamma2, beta2, x.dtype)
        dW2 = cast(correlate_dW(a2, dy, window, slide), W2.dtype)
        da2 = correlate_dx(dy, W2, u.shape[1:-1], slide)
        du, dgamma2, dbeta2 = pull(da2, a2, uhat, r2, gamma2, beta2)
        du = cast(du, x.dtype)
        xhat = group_standardized(x, m1, r1)
        a1 = activated(xhat, gamma1, beta1, x.dtype)
        slide = slide_over(x, first)
        dW1 = cast(correlate_dW(a1, du, window, slide), W1.dtype)
        da1 = correlate_dx(du, W1, sizes, slide)
        dS = None
        if S is not None:
            dS = cast(correlate_dW(a1, dy, once, sampled), S.dtype).reshape(S.shape)
            da1 += correlate_dx(dy, as_kernel(S), sizes, sampled)
        dx, dgamma1, dbeta1 = pull(da1, a1, xhat, r1, gamma1, beta1)
        if S is None:
            dx += widen(dy)
        return ResidualConvolutionBlockParams(dgamma1, dbeta1, dW1, dgamma2, dbeta2, dW2, dS), cast(dx, x.dtype)

    return Layer(init, forward, backward, who)


@called_as(residual_convolution_block)
def reference(params: ResidualConvolutionBlockParams, x: Array, groups, window, eps, stride, **_) -> Array:
    def activated(x, scale, shift):
        return jax.nn.relu(naive_scaled(naive_group_norm(x, groups, eps), scale, shift))

    def convolved(a, W, steps):
        letters = "DHW"[-len(window) :]
        layouts = (f"N{letters}C", f"O{letters}I", f"N{letters}C")
        return lax.conv_general_dilated(a, W, steps, "SAME", dimension_numbers=layouts)

    scale1, shift1, W1, scale2, shift2, W2, S = params
    steps = (stride,) * len(window) if isinstance(stride, int) else stride
    a1 = activated(x, scale1, shift1)
    a2 = activated(convolved(a1, W1, steps), scale2, shift2)
    every_nth = (slice(None), *(slice(None, None, s) for s in steps))
    shortcut = x if S is None else a1[every_nth] @ S.T
    return shortcut + convolved(a2, W2, (1,) * len(window))


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
            "sequences, an even window, half as many, more features",
            Real("N T C"),
            {"groups": 2, "window": (4,), "eps": _EPS, "features": 6, "stride": 2},
            never_empty=("T",),
            fixed={"C": 4},
        ),
    ),
    cite="arXiv:1603.05027, figure 1(b) and equation 3; with group norm as in arXiv:1803.08494",
    covers=("resnet block", "pre-activation residual block", "downsampling block"),
)
