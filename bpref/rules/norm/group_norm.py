"""group_norm: the channels of each example in G groups, each group brought to mean 0 and variance 1 over all positions.

Forward, with x of shape (N, ..., C), s a position (the axes between, and none of them is one position), and c a
channel of the group p(c) = floor(c G / C), which is neighbouring channels; means are over the n = S C / G values
of one example's group:

    mu_np = mean x_nsc      var_np = mean (x_nsc - mu_np)^2      r_np = 1 / sqrt(var_np + eps)    (N, G)
    xhat_nsc = (x_nsc - mu_np(c)) r_np(c)                                                         (N, ..., C)
    y_nsc = gamma_c xhat_nsc + beta_c                                                             (N, ..., C)

G = 1 normalises an example as a whole; G = C each of its channels by itself, which is instance norm.

Differential: delta y = gamma delta xhat + xhat delta gamma + delta beta, and, since a group's deviations sum to 0,

    delta xhat = r (delta x - mean(delta x) - xhat mean(xhat delta x))

as in layer norm, the means over a group. gamma is a channel's, not a group's, and stands inside of these means in
the adjoint. It is the same at all positions, so that two sums over these serve the means and the parameters alike:

    t_nc = sum_s dy_nsc      u_nc = sum_s dy_nsc xhat_nsc                                         (N, C)
    dx_nsc   = r_np (gamma_c dy_nsc - 1/n sum_c gamma_c t_nc - xhat_nsc 1/n sum_c gamma_c u_nc)   (N, ..., C)
    dgamma_c = sum_n u_nc                                                                         (C,)
    dbeta_c  = sum_n t_nc                                                                         (C,)

Cached: x, and mu and r, two numbers for each group of an example. xhat is one subtraction and one product away.

Numerical care: as in layer norm, the variance in two passes, dx for any ratio of var to eps, half precision in
float32. Sums are taken over the positions, and of these over a group's channels. A group of a single value
is xhat = 0, and passes no gradient to x.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import is_integer, plain, require_flags, require_positive
from bpref.dtypes import cast
from bpref.formulas.norm.groups import group_moments, group_standardized, pull_group_norm
from bpref.formulas.norm.standardize import scale_and_shift
from bpref.layer import Layer, Reals
from bpref.naive.dense import naive_group_norm, naive_scaled
from bpref.rule import Case, Interval, Real, Rule, called_as


class GroupNormParams(NamedTuple):
    scale: Float[Array, " C"] | None
    shift: Float[Array, " C"] | None


class GroupNormCache(NamedTuple):
    x: Float[Array, "N ... C"]
    mean: Float[Array, "N 1 G 1"]
    rstd: Float[Array, "N 1 G 1"]


def group_norm(
    groups: int | None = 32, eps: float = 1e-5, scale: bool = True, shift: bool = True
) -> Layer[GroupNormParams, Array, Reals, GroupNormCache]:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, mean and variance over each group of an example's channels.

    Args:
      groups: the number of groups G, which divides the number of channels; None for one channel in each: instance norm.
      eps: what is added to the variance, in units of x squared.
      scale: whether there is a gamma.
      shift: whether there is a beta.

    Returns:
      A layer with params `GroupNormParams(scale: (C,) or None, shift: (C,) or None)`, ones and zeros at first,
      x `(N, ..., C)` and y `(N, ..., C)`.

    Raises:
      ValueError: groups is not a positive integer, or does not divide the channels; eps is not positive; x has no
        axis of examples, no positions or no channels, or another number of these than scale and shift.
      TypeError: x is not floating-point, or not of the parameters' dtype.
    """
    who = "group_norm"
    require_flags(who, scale=scale, shift=shift)
    if groups is not None and (not is_integer(groups) or groups < 1):
        raise ValueError(f"{who}: groups is {groups!r}, expected a positive integer, or None for one channel in each")
    groups = plain(groups)
    eps = require_positive(who, "eps", eps)

    def init(key, x):
        if 0 in x.shape[1:-1]:
            raise ValueError(f"{who}: x has shape {x.shape}, expected (N, ..., C) with at least one position")
        if groups is not None and x.shape[-1] % groups:
            raise ValueError(f"{who}: x has {x.shape[-1]} channels in its last axis, not a multiple of {groups} groups")

        C = x.shape[-1]
        return GroupNormParams(jnp.ones(C, x.dtype) if scale else None, jnp.zeros(C, x.dtype) if shift else None)

    def forward(params, x: Float[Array, "N ... C>0"]):
        mean, rstd = group_moments(x, x.shape[-1] if groups is None else groups, eps)
        xhat = group_standardized(x, mean, rstd)
        return cast(scale_and_shift(xhat, *params), x.dtype), GroupNormCache(x, mean, rstd)

    def backward(params, cache, dy):
        x, mean, rstd = cache
        dx, dgamma, dbeta = pull_group_norm(dy, group_standardized(x, mean, rstd), rstd, *params)
        return GroupNormParams(dgamma, dbeta), cast(dx, x.dtype)

    return Layer(init, forward, backward, who)


@called_as(group_norm)
def reference(params: GroupNormParams, x: Array, groups, eps, **_) -> Array:
    return naive_scaled(naive_group_norm(x, x.shape[-1] if groups is None else groups, eps), *params)


_EPS = Interval(1e-6, 0.1, 1e-5)

RULE = Rule(
    "group_norm",
    group_norm,
    reference,
    cases=(
        Case(
            "images",
            Real("N H W C"),
            {"groups": 3, "eps": _EPS},
            never_empty=("H", "W"),
            fixed={"C": 6},
            timed={"N": 8, "H": 32, "W": 32, "C": 96},
        ),
        Case("no positions", Real("N C"), {"groups": 2, "eps": _EPS, "shift": False}, fixed={"C": 6}),
        Case(
            "instance norm",
            Real("N T C"),
            {"groups": None, "eps": _EPS, "scale": False, "shift": False},
            never_empty=("T", "C"),
        ),
    ),
    cite="arXiv:1803.08494, equations 1 to 7; instance norm: arXiv:1607.08022",
    covers=("instance_norm",),
)
