"""The losses of language models beside the naive form: a linear layer's cross-entropy, and preferences."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import bpref
from benchmarks.contest import Contest
from bpref.layer import backpropagate
from bpref.rules.preference_loss import dpo
from bpref.rules.sequence_loss import fused_linear_cross_entropy

ROWS, WIDTH = 1024, 256
PAIRS = 1 << 20


def contests() -> list[Contest]:
    return [
        cross_entropy(32_000, memory_bound=0.15),
        cross_entropy(32_000, memory_bound=0.15, time_bound=0.95, rows=128),
        cross_entropy(128_000, memory_bound=0.08),
        cross_entropy(128_000, memory_bound=0.08, rows=128),
        preferences(),
    ]


def cross_entropy(
    vocabulary: int, memory_bound: float, time_bound: float | None = None, rows: int | None = None
) -> Contest:
    """The loss of 1,024 rows, and its gradients in W and h; the naive form has all logits at once."""
    layer = bpref.fused_linear_cross_entropy(vocabulary, rows=rows)
    h = jax.random.normal(jax.random.key(0), (ROWS, WIDTH))
    labels = jax.random.randint(jax.random.key(1), (ROWS,), 0, vocabulary)
    params = layer.init(jax.random.key(2), (h, labels))

    def naive(params, h, labels):
        return fused_linear_cross_entropy.reference(params, (h, labels), vocabulary)

    def library(params, h, labels):
        import optax

        return optax.losses.softmax_cross_entropy_with_integer_labels(h @ params.W.T, labels).mean()

    def hand(params, h, labels):
        return backpropagate(layer, params, (h, labels))

    rivals = {"jax.value_and_grad": _differentiated(library), "one-hot": _differentiated(naive)}
    name = f"fused linear cross-entropy, {vocabulary:,} classes{f', {rows} rows at once' if rows else ''}"
    return Contest(name, hand, rivals, (params, h, labels), memory_bound, time_bound)


def preferences() -> Contest:
    """The loss of 2^20 pairs and its four gradients."""
    x = tuple(-8 * jax.random.uniform(jax.random.key(i), (PAIRS,)) for i in range(4))
    rival = jax.value_and_grad(lambda x: dpo.reference((), x))
    hand = partial(backpropagate, bpref.dpo(), ())
    return Contest("dpo, 1,048,576 pairs", hand, {"jax.value_and_grad": rival}, (x,), 1.0, 1.0)


def _differentiated(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(loss, argnums=(0, 1))
