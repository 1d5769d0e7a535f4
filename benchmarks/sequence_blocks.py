"""A transformer block beside autodiff's under every checkpoint policy, and a reversible stack beside a stored one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import bpref
from benchmarks.contest import Contest
from bpref.layer import Layer
from bpref.rules.block import transformer_block

T, D, HEADS = 1024, 512, 8

POLICIES = {
    "everything_saveable": jax.checkpoint_policies.everything_saveable,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def contests() -> list[Contest]:
    return [
        transformer("SwiGLU 8/3, RMS norm, RoPE", hidden=8 * D // 3),
        transformer(
            "GELU 4, layer norm", hidden=4 * D, activation="gelu", gated=False, norm="layer", rope=None, bias=True
        ),
    ]


def transformer(name: str, **hyper: Any) -> Contest:
    """One block's loss, sum(y w), and its gradients in params and x; the naive block has logits of T x T."""
    layer = bpref.transformer_block(HEADS, **hyper)
    x, w = (jax.random.normal(jax.random.key(i), (1, T, D)) for i in (0, 1))
    params = layer.init(jax.random.key(2), x)

    def naive(params, x):
        return transformer_block.reference(params, x, HEADS, **hyper)

    rivals = {"jax.grad": gradients(naive)}
    rivals |= {f"checkpoint, {name}": gradients(jax.checkpoint(naive, policy=p)) for name, p in POLICIES.items()}
    rivals["checkpoint, whole block"] = gradients(jax.checkpoint(naive))
    return Contest(f"transformer block, {name}, T {T}, d {D}", by_hand(layer), rivals, (params, x, w), 1.0, 1.0)


def by_hand(layer: Layer) -> Callable[..., Any]:
    def run(params, x, w):
        y, cache = layer.forward(params, x)
        return jnp.vdot(y, w), layer.backward(params, cache, w)

    return run


def gradients(f: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(lambda params, x, w: jnp.vdot(f(params, x), w), argnums=(0, 1))
