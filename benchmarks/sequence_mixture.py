"""Contests of the mixture of experts: the hand's ragged layer beside every expert on every token under autodiff."""

import jax
import jax.numpy as jnp

import bpref
from benchmarks.contest import Contest
from bpref.rules.mixture.mixture_of_experts import reference


def contests(tokens: int = 4096, d: int = 256, experts: int = 8, hidden: int = 512) -> list[Contest]:
    """The objective is a weighted sum of all outputs; the gradients are of parameters and tokens."""
    layer = bpref.mixture_of_experts(experts, hidden)
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (tokens, d))
    params = layer.init(keys[1], x)
    weight = jax.random.normal(keys[2], (tokens, d))

    def objective(mixed, weight):
        return jnp.vdot(mixed.y, weight) + 1e-2 * mixed.balance + 1e-3 * mixed.z

    def hand(params, x, weight):
        mixed, cache = layer.forward(params, x)
        dy = type(mixed)(weight, jnp.full((), 1e-2), jnp.full((), 1e-3))
        return objective(mixed, weight), layer.backward(params, cache, dy)

    def rival(f):
        return jax.value_and_grad(lambda params, x, weight: objective(f(params, x), weight), argnums=(0, 1))

    name = f"mixture of experts, {tokens} tokens, {experts} experts, 2 each"
    rivals = {"every expert on every token": rival(lambda params, x: reference(params, x, experts, hidden))}
    own = rival(lambda params, x: layer.forward(params, x)[0])
    return [Contest(name, hand, own, rivals, (params, x, weight), memory_bound=1.0, time_bound=1.0)]
