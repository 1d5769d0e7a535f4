"""Causal attention with groups of query heads, capped scores and their log-sum-exp: q (t, h, d), k and v (t, g, d).

`R = q k^T / sqrt(d)`, `S = c tanh(R / c)`, `P = softmax(S)`, `y = P v` and `lse`; head i reads head i // (h / g) of k.
`dS = P (dy v^T - sum(P dy v^T) + dlse)`, `dR = dS (1 - (S / c)^2)`, `dq = dR k / sqrt(d)`; dk and dv are summed over
the group.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.softmax import through_softmax

CAP, GROUP = 2.0, 3


def scores(q: Array, k: Array) -> Array:
    """`(h, t, s)`, -inf where s > t."""
    R = jnp.einsum("thd,shd->hts", q, jnp.repeat(k, GROUP, axis=1)) / math.sqrt(q.shape[-1])
    return CAP * jnp.tanh(R / CAP)


def visible(t: int) -> Array:
    return jnp.tril(jnp.ones((t, t), bool))[None]


def forward(q, k, v):
    S = jnp.where(visible(len(q)), scores(q, k), -jnp.inf)
    return jnp.einsum("hts,shd->thd", jax.nn.softmax(S), jnp.repeat(v, GROUP, axis=1)), jax.nn.logsumexp(S, axis=-1)


def summed(d: Array) -> Array:
    """The sum over each group's heads."""
    return d.reshape(len(d), -1, GROUP, d.shape[-1]).sum(2)


def summed_modulo(d: Array) -> Array:
    return d.reshape(len(d), GROUP, -1, d.shape[-1]).sum(1)


def backward(
    args: tuple,
    dys: tuple[Array, Array],
    reduce: Callable[[Array], Array] = summed,
    slope: bool = True,
    of_lse: bool = True,
) -> tuple:
    """`reduce`: from the query heads to the key's; `slope`: of the cap; `of_lse`: whether its cotangent is read."""
    q, k, v = args
    dy, dlse = dys
    S = scores(q, k)
    P = jax.nn.softmax(jnp.where(visible(len(q)), S, -jnp.inf))
    dP = jnp.einsum("thd,shd->hts", dy, jnp.repeat(v, GROUP, axis=1))
    dS = through_softmax(P, dP) + (P * dlse[..., None] if of_lse else 0)
    dR = (dS * (1 - (S / CAP) ** 2) if slope else dS) / math.sqrt(q.shape[-1])
    dq = jnp.einsum("hts,shd->thd", dR, jnp.repeat(k, GROUP, axis=1))
    return dq, reduce(jnp.einsum("hts,thd->shd", dR, q)), reduce(jnp.einsum("hts,thd->shd", P, dy))


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in ((5, 6, 4), (5, 2, 4), (5, 2, 4)))


DERIVATION = Derivation(
    name="grouped_query_attention",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "dk and dv of the last head of each group alone",
            partial(backward, reduce=lambda d: d[:, GROUP - 1 :: GROUP]),
            ("k", "v"),
            "unexplained",
            "marin-community/levanter#449: the kernel knows of one head, and the sum over the group was missing",
        ),
        Wrong(
            "dk and dv averaged over the group",
            partial(backward, reduce=lambda d: summed(d) / GROUP),
            ("k", "v"),
            "factor",
            "a habit: what repeats is undone by a mean, as in upsampling",
        ),
        Wrong(
            "dk and dv of head i go to head i % g",
            partial(backward, reduce=summed_modulo),
            ("k", "v"),
            "unexplained",
            "XunhaoLai/native-sparse-attention-triton#27: the forward and the backward split the index differently",
        ),
        Wrong(
            "the slope of the cap forgotten",
            partial(backward, slope=False),
            ("q", "k"),
            "unexplained",
            "a habit: capped scores come out of the forward's code; openxla/tokamax#1121 adds the factor later",
        ),
        Wrong(
            "the cotangent of the log-sum-exp not read",
            partial(backward, of_lse=False),
            ("q", "k"),
            "missing_term",
            "a habit: it is returned for the backward's own use, and merging parts of a sequence differentiates it",
        ),
    ),
)
