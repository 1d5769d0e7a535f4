"""Causal attention, one head: q, k (b, t, d), v (b, t, e): `y = P v`, `P = softmax(q k^T / sqrt(d))` where s <= t.

`dv = P^T dy`, `dP = dy v^T`, `dS = P (dP - sum(P dP)) / sqrt(d)`, `dq = dS k`, `dk = dS^T q`.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.softmax import through_softmax
from bpref.corpus.spoil import with_cotangent, with_swapped


def scores(q: Array, k: Array) -> Array:
    return q @ jnp.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])


def visible(t: int) -> Array:
    return jnp.tril(jnp.ones((t, t), bool))[None]


def shifted_exponentials(q: Array, k: Array) -> tuple[Array, Array]:
    """The exponentials of all scores, future ones too, and the sum over each query's visible keys."""
    S, mask = scores(q, k), visible(q.shape[1])
    E = jnp.exp(S - jnp.where(mask, S, -jnp.inf).max(-1, keepdims=True))
    return E, jnp.where(mask, E, 0).sum(-1, keepdims=True)


def forward(q, k, v):
    E, total = shifted_exponentials(q, k)
    return jnp.where(visible(q.shape[1]), E / total, 0) @ v


def backward(args: tuple, dy: Array, masked: bool = True, dot_product: bool = True, scalings: int = 1) -> tuple:
    """`scalings`: how often dS is divided by sqrt(d)."""
    q, k, v = args
    E, total = shifted_exponentials(q, k)
    P = jnp.where(visible(q.shape[1]), E / total, 0) if masked else E / total
    dP = dy @ jnp.swapaxes(v, -1, -2)
    dS = through_softmax(P, dP) if dot_product else P * dP
    dS = dS / math.sqrt(q.shape[-1]) ** scalings
    return dS @ k, jnp.swapaxes(dS, -1, -2) @ q, jnp.swapaxes(P, -1, -2) @ dy


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((2, 4, 3), (2, 4, 3), (2, 4, 5)))


DERIVATION = Derivation(
    name="attention",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "1 / sqrt(d) forgotten in the backward",
            partial(backward, scalings=0),
            ("q", "k"),
            "factor",
            "habit: the scale is part of the forward's scores and is not seen again",
        ),
        Wrong(
            "1 / sqrt(d) applied twice",
            partial(backward, scalings=2),
            ("q", "k"),
            "factor",
            "habit: the scale stands in q already, and again in dS",
        ),
        Wrong(
            "dq and dk in each other's place",
            with_swapped(backward, 0, 1),
            ("q", "k"),
            "swapped",
            "ooples/AiDotNet.Tensors#49: dQ, dK, dV 'with swapped/incorrect values'",
        ),
        Wrong(
            "the dot product of softmax's backward forgotten",
            partial(backward, dot_product=False),
            ("q", "k"),
            "missing_term",
            "habit: the row sums D of flash attention's backward, left out or left at zero",
        ),
        Wrong(
            "the causal mask forgotten where the backward recomputes P",
            partial(backward, masked=False),
            ("q", "k", "v"),
            "unexplained",
            "habit: P = exp(S - logsumexp) is recomputed from the forward's statistics, without the forward's mask",
        ),
        Wrong(
            "dq of the first query is NaN",
            with_cotangent(backward, 0, lambda dq: dq.at[0, 0].set(jnp.nan)),
            ("q",),
            "nonfinite",
            "Dao-AILab/flash-attention#443: with a causal mask NaN in dq, none in dk and dv",
        ),
    ),
)
