"""A transformer block beside autodiff's under every checkpoint policy, and a reversible stack beside a stored one."""

from typing import Any

import jax
from jax import lax

import bpref
from benchmarks.contest import Contest, by_hand, gradients, gradients_of_own
from bpref.rules.block import attention_block, mlp_block, transformer_block
from bpref.rules.block.reversible_block import ReversibleBlockParams

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
        reversible_stack(8),
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
    return Contest(
        f"transformer block, {name}, T {T}, d {D}",
        by_hand(layer),
        gradients_of_own(layer),
        rivals,
        (params, x, w),
        1.0,
        1.0,
    )


def reversible_stack(depth: int) -> Contest:
    """`depth` couplings in one scan: by hand the last y alone is kept, and temporary memory does not grow with it."""
    f, g = bpref.attention_block(HEADS), bpref.mlp_block(D)
    x = tuple(jax.random.normal(jax.random.key(i), (1, T, D)) for i in (0, 1))
    w = tuple(jax.random.normal(jax.random.key(i), (1, T, D)) for i in (2, 3))
    layer = bpref.reversible(f, g, depth)
    params = layer.init(jax.random.key(4), x)

    def naive(remat):
        def coupling(x, slices):
            p, q = slices
            y1 = x[0] + attention_block.reference(p, x[1], HEADS)
            return (y1, x[1] + mlp_block.reference(q, y1, D)), None

        body = jax.checkpoint(coupling) if remat else coupling
        return gradients(lambda params, x: lax.scan(body, x, params)[0])

    rivals = {"jax.grad": naive(remat=False), "checkpoint, every block": naive(remat=True)}
    stored = bpref.scan(bpref.reversible_block(HEADS, D), depth)

    def stored_by_hand(params, x, w):
        return by_hand(stored)(ReversibleBlockParams(*params), x, w)

    rivals["bpref.scan, every y kept"] = stored_by_hand
    return Contest(
        f"reversible stack, depth {depth}, T {T}, d {D}",
        by_hand(layer),
        gradients_of_own(layer),
        rivals,
        (params, x, w),
        1.0,
        1.0,
    )
