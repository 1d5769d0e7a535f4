"""Rules that hand a state on: x of T steps that starts from one, and what is expected, by a plain form in chunks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpref import (
    DeltaHeads,
    GatedHeads,
    Heads,
    HeadsAndState,
    MambaState,
    MambaSteps,
    Passed,
    ProductHeads,
    Selective,
    SelectiveHeads,
    SelfReadingHeads,
)
from bpref.naive.states import naive_affine_chunks, naive_chunks

B, N, K, D, E = 2, 4, 2, 3, 5
DRAWN = np.random.default_rng(0)


class Form(NamedTuple):
    """A rule with a state: its hyperparameters, x of T steps that starts from a state, and its form by chunks."""

    hyper: dict[str, Any]
    x: Callable[[int], Any]
    by_chunks: Callable[[Any, Any], Passed] | None = None


def real(*shape: int, low: float = -1.0, high: float = 1.0) -> Any:
    return DRAWN.uniform(low, high, shape)


def heads(T: int) -> Heads:
    return Heads(real(B, T, N, D), real(B, T, K, D), real(B, T, K, E))


def gates(*shape: int) -> Any:
    return np.log(real(*shape, low=0.1))


def begins(ids: Any) -> Any:
    """Whether another packed sequence than the first begins with a step."""
    return jnp.concatenate((jnp.zeros((B, 1), bool), ids[:, 1:] != ids[:, :-1]), 1)


def linear_by_chunks(params: Any, x: HeadsAndState) -> Passed:
    q, k = jax.nn.elu(x.heads.q) + 1, jax.nn.elu(x.heads.k) + 1
    v = jnp.concatenate([x.heads.v, jnp.ones((*x.heads.v.shape[:-1], 1))], -1)
    y, state = naive_chunks(x.heads._replace(q=q, k=k, v=v), jnp.ones_like(k), state=x.state)
    return Passed(y[..., :-1] / y[..., -1:], state)


def scanned_by_chunks(params: Any, x: Selective) -> Passed:
    s = jax.nn.softplus(x.delta + params.bias[None, None])[..., None]
    a = jnp.exp(s * -jnp.exp(params.log_A)[None, None])
    if x.segments is not None:
        a = jnp.where(begins(x.segments)[..., None, None], 0, a)
    h, last = naive_affine_chunks(a, s * x.u[..., None] * x.B[:, :, None], x.state)
    return Passed(jnp.sum(h * x.C[:, :, None], -1) + params.D[None, None] * x.u, last)


def dual_by_chunks(params: Any, x: SelectiveHeads) -> Passed:
    s = jax.nn.softplus(x.delta + params.bias[None, None])[..., None]
    k, q = (jnp.repeat(z, N // K, 2) for z in (x.B, x.C))
    gate = jnp.exp(s * -jnp.exp(params.log_A)[None, None, :, None])
    y, last = naive_chunks(Heads(q, k, s * x.u, q_segments=x.segments), gate, None, x.state)
    return Passed(y + params.D[None, None, :, None] * x.u, last)


def product_by_chunks(params: Any, x: ProductHeads) -> Passed:
    """The delta rule on n times as many steps, whose outputs are read every n-th."""
    n = x.k.shape[2]
    k, v, beta = (z.reshape(B, -1, *z.shape[3:]) for z in x[1:4])
    is_first = (jnp.arange(k.shape[1]) % n == 0)[None, :, None]
    gate = jnp.where(is_first, jnp.repeat(jnp.exp(x.log_gate), n, 1), 1)
    ids = None if x.q_segments is None else jnp.repeat(x.q_segments, n, 1)
    heads = Heads(jnp.repeat(x.q, n, 1), k, v, q_segments=ids)
    y, last = naive_chunks(heads, gate[..., None], beta[..., None], x.state)
    return Passed(y[:, n - 1 :: n], last)


def self_reading_by_chunks(params: Any, x: SelfReadingHeads) -> Passed:
    """All steps as one chunk: each state is what was written before, times the matrices of the steps between."""
    q, k, v = (jnp.moveaxis(jnp.repeat(z, N // z.shape[2], 2), 2, 1) for z in x.heads[:3])
    g, a, b = (jnp.moveaxis(jnp.repeat(z, N // K, 2), 2, 1) for z in (x.log_gate, x.a, x.b))
    M = jnp.exp(g)[..., None] * jnp.eye(D)[None, None, None] + b[..., None] * a[..., None, :]
    if x.heads.q_segments is not None:
        M = jnp.where(begins(x.heads.q_segments)[:, None, :, None, None], 0, M)
    states, before = [], jnp.repeat(x.state, N // K, 1)
    for t in range(M.shape[2]):
        left, S = jnp.broadcast_to(jnp.eye(D), (B, N, D, D)), jnp.zeros_like(before)
        for s in range(t, -1, -1):
            S = S + left @ (k[:, :, s, :, None] * v[:, :, s, None])
            left = left @ M[:, :, s]
        states.append(S + left @ before)
    y = jnp.stack([jnp.einsum("bnd,bnde->bne", q[:, :, t], S) for t, S in enumerate(states)], 1)
    return Passed(y, states[-1][:, :: N // K])


FORMS = {
    "linear_attention": Form({}, lambda T: HeadsAndState(heads(T), real(B, K, D, E + 1, low=0.1)), linear_by_chunks),
    "retention": Form(
        {},
        lambda T: GatedHeads(heads(T), gates(B, T, K), real(B, K, D, E)),
        lambda _, x: naive_chunks(x.heads, jnp.exp(x.log_gate)[..., None], None, x.state),
    ),
    "gated_linear_attention": Form(
        {},
        lambda T: GatedHeads(heads(T), gates(B, T, K, D), real(B, K, D, E)),
        lambda _, x: naive_chunks(x.heads, jnp.exp(x.log_gate), None, x.state),
    ),
    "delta_rule": Form(
        {},
        lambda T: DeltaHeads(heads(T), real(B, T, K, low=0), gates(B, T, K), real(B, K, D, E)),
        lambda _, x: naive_chunks(x.heads, jnp.exp(x.log_gate)[..., None], x.beta[..., None], x.state),
    ),
    "delta_product": Form(
        {},
        lambda T: ProductHeads(
            *(real(B, T, N, D), real(B, T, 3, K, D), real(B, T, 3, K, E), real(B, T, 3, K, low=0)),
            *(gates(B, T, K), real(B, K, D, E)),
        ),
        product_by_chunks,
    ),
    "kimi_delta_attention": Form(
        {},
        lambda T: DeltaHeads(heads(T), real(B, T, K, low=0), gates(B, T, K, D), real(B, K, D, E)),
        lambda _, x: naive_chunks(x.heads, jnp.exp(x.log_gate), x.beta[..., None], x.state),
    ),
    "generalized_delta_rule": Form(
        {},
        lambda T: SelfReadingHeads(
            heads(T), gates(B, T, K, D), real(B, T, K, D), real(B, T, K, D), real(B, K, D, E, low=0.1)
        ),
        self_reading_by_chunks,
    ),
    "selective_scan": Form(
        {"states": 4},
        lambda T: Selective(*(real(B, T, n) for n in (D, D, 4, 4)), real(B, D, 4)),
        scanned_by_chunks,
    ),
    "state_space_dual": Form(
        {},
        lambda T: SelectiveHeads(real(B, T, N, E), real(B, T, N), *(real(B, T, K, D) for _ in "BC"), real(B, N, D, E)),
        dual_by_chunks,
    ),
    "mamba_block": Form(
        {"states": 4, "rank": 2, "window": 3, "expand": 2},
        lambda T: MambaSteps(real(B, T, D), MambaState(real(B, 2, 2 * D), real(B, 2 * D, 4))),
    ),
}
