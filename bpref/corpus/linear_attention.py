"""Causal linear attention with decay, normalised: q and k (t, d), v (t, e), log decay g (t,).

`A_ts = (exp(q_t) . exp(k_s)) exp(G_t - G_s)` for s <= t, `G = cumsum(g)`, `y = A v / c`, `c = exp(G) + sum_s A`: before
the first step stands a value 0 of weight 1. `dv = A^T (dy / c)`, `dc = -sum(dy y) / c`, `dA = dy v^T / c + dc`; with
`B = dA A`: `dG = rows' sums of B - columns' sums of B + dc exp(G)`, and `dg` the sum of dG from t on;
`dq = exp(q) (dA decay) exp(k)`, `dk` likewise with the transpose.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def past(g: Array) -> Array:
    return jnp.tril(jnp.ones((len(g), len(g)), bool))


def decay(g: Array) -> Array:
    G = jnp.cumsum(g)
    return jnp.where(past(g), jnp.exp(G[:, None] - G[None, :]), 0)


def forward(q, k, v, g):
    A = (jnp.exp(q) @ jnp.exp(k).T) * decay(g)
    return A @ v / (jnp.exp(jnp.cumsum(g))[:, None] + A.sum(1, keepdims=True))


def backward(args: tuple, dy: Array, of_sum: bool = True, decayed: bool = True, over: bool = True) -> tuple:
    """For dk: whether c is differentiated, and whether decay is there; `over`: whether dv has its 1 / c."""
    q, k, v, g = args
    a, b, E = jnp.exp(q), jnp.exp(k), decay(g)
    A = (a @ b.T) * E
    start = jnp.exp(jnp.cumsum(g))[:, None]
    c = start + A.sum(1, keepdims=True)
    direct, dc = dy @ v.T / c, -(dy * (A @ v)).sum(1, keepdims=True) / c**2
    dA = direct + dc
    B = jnp.where(past(g), dA * A, 0)  # a step that overflows spoils no later one
    dG = B.sum(1) - B.sum(0) + (dc * start)[:, 0]
    of_k = (dA if of_sum else direct) * (E if decayed else jnp.tril(jnp.ones_like(E)))
    dv = A.T @ (dy / c if over else dy)
    return a * ((dA * E) @ b), b * (of_k.T @ a), dv, jnp.flip(jnp.cumsum(jnp.flip(dG)))


def not_summed_from_the_end(dg: Array) -> Array:
    return dg - jnp.concatenate([dg[1:], jnp.zeros_like(dg[:1])])


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    q, k, v = (rng.normal(size=(6, n)).astype(dtype) for n in (3, 3, 4))
    return q, k, v, -rng.uniform(0.1, 0.6, 6).astype(dtype)


DERIVATION = Derivation(
    name="linear_attention",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "dk without the path through the denominator",
            partial(backward, of_sum=False),
            ("k",),
            "missing_term",
            "fla-org/flash-linear-attention#875: the chain from k through its running sum was severed",
        ),
        Wrong(
            "dk without decay",
            partial(backward, decayed=False),
            ("k",),
            "unexplained",
            "a habit: the state's gradient is carried from chunk to chunk as it is",
        ),
        Wrong(
            "dg is dG, not summed from the end",
            with_cotangent(backward, 3, not_summed_from_the_end),
            ("g",),
            "missing_sum",
            "a habit: the forward's cumulative sum is a kernel of its own, and its reverse another",
        ),
        Wrong(
            "dG is the columns' sums minus the rows'",
            with_cotangent(backward, 3, jnp.negative),
            ("g",),
            "sign",
            "a habit: q dq - k dk, the wrong way round",
        ),
        Wrong(
            "dv not divided by the denominator",
            partial(backward, over=False),
            ("v",),
            "unexplained",
            "a habit: the normalisation was added behind the kernel; compare fla-org/flash-linear-attention#6",
        ),
    ),
)
