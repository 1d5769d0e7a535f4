"""Batch norm in training: `y = gamma xhat + beta`, mean and variance over the n examples of x (n, d).

With `dxhat = gamma dy`: `dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sqrt(var + eps)`, means over n.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_swapped

EPS = 1e-5


def forward(x, gamma, beta):
    centred = x - x.mean(0, keepdims=True)
    xhat = centred / jnp.sqrt((centred**2).mean(0, keepdims=True) + EPS)
    return gamma[None, :] * xhat + beta[None, :]


def backward(
    args: tuple, dy: Array, mean: bool = True, projection: bool = True, with_gamma: bool = True, averaged: bool = False
) -> tuple:
    """`mean`, `projection`: whether these terms are there; `averaged`: a mean where dgamma and dbeta sum."""
    x, gamma, _ = args
    centred = x - x.mean(0, keepdims=True)
    sigma = jnp.sqrt((centred**2).mean(0, keepdims=True) + EPS)
    xhat = centred / sigma
    dxhat = dy * gamma[None, :] if with_gamma else dy
    dx = dxhat
    if mean:
        dx = dx - dxhat.mean(0, keepdims=True)
    if projection:
        dx = dx - xhat * (dxhat * xhat).mean(0, keepdims=True)
    n = x.shape[0] if averaged else 1
    return dx / sigma, (dy * xhat).sum(0) / n, dy.sum(0) / n


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((7, 4), (4,), (4,)))


DERIVATION = Derivation(
    name="batch_norm",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "mean and variance taken for constants, as in inference",
            partial(backward, mean=False, projection=False),
            ("x",),
            "missing_term",
            "facebookresearch/CrypTen#143",
        ),
        Wrong(
            "the path through the variance forgotten",
            partial(backward, projection=False),
            ("x",),
            "missing_term",
            "habit: of the three paths from x to y the longest is left out; BVLC/caffe#3878 counts them wrongly too",
        ),
        Wrong(
            "dx without gamma",
            partial(backward, with_gamma=False),
            ("x",),
            "unexplained",
            "denizyuret/Knet.jl#288: 'Batchnorm backward on cpu doesn't seem to take care about scales'",
        ),
        Wrong(
            "dgamma and dbeta in each other's place",
            with_swapped(backward, 1, 2),
            ("gamma", "beta"),
            "swapped",
            "habit: (dx, dbeta, dgamma) is the order in which the paper's equations are read backwards",
        ),
        Wrong(
            "dgamma and dbeta averaged over the batch",
            partial(backward, averaged=True),
            ("gamma", "beta"),
            "mean_for_sum",
            "habit: everything else in this backward is a mean over the batch",
        ),
    ),
)
