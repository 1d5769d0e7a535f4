"""Softmax attention of 8 heads of 64: in blocks by hand, beside all logits at once, and JAX's own function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bpref
from benchmarks.contest import Contest, by_hand, gradients, gradients_of_own
from bpref.formulas.attention.heads import Heads

N, D, WINDOW = 8, 64, 256
LENGTHS = (1024, 2048, 4096, 8192)


def contests() -> list[Contest]:
    return [causal(2048), windowed(2048)]


def causal(T: int) -> Contest:
    rivals = {"all logits at once": gradients(_naive(None)), "jax.nn.dot_product_attention": gradients(_library(None))}
    layer = bpref.blockwise_attention(causal=True)
    return Contest(
        f"causal attention, T {T}", by_hand(layer), gradients_of_own(layer), rivals, _arguments(layer, T), 0.08, 0.45
    )


def windowed(T: int) -> Contest:
    rivals = {
        "all logits at once": gradients(_naive(WINDOW)),
        "jax.nn.dot_product_attention": gradients(_library(WINDOW)),
    }
    layer = bpref.blockwise_attention(causal=True, window=WINDOW)
    return Contest(
        f"window of {WINDOW}, T {T}", by_hand(layer), gradients_of_own(layer), rivals, _arguments(layer, T), 0.08, 0.45
    )


SERIES = {"causal attention": causal, f"window of {WINDOW}": windowed}
"""What is measured at all `LENGTHS`, by hand alone."""


def _arguments(layer: bpref.Layer, T: int) -> tuple[Any, ...]:
    q, k, v, w = (jax.random.normal(key, (1, T, N, D)) for key in jax.random.split(jax.random.key(0), 4))
    x = Heads(q, k, v)
    return layer.init(jax.random.key(1), x), x, w


def _naive(window: int | None):
    def attention(params, x: Heads) -> Array:
        T = x.q.shape[1]
        back = np.arange(T)[:, None] - np.arange(T)[None, :]
        seen = (back >= 0) & (back < (window or T))
        logits = jnp.einsum("btnd,bsnd->bnts", x.q, x.k) * D**-0.5
        return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), x.v)

    return attention


def _library(window: int | None):
    def attention(params, x: Heads) -> Array:
        back = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(x.q, x.k, x.v, is_causal=True, local_window_size=back)

    return attention
