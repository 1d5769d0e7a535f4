"""x of (N, ..., C) with its neighbouring channels in G groups, each group of an example standardized; and the way back.

Forward, s a position (the axes between), p(c) the group of channel c, means over the n values of one example's group:

    xhat_nsc = (x_nsc - mu_np) r_np      y_nsc = gamma_c xhat_nsc + beta_c

gamma is a channel's, the same at all positions. So the means of g = gamma dy and of g xhat over a group are made of two
sums over the positions, the same of which dbeta and dgamma are made:

    t_nc = sum_s dy_nsc      u_nc = sum_s dy_nsc xhat_nsc                                           (N, C)
    dx_nsc   = r_np (gamma_c dy_nsc - 1/n sum_{c in p} gamma_c t_nc - xhat_nsc 1/n sum_{c in p} gamma_c u_nc)
    dgamma_c = sum_n u_nc      dbeta_c = sum_n t_nc                                                 (C,)
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import cast, widen
from bpref.formulas.norm.reduced import count
from bpref.formulas.norm.standardize import moments

OVER_A_GROUP = (1, 3)
"""The axes of x as (N, S, G, C / G) that belong to one group of an example."""


def grouped(v: Array, groups: int) -> Array:
    """(N, S, G, C / G), in at least float32."""
    return widen(v).reshape(v.shape[0], math.prod(v.shape[1:-1]), groups, v.shape[-1] // groups)


def group_moments(x: Array, groups: int, eps: float) -> tuple[Array, Array]:
    """Of each group of an example the mean and 1 / sqrt(var + eps), (N, 1, G, 1)."""
    mean, var = moments(grouped(x, groups), OVER_A_GROUP)
    return mean, lax.rsqrt(var + eps)


def group_standardized(x: Array, mean: Array, rstd: Array) -> Array:
    """xhat, of x's shape."""
    return ((grouped(x, mean.shape[2]) - mean) * rstd).reshape(x.shape)


def pull_group_norm(
    dy: Array, xhat: Array, rstd: Array, gamma: Array | None, beta: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """The cotangents of x, of dy's shape and at least float32, and of gamma and beta where there are any."""
    dy_of, xhat = (grouped(v, rstd.shape[2]) for v in (dy, xhat))
    t, u = (lax.optimization_barrier(jnp.sum(v, 1, keepdims=True)) for v in (dy_of, dy_of * xhat))
    dgamma, dbeta = (
        None if v is None else cast(jnp.sum(of_each, 0).reshape(v.shape), v.dtype)
        for v, of_each in ((gamma, u), (beta, t))
    )
    factor = jnp.ones((), t.dtype) if gamma is None else widen(gamma).reshape(1, 1, *t.shape[2:])
    n = count(dy_of.shape, OVER_A_GROUP)
    mean_g, mean_g_xhat = (jnp.sum(factor * v, -1, keepdims=True) / n for v in (t, u))
    return (rstd * (factor * dy_of - mean_g - xhat * mean_g_xhat)).reshape(dy.shape), dgamma, dbeta
