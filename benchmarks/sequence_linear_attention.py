"""Attention with a state, at T = 2048, 8 heads of 64: bpref's chunks beside a scan over the steps, and other forms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import plain_sequences
from benchmarks.contest import Contest
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.plain_heads import DeltaHeads, GatedHeads
from bpref.rules import RULES

T, N, D = 2048, 8, 64

CHUNKS = {
    "linear_attention": plain_sequences.normalized_linear_attention,
    "retention": plain_sequences.retention,
    "gated_linear_attention": plain_sequences.gated_linear_attention,
    "delta_rule": plain_sequences.delta_rule,
}


def contests() -> list[Contest]:
    """Value and gradient of <y, w>, one batch."""
    *qkv, noise, w = (jax.random.normal(key, (1, T, N, D)) for key in jax.random.split(jax.random.key(0), 5))
    q, k, v = qkv
    heads = Heads(q, k, v)
    unit = heads._replace(k=k / jnp.linalg.norm(k, axis=-1, keepdims=True))
    gates = jax.nn.log_sigmoid(noise + 3)
    gate, beta = gates[..., 0], jax.nn.sigmoid(noise[..., 1])
    return [
        _contest("linear_attention", heads, w, _linear),
        _contest("retention", GatedHeads(heads, gate), w, _retention),
        _contest("gated_linear_attention", GatedHeads(heads, gates), w),
        _contest("delta_rule", DeltaHeads(unit, beta), w),
        _contest("delta_rule", DeltaHeads(unit, beta, gate), w, what="gated delta_rule"),
    ]


def _contest(
    name: str, x: Any, w: Array, quadratic: Callable[[Any], Array] | None = None, what: str | None = None
) -> Contest:
    rule = RULES[name]
    layer = rule.make()

    def hand(x, w):
        y, cache = layer.forward((), x)
        return jnp.vdot(y, w), layer.backward((), cache, w)[1]

    def rival(f):
        return jax.value_and_grad(lambda x, w: jnp.vdot(f(x), w))

    rivals = {"scan over the steps": rival(lambda x: rule.reference((), x))}
    if quadratic is not None:
        rivals["T x T weights"] = rival(quadratic)
    rivals["the paper's chunks"] = rival(partial(CHUNKS[name], ()))
    title = f"{what or name}, T {T}, {N} heads of {D}"
    own = rival(lambda x: layer.forward((), x)[0])
    return Contest(title, hand, own, rivals, (x, w), memory_bound=0.25, time_bound=0.5)


def _linear(x: Heads) -> Array:
    a, b = jax.nn.elu(x.q) + 1, jax.nn.elu(x.k) + 1
    weights = jnp.where(_past(), jnp.einsum("btnd,bsnd->bnts", a, b), 0)
    return jnp.einsum("bnts,bsne->btne", weights / weights.sum(-1, keepdims=True), x.v)


def _retention(x: GatedHeads) -> Array:
    sums = jnp.moveaxis(jnp.cumsum(x.log_gate, 1), 1, 2)
    remaining = jnp.exp(jnp.where(_past(), sums[..., :, None] - sums[..., None, :], -jnp.inf))
    weights = jnp.einsum("btnd,bsnd->bnts", x.heads.q, x.heads.k) * remaining
    return jnp.einsum("bnts,bsne->btne", weights, x.heads.v)


def _past() -> Array:
    return jnp.tril(jnp.ones((T, T), bool))[None, None]
