"""Plain forms of attention and of recurrences: `(params, x) -> y` of the cases that are timed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.plain_heads import DeltaHeads, GatedHeads
from bpref.formulas.recurrence.steps import Passed
from bpref.rules.recurrence.bidirectional import Both
from bpref.rules.recurrence.lstm import LstmState


def softmax_attention(params: Any, x: Heads) -> Array:
    return jax.nn.dot_product_attention(x.q, x.k, x.v, is_causal=True)


def linear_attention(params: Any, x: Heads) -> Array:
    """No gates, no features, no normalization."""
    return retention((), GatedHeads(x, jnp.zeros(x.k.shape[:-1], x.k.dtype)))


def normalized_linear_attention(params: Any, x: Heads) -> Array:
    """Features elu + 1, and the sum of the weights as one more feature of v."""
    v = jnp.concatenate([x.v, jnp.ones((*x.v.shape[:-1], 1), x.v.dtype)], -1)
    o = linear_attention((), Heads(jax.nn.elu(x.q) + 1, jax.nn.elu(x.k) + 1, v))
    return o[..., :-1] / o[..., -1:]


def retention(params: Any, x: GatedHeads, L: int = 64) -> Array:
    """The paper's chunks: all L x L weights within one, and a state between them."""
    L = min(L, x.log_gate.shape[1])
    q, k, v = (_chunks(z, L) for z in x.heads[:3])
    left = jnp.cumsum(_chunks(jnp.maximum(x.log_gate, -1e4)[..., None], L), -2)
    inside = ((q @ jnp.swapaxes(k, -1, -2)) * _remaining(left)) @ v
    q, whole = q * jnp.exp(left), jnp.exp(left[..., -1:, :])
    k = k * jnp.exp(left[..., -1:, :] - left)

    def step(S, chunk):
        q, k, v, whole = chunk
        return whole * S + jnp.swapaxes(k, -1, -2) @ v, q @ S

    return _steps(inside + lax.scan(step, _no_state(k, v), (q, k, v, whole))[1])


def _remaining(left: Array) -> Array:
    """What the gates leave of each step of a chunk at each later one, from their sums (..., L, 1)."""
    past = jnp.tril(jnp.ones((left.shape[-2],) * 2, bool))[None, None, None]
    return jnp.exp(jnp.where(past, left - jnp.swapaxes(left, -1, -2), -jnp.inf))


def gated_linear_attention(params: Any, x: GatedHeads, L: int = 16) -> Array:
    """The paper's chunks, short enough for what the gates leave of each feature between any two steps."""
    q, k, v, g = (_chunks(z, L) for z in (*x.heads[:3], jnp.maximum(x.log_gate, -1e4)))
    left = jnp.cumsum(g, -2)
    past = jnp.tril(jnp.ones((L, L), bool))[None, None, None, :, :, None]
    remaining = jnp.exp(jnp.where(past, left[..., :, None, :] - left[..., None, :, :], -jnp.inf))
    inside = jnp.einsum("cbntd,cbnsd,cbntsd->cbnts", q, k, remaining) @ v
    q, whole = q * jnp.exp(left), jnp.exp(left[..., -1:, :])
    k = k * jnp.exp(left[..., -1:, :] - left)

    def step(S, chunk):
        q, k, v, whole = chunk
        return jnp.swapaxes(whole, -1, -2) * S + jnp.swapaxes(k, -1, -2) @ v, q @ S

    return _steps(inside + lax.scan(step, _no_state(k, v), (q, k, v, whole))[1])


