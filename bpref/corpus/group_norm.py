"""Group norm: x (n, s, c), its c channels in 3 groups; mean and variance over the s positions and a group's channels.

With `dxhat = gamma dy`: `dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sqrt(var + eps)`, means over a group.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

GROUPS, EPS = 3, 1e-5


def group_mean(v: Array) -> Array:
    """The mean over each example's groups, back in the shape of `v` (n, s, c)."""
    n, s, c = v.shape
    grouped = v.reshape(n, s, GROUPS, c // GROUPS)
    return jnp.broadcast_to(grouped.mean((1, 3), keepdims=True), grouped.shape).reshape(v.shape)


def forward(x, gamma, beta):
    centred = x - group_mean(x)
    xhat = centred / jnp.sqrt(group_mean(centred**2) + EPS)
    return gamma[None, None, :] * xhat + beta[None, None, :]


def backward(args: tuple, dy: Array, mean: bool = True, positions: bool = True, over: tuple = (0, 1)) -> tuple:
    """`mean`: whether that path is there; `positions`: whether they count in a group's size."""
    x, gamma, _ = args
    centred = x - group_mean(x)
    sigma = jnp.sqrt(group_mean(centred**2) + EPS)
    xhat = centred / sigma
    dxhat = dy * gamma[None, None, :]
    too_large = 1 if positions else x.shape[1]
    dx = dxhat - too_large * xhat * group_mean(dxhat * xhat)
    if mean:
        dx = dx - too_large * group_mean(dxhat)
    return dx / sigma, (dy * xhat).sum(over), dy.sum(over)


def of_another_group(args: tuple, dy: Array) -> tuple:
    """Channel c reads the mean and the variance of group c % 3, not c // (c / 3)."""
    x, _, _ = args
    dx, _, dbeta = backward(args, dy)
    channels = x.shape[-1]
    read = np.arange(channels) % GROUPS * (channels // GROUPS)
    mean = group_mean(x)
    sigma = jnp.sqrt(group_mean((x - mean) ** 2) + EPS)
    return dx, (dy * (x - mean[..., read]) / sigma[..., read]).sum((0, 1)), dbeta


def frozen(args: tuple, dy: Array) -> tuple:
    return backward(args, dy)[0], None, None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((2, 5, 6), (6,), (6,)))


DERIVATION = Derivation(
    name="group_norm",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "dgamma normalised by another group's mean and variance",
            of_another_group,
            ("gamma",),
            "unexplained",
            "tenstorrent/tt-metal#56202: the group of channel c is c / (C / G), not c % G",
        ),
        Wrong(
            "a group's size without its positions",
            partial(backward, positions=False),
            ("x",),
            "factor",
            "habit: sums divided by C / G alone; linkedin/Liger-Kernel#1376 takes W for H W",
        ),
        Wrong(
            "the path through the mean forgotten",
            partial(backward, mean=False),
            ("x",),
            "missing_term",
            "habit: as in layer norm",
        ),
        Wrong(
            "gamma and beta get no cotangent",
            frozen,
            ("gamma", "beta"),
            "structure",
            "paiml/aprender#2200: after backward, the gradients of weight and bias were None",
        ),
        Wrong(
            "dgamma and dbeta summed over the positions, not over the batch",
            partial(backward, over=(1,)),
            ("gamma", "beta"),
            "missing_sum",
            "habit: a kernel that reduces one example at a time, and a last reduction that is forgotten",
        ),
    ),
)
