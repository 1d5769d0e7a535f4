"""The models written out as a user of JAX would write them, on the params of ours: what autodiff has to beat, or to be.

Blocks of text are scanned, as ours are; those of images are not, since XLA has no fast convolution in a loop on a CPU.
Each is held to the model itself by a test.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from benchmarks import plain_sequences
from bpref.models.gpt_config import GptConfig
from bpref.models.mixture import MixtureConfig
from bpref.rules import RULES
from bpref.rules.mixture import mixture_of_experts

Attention = Callable[[Array, Array, Array], Array]
"""q, k, v, (B, T, N, D), to o: causal."""


def all_logits(q: Array, k: Array, v: Array) -> Array:
    """Softmax over a matrix of T x T logits for each head."""
    s = jnp.einsum("binD,bjnD->bnij", q, k) / q.shape[-1] ** 0.5
    seen = np.tri(q.shape[1], dtype=bool)
    p = jax.nn.softmax(jnp.where(seen, s, -jnp.inf), -1)
    return jnp.einsum("bnij,bjnD->binD", p, v)


def of_jax(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def rms_norm(scale: Array, x: Array, eps: float) -> Array:
    return x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale


def turned(u: Array, base: float) -> Array:
    """RoPE of halves."""
    T, half = u.shape[1], u.shape[-1] // 2
    angle = np.arange(T)[:, None] * base ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(f(angle), u.dtype)[:, None] for f in (np.cos, np.sin))
    a, b = jnp.split(u, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attended(c: GptConfig | MixtureConfig, p: Any, x: Array, attention: Attention) -> Array:
    """x and what attention adds to it."""
    D, K = c.width // c.heads, c.kv_heads or c.heads
    z = (rms_norm(p.norm.scale, x, c.eps) @ p.W_qkv.T).reshape(*x.shape[:-1], c.heads + 2 * K, D)
    q, k, v = jnp.split(z, (c.heads, c.heads + K), -2)
    q, k = (turned(u, c.rope or 1e4) for u in (q, k))
    k, v = (jnp.repeat(u, c.heads // K, -2) for u in (k, v))
    return x + attention(q, k, v).reshape(x.shape) @ p.W_o.T


def gated(p: Any, x: Array, eps: float) -> Array:
    """x and what Llama's MLP adds to it."""
    u, t = jnp.split(rms_norm(p.norm.scale, x, eps) @ p.W_in.T, 2, -1)
    return x + (u * jax.nn.silu(t)) @ p.W_out.T