def delta_rule(params: Any, x: DeltaHeads, L: int = 32) -> Array:
    """The paper's chunks: the triangular system of what is written within one is inverted by squaring."""
    q, k, v = (_chunks(z, L) for z in x.heads[:3])
    gate = jnp.zeros_like(x.beta) if x.log_gate is None else x.log_gate
    beta, g = (_chunks(z[..., None], L) for z in (x.beta, gate))
    left = jnp.cumsum(g, -2)
    remaining = _remaining(left)
    k_t = jnp.swapaxes(k, -1, -2)
    power = -jnp.tril(beta * (k @ k_t) * remaining, -1)
    inverse = jnp.eye(L)[None, None, None] + power
    for _ in range((L - 1).bit_length() - 1):
        power = power @ power
        inverse = inverse + inverse @ power
    u, w = inverse @ (beta * v), inverse @ (beta * jnp.exp(left) * k)
    weights = (q @ k_t) * remaining
    q, whole = q * jnp.exp(left), jnp.exp(left[..., -1:, :])
    k_t = k_t * jnp.swapaxes(jnp.exp(left[..., -1:, :] - left), -1, -2)

    def step(S, chunk):
        q, k_t, u, w, weights, whole = chunk
        written = u - w @ S
        return whole * S + k_t @ written, q @ S + weights @ written

    return _steps(lax.scan(step, _no_state(k, v), (q, k_t, u, w, weights, whole))[1])


def _chunks(z: Array, L: int) -> Array:
    """(B, T, N, D) -> (T / L, B, N, L, D)."""
    B, T, N, D = z.shape
    return jnp.transpose(z.reshape(B, T // L, L, N, D), (1, 0, 3, 2, 4))


def _steps(z: Array) -> Array:
    """The way back."""
    C, B, N, L, D = z.shape
    return jnp.transpose(z, (1, 0, 3, 2, 4)).reshape(B, C * L, N, D)


def _no_state(k: Array, v: Array) -> Array:
    return jnp.zeros((*k.shape[1:3], k.shape[-1], v.shape[-1]), v.dtype)


def _unrolled(step: Callable[..., Any], start: Any, inputs: Array, reverse: bool = False) -> Passed:
    """A scan over the steps of what the inputs give, (T, B, m), made outside of it by one product."""
    state, y = lax.scan(step, start, inputs, reverse=reverse)
    return Passed(jnp.swapaxes(y, 0, 1), state)


def _by_time(x: Array, W: Array, b: Array) -> Array:
    return jnp.swapaxes(x, 0, 1) @ W.T + b[None, None]


def lstm(params: Any, x: Array, reverse: bool = False) -> Passed:
    def step(state, z):
        h, c = state
        i, f, g, o = jnp.split(z + h @ params.U.T, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return LstmState(h, c), h

    zeros = jnp.zeros((x.shape[0], params.U.shape[1]), x.dtype)
    return _unrolled(step, LstmState(zeros, zeros), _by_time(x, params.W, params.b), reverse)


def bidirectional(params: Any, x: Array) -> Passed:
    ahead, back = lstm(params[0], x), lstm(params[1], x, reverse=True)
    return Passed(jnp.concatenate([ahead.y, back.y], -1), Both(ahead.state, back.state))


def gru(params: Any, x: Array) -> Passed:
    H = params.U.shape[1]

    def step(h, z):
        u = h @ params.U.T
        r, keep = jnp.split(jax.nn.sigmoid(z[:, : 2 * H] + u[:, : 2 * H]), 2, -1)
        n = jnp.tanh(z[:, 2 * H :] + r * (u[:, 2 * H :] + params.v[None]))
        h = (1 - keep) * n + keep * h
        return h, h

    return _unrolled(step, jnp.zeros((x.shape[0], H), x.dtype), _by_time(x, params.W, params.b))


def rnn(params: Any, x: Array) -> Passed:
    def step(h, z):
        h = jnp.tanh(z + h @ params.U.T)
        return h, h

    return _unrolled(step, jnp.zeros((x.shape[0], params.U.shape[1]), x.dtype), _by_time(x, params.W, params.b))


PLAIN: dict[str, Callable[..., Any]] = {
    "dot_product_attention": softmax_attention,
    "blockwise_attention": softmax_attention,
} | {
    f.__name__: f
    for f in (linear_attention, retention, gated_linear_attention, delta_rule, lstm, bidirectional, gru, rnn)
}
