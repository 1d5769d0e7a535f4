"""RMS norm: `y = gamma x / sqrt(mean(x^2) + eps)` over the last axis of x (n, d).

With `r = 1 / sqrt(mean(x^2) + eps)`, `dxhat = gamma dy`: `dx = r (dxhat - x r^2 mean(dxhat x))`.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent

EPS = 1e-6


def forward(x, gamma):
    return gamma[None, :] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def backward(args: tuple, dy: Array, projection: int = -1, with_gamma: bool = True, last_row: bool = False) -> tuple:
    """`projection`: the sign of that term, 0 to leave it out; `last_row`: dgamma is overwritten row by row."""
    x, gamma = args
    r = 1 / jnp.sqrt((x**2).mean(-1, keepdims=True) + EPS)
    dxhat = dy * gamma[None, :] if with_gamma else dy
    dx = r * (dxhat + projection * x * r**2 * (dxhat * x).mean(-1, keepdims=True))
    dgamma = dy * x * r
    return dx, dgamma[-1] if last_row else dgamma.sum(0)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((3, 7), (7,)))


DERIVATION = Derivation(
    name="rms_norm",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the path through the root mean square forgotten",
            partial(backward, projection=0),
            ("x",),
            "missing_term",
            "habit: the scale is taken for a constant",
        ),
        Wrong(
            "the projection with the wrong sign",
            partial(backward, projection=1),
            ("x",),
            "missing_term",
            "habit: the minus of the power -1/2 lost",
        ),
        Wrong(
            "dx without gamma",
            partial(backward, with_gamma=False),
            ("x",),
            "unexplained",
            "karpathy/llm.c#763: 'I forgot to multiply by the weight in the backward pass'",
        ),
        Wrong(
            "dx twice too large",
            with_cotangent(backward, 0, lambda dx: 2 * dx),
            ("x",),
            "factor",
            "habit: the 2 of x^2 put in front of everything",
        ),
        Wrong(
            "dgamma overwritten row by row in place of accumulated",
            partial(backward, last_row=True),
            ("gamma",),
            "missing_sum",
            "habit: = for +=; karpathy/llm.c#408 repairs the accumulation of layer norm's",
        ),
        Wrong(
            "dgamma left in float16, in which an autocast region computed it",
            with_cotangent(backward, 1, lambda dgamma: dgamma.astype(jnp.float16)),
            ("gamma",),
            "dtype",
            "a habit of autocast; compare NVIDIA/TransformerEngine#569, a float32 gradient of a bfloat16 weight",
        ),
    ),
)