def cross_entropy(h: Array, W: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(h @ W.T, labels).mean()


def gpt(c: GptConfig, attention: Attention = all_logits, policy: Any = None) -> Callable[[Any, Any], Array]:
    """Llama's decoder, `(params, (ids, labels)) -> J`; `policy` is `jax.checkpoint`'s for each block, if any."""

    def block(x, p):
        return gated(p.mlp, attended(c, p.attention, x, attention), c.eps), None

    def J(params, x):
        ids, labels = x
        body = params["body"]
        h, _ = lax.scan(jax.checkpoint(block, policy=policy) if policy else block, body["embed"].W[ids], body["blocks"])
        return cross_entropy(rms_norm(body["norm"].scale, h, c.eps), params["head"].W, labels)

    return J


def of_blocks(block: Callable[[Any, Array], Array], eps: float = 1e-6) -> Callable[[Any, Any], Array]:
    """A model of text with other blocks."""

    def J(params, x):
        ids, labels = x
        body = params["body"]
        h, _ = lax.scan(lambda h, p: (block(p, h), None), body["embed"].W[ids], body["blocks"])
        return cross_entropy(rms_norm(body["norm"].scale, h, eps), params["head"].W, labels)

    return J


def lstm_block(p: Any, x: Array) -> Array:
    xhat = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return x + plain_sequences.lstm(p.lstm, xhat * p.scale + p.shift).y @ p.W.T + p.b


def mixture(c: MixtureConfig, attention: Attention = all_logits) -> Callable[[Any, Any], Array]:
    """Mixtral's decoder, every expert on every token, and the router's losses in J."""

    def block(h, p):
        h, penalty = h
        h = attended(c, p["attention"]["x"], h, attention)
        experts, x = p["experts"], rms_norm(p["experts"]["norm"]["x"].scale, h, c.eps)
        mixed = mixture_of_experts.reference(experts["experts"]["x"], x, c.experts, c.hidden, c.k)
        return (h + mixed.y, penalty + c.balance_weight * mixed.balance + c.z_weight * mixed.z), None

    def J(params, x):
        ids, labels = x
        body = params["body"]
        start = body["embed"]["tokens"].W[ids], jnp.zeros(())
        (h, penalty), _ = lax.scan(block, start, body["blocks"])
        h = rms_norm(body["norm"]["x"].scale, h, c.eps)
        return cross_entropy(h, params["head"]["product"]["x"].W, labels) + penalty

    return J


def lenet(params: Any, x: Array) -> Array:
    """Images (N, H, W, C) to logits."""

    def halved(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4

    x = halved(jnp.tanh(convolved(params["C1"][0], x, 1, "SAME")))
    x = halved(jnp.tanh(convolved(params["C3"][0], x, 1, "VALID")))
    x = jnp.tanh(convolved(params["C5"][0], x, 1, "VALID"))[:, 0, 0]
    x = jnp.tanh(x @ params["F6"][0].W.T + params["F6"][0].b[None])
    return x @ params["head"].W.T + params["head"].b[None]


def convolved(p: Any, x: Array, stride: int, padding: Any) -> Array:
    z = lax.conv_general_dilated(x, p.W, (stride,) * 2, padding, None, None, ("NHWC", "OHWI", "NHWC"))
    return z if p.b is None else z + p.b[None, None, None]


def resnet(params: Any, x: Array, bottleneck: bool = False, small: bool = False) -> Array:
    """Images to logits, with statistics of the batch."""

    def normed(p, x, stride, relu=True):
        W, norm = p
        k = W.W.shape[1] // 2
        z = convolved(W, x, stride, ((k, k),) * 2)
        z = (z - z.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(z.var((0, 1, 2), keepdims=True) + 1e-5)
        z = norm.scale[None, None, None] * z + norm.shift[None, None, None]
        return jax.nn.relu(z) if relu else z

    def f(p, x, stride):
        pairs = [p[i : i + 2] for i in range(0, len(p), 3)]
        at = 1 if bottleneck else 0
        for i, pair in enumerate(pairs):
            x = normed(pair, x, stride if i == at else 1, i < len(pairs) - 1)
        return x

    def stage(p, x, halves):
        first = p["first"]
        if halves or bottleneck:
            shortcut, inner = first[0]
            stride = 2 if halves else 1
            x = jax.nn.relu(normed(shortcut, x, stride, False) + f(inner, x, stride))
        else:
            x = jax.nn.relu(x + f(first[0], x, 1))
        for l in range(len(jax.tree.leaves(p["others"])[0]) if "others" in p else 0):
            x = jax.nn.relu(x + f(jax.tree.map(lambda v, l=l: v[l], p["others"])[0], x, 1))
        return x

    x = normed(params["stem"][:2], x, 1 if small else 2)
    if not small:
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, name in enumerate(n for n in params if n.startswith("stage")):
        x = stage(params[name], x, i > 0)
    return x.mean((1, 2)) @ params["head"].W.T + params["head"].b[None]


def vit(params: Any, x: Array, heads: int, patch: int) -> Array:
    """Images to logits."""
    x = convolved(params["patches"][0], x, patch, "VALID")
    x = x.reshape(x.shape[0], -1, x.shape[3]) + params["positions"].W[None]
    norm = RULES["layer_norm"].reference

    def block(x, p):
        hidden = p.mlp.W_out.shape[1]
        return RULES["transformer_block"].reference(
            p, x, heads, hidden, None, "gelu", False, "layer", None, False, None, True
        ), None

    x = norm(params["norm"], lax.scan(block, x, params["blocks"])[0], 1e-6).mean(1)
    return x @ params["head"].W.T + params["head"].b[None]


def mamba(p: Any, x: Array) -> Array:
    """The window as shifted products, and one token after the other."""
    norm, W_in, conv, W_x, W_delta, scan, W_out = p
    (T, window), (rank, states) = (x.shape[1], conv.W.shape[1]), (W_delta.shape[1], scan.log_A.shape[1])
    v, z = jnp.split(rms_norm(norm.scale, x, 1e-5) @ W_in.T, 2, -1)
    past = jnp.pad(v, ((0, 0), (window - 1, 0), (0, 0)))
    u = jax.nn.silu(sum(past[:, i : i + T] * conv.W[:, i, 0] for i in range(window)) + conv.b)
    R, B, C = jnp.split(u @ W_x.T, (rank, rank + states), -1)
    delta, A = jax.nn.softplus(R @ W_delta.T + scan.bias), -jnp.exp(scan.log_A)

    def step(h, at):
        u, delta, B, C = at
        h = jnp.exp(delta[..., None] * A) * h + (delta * u)[..., None] * B[:, None]
        return h, jnp.einsum("nek,nk->ne", h, C)

    along = tuple(jnp.moveaxis(of, 1, 0) for of in (u, delta, B, C))
    y = jnp.moveaxis(lax.scan(step, jnp.zeros_like(x, shape=(x.shape[0], *A.shape)), along)[1], 0, 1)
    return x + ((y + u * scan.D) * jax.nn.silu(z)) @ W_out.T
