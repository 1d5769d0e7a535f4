"""Direct preference optimisation: `y = -mean(log sigmoid(z))`, z being b times the margin, all (n,).

`z = b ((chosen - ref_chosen) - (rejected - ref_rejected))`, of log probabilities of whole answers.
`dz = -dy sigmoid(-z) / n`: `dchosen = b dz = dref_rejected`, the other two its negative.
"""

from functools import partial

import jax
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent, with_incoming

B = 0.5
ALL = ("chosen", "rejected", "ref_chosen", "ref_rejected")


def margin(chosen: Array, rejected: Array, ref_chosen: Array, ref_rejected: Array) -> Array:
    return B * ((chosen - ref_chosen) - (rejected - ref_rejected))


def forward(chosen, rejected, ref_chosen, ref_rejected):
    return -jax.nn.log_sigmoid(margin(chosen, rejected, ref_chosen, ref_rejected)).mean()


def backward(args: tuple, dy: Array, b: float = B, inner: int = -1, mean: bool = True) -> tuple:
    """`inner`: the sign of z in the sigmoid; `mean`: whether its 1 / n is there."""
    z = margin(*args)
    d = -b * dy * jax.nn.sigmoid(inner * z) / (len(z) if mean else 1)
    return d, -d, -d, d


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.normal(-2, 1, size=7).astype(dtype) for _ in range(4))


DERIVATION = Derivation(
    "preference",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "sigmoid(z) for sigmoid(-z)",
            partial(backward, inner=1),
            ALL,
            "slope",
            "LuJunru/SamPO#1: 'the gradient formula in DPO is sigma(r_l - r_w), not sigma(r_w - r_l)'",
        ),
        Wrong(
            "b counted twice",
            partial(backward, b=B**2),
            ALL,
            "factor",
            "AI-Hypercomputer/maxtext#1530, in the loss: 'there are two BETA', 'but there should be only one'",
        ),
        Wrong(
            "negated",
            with_incoming(backward, lambda dy: -dy),
            ALL,
            "sign",
            "linkedin/Liger-Kernel#481: the sign of the preference loss is inverted",
        ),
        Wrong(
            "the rejected answer is pushed up too",
            with_cotangent(backward, 1, lambda d: -d),
            ("rejected",),
            "sign",
            "a habit: one buffer of gradients for both halves of the batch",
        ),
        Wrong(
            "the 1 / n of the mean forgotten",
            partial(backward, mean=False),
            ALL,
            "factor",
            "a habit of losses that are made a chunk at a time: each chunk's mean, or its sum",
        ),
    ),
)
