"""The losses of language models beside the naive form: cross-entropies, and preferences."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import bpref
from benchmarks.contest import Contest
from bpref.layer import backpropagate
from bpref.rules.preference_loss import dpo
from bpref.rules.sequence_loss import fused_linear_cross_entropy, sequence_cross_entropy

ROWS, WIDTH = 1024, 256
PAIRS = 1 << 20


def contests() -> list[Contest]:
    return [
        cross_entropy(32_000, memory_bound=0.15),
        cross_entropy(32_000, memory_bound=0.15, time_bound=0.95, rows=128),
        cross_entropy(128_000, memory_bound=0.08),
        cross_entropy(128_000, memory_bound=0.08, rows=128),
        padded_sequences(),
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

    def own(params, h, labels):
        return layer.forward(params, (h, labels))[0]

    rivals = {"jax.value_and_grad": _differentiated(library), "one-hot": _differentiated(naive)}
    name = f"fused linear cross-entropy, {vocabulary:,} classes{f', {rows} rows at once' if rows else ''}"
    return Contest(name, hand, _differentiated(own), rivals, (params, h, labels), memory_bound, time_bound)


def padded_sequences(B: int = 8, T: int = 128, vocabulary: int = 32_000) -> Contest:
    """The mean loss of a padded batch's real tokens, and its gradient in the logits.

    There is no bound on memory: the naive form allocates a few numbers for each token, the hand some hundreds, the sums
    of blocks of classes that keep 1 - p precise where p is nearly 1; both are little beside the logits.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    logits = jax.random.normal(keys[0], (B, T, vocabulary))
    labels = jax.random.randint(keys[1], (B, T), 0, vocabulary)
    lengths = jax.random.randint(keys[2], (B,), T // 2, T + 1)
    layer = bpref.sequence_cross_entropy()

    def hand(logits, labels, lengths):
        J, cache = layer.forward((), (logits, labels, lengths))
        return J, layer.backward((), cache, jnp.ones_like(J))[1][0]

    def library(logits, labels, lengths):
        import optax

        real = jnp.arange(T)[None] < lengths[:, None]
        terms = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(jnp.where(real, terms, 0)) / jnp.maximum(1, jnp.sum(real))

    def one_hot(logits, labels, lengths):
        return sequence_cross_entropy.reference((), (logits, labels, lengths))

    def own(logits, labels, lengths):
        return layer.forward((), (logits, labels, lengths))[0]

    name = f"sequence cross-entropy, {B} x {T} tokens, {vocabulary:,} classes"
    rivals = {"jax.value_and_grad": jax.value_and_grad(library), "one-hot": jax.value_and_grad(one_hot)}
    return Contest(name, hand, jax.value_and_grad(own), rivals, (logits, labels, lengths), time_bound=1.05)


def preferences() -> Contest:
    """The loss of 2^20 pairs and its four gradients."""
    x = tuple(-8 * jax.random.uniform(jax.random.key(i), (PAIRS,)) for i in range(4))
    layer = bpref.dpo()
    own, rival = map(jax.value_and_grad, (lambda x: layer.forward((), x)[0], lambda x: dpo.reference((), x)))
    hand = partial(backpropagate, layer, ())
    return Contest("dpo, 1,048,576 pairs", hand, own, {"jax.value_and_grad": rival}, (x,), 1.0, 1.0)


def _differentiated(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(loss, argnums=(0, 1))
