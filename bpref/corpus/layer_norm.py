"""Layer norm: `y = gamma xhat + beta`, `xhat = (x - mean) / sqrt(var + eps)` over the last axis of x (n, t, d).

With `dxhat = gamma dy`: `dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sqrt(var + eps)`.
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
    centred = x - x.mean(-1, keepdims=True)
    xhat = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    return gamma[None, None, :] * xhat + beta[None, None, :]


def backward(
    args: tuple, dy: Array, means: int = 1, projections: int = 1, eps_outside: bool = False, over: tuple = (0, 1)
) -> tuple:
    """`means` and `projections`: how often these terms are subtracted; `over`: the axes that dgamma and dbeta sum."""
    x, gamma, _ = args
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    sigma = jnp.sqrt(variance) + EPS if eps_outside else jnp.sqrt(variance + EPS)
    xhat = centred / sigma
    dxhat = dy * gamma[None, None, :]
    mean, projection = dxhat.mean(-1, keepdims=True), xhat * (dxhat * xhat).mean(-1, keepdims=True)
    dx = (dxhat - means * mean - projections * projection) / sigma
    return dx, (dy * xhat).sum(over), dy.sum(over)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((2, 3, 5), (5,), (5,)))


DERIVATION = Derivation(
    name="layer_norm",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the path through the mean forgotten",
            partial(backward, means=0),
            ("x",),
            "missing_term",
            "habit: RMS norm's backward, which has no mean, taken for layer norm's",
        ),
        Wrong(
            "the mean of dxhat subtracted twice",
            partial(backward, means=2),
            ("x",),
            "factor",
            "tenstorrent/tt-metal#53204: a register that was not cleared",
        ),
        Wrong(
            "the path through the variance forgotten",
            partial(backward, projections=0),
            ("x",),
            "missing_term",
            "habit: the variance's own dependence on x overlooked",
        ),
        Wrong(
            "eps outside of the root in the backward",
            partial(backward, eps_outside=True),
            ("x", "gamma"),
            "unexplained",
            "habit: some libraries divide by sqrt(var) + eps, and formulas are copied between them",
        ),
        Wrong(
            "dgamma and dbeta in each other's place",
            with_swapped(backward, 1, 2),
            ("gamma", "beta"),
            "swapped",
            "habit: two outputs of one shape, returned in the order in which they were computed",
        ),
        Wrong(
            "dgamma and dbeta summed over the first axis alone, as for x (n, d)",
            partial(backward, over=(0,)),
            ("gamma", "beta"),
            "missing_sum",
            "flagos-ai/FlagGems#5392: a backward written for two axes, given three",
        ),
    ),
)
