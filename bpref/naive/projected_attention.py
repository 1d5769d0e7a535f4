"""Attention between its projections as it is written down, with the weights that it takes means by."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.rotations import Stretch
from bpref.formulas.attention.sequences import Sequences
from bpref.formulas.attention.softmax_attention import Weighted
from bpref.naive.attention import naive_attention
from bpref.naive.dense import naive_affine, naive_norm
from bpref.naive.rotation import naive_rotation


def naive_projected_attention(
    params: PyTree,
    given: Sequences,
    heads: int,
    kv_heads: int | None,
    eps: float,
    rope: float | None,
    interleaved: bool,
    fraction: float,
    stretch: Stretch | None,
    weights: str | None,
    add_zero_attn: bool,
    **of_logits,
) -> Array | Weighted:
    """y, or `Weighted` with the weights of each head, or of their mean."""
    memory = given.x if given.memory is None else given.memory
    K = heads if kv_heads is None else kv_heads
    q = by_head(naive_affine(params.W_q, params.b_q, given.x), heads)
    k = by_head(naive_affine(params.W_k, params.b_k, memory), K)
    v = by_head(naive_affine(params.W_v, params.b_v, memory if given.values is None else given.values), K)
    if params.norm is not None:
        q, k = (naive_norm(z, scale, None, eps) for z, scale in zip((q, k), params.norm, strict=True))
    if rope is not None:
        q, k = (naive_rotation(a, rope, interleaved, fraction, stretch) for a in (q, k))
    at = Heads(q, k, v, given.mask, given.bias, given.segments, given.memory_segments, given.key)
    if params.bias_k is not None or add_zero_attn:
        learned = [] if params.bias_k is None else [(params.bias_k, params.bias_v)]
        at, of_logits = with_more_keys(at, learned, add_zero_attn, **of_logits)
    o = naive_attention(params.attention, at, **of_logits)
    y = naive_affine(params.W_o, params.b_o, o.reshape(*o.shape[:-2], o.shape[-2] * o.shape[-1]))
    if weights is None:
        return y
    p = weights_of(params, at, **of_logits)
    return Weighted(y, p if weights == "heads" else jnp.mean(p, -3))


def by_head(a: Array, n: int) -> Array:
    """(*b, T, n D) as (*b, T, n, D)"""
    return a.reshape(*a.shape[:-1], n, a.shape[-1] // n)


def weights_of(params: PyTree, at: Heads, **of_logits) -> Array:
    """(*b, N, T, S): what attention makes of values that are rows of the identity."""
    S = at.k.shape[-3]
    eye = jnp.broadcast_to(jnp.eye(S, dtype=at.q.dtype)[:, None], (*at.k.shape[:-1], S))
    return jnp.moveaxis(naive_attention(params.attention, at._replace(v=eye), **of_logits), -2, -3)


def with_more_keys(
    at: Heads,
    learned: list[tuple[Array, Array]],
    zeros: bool,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    **of_logits,
) -> tuple[Heads, dict]:
    """The learned keys and one of zeros behind all others; what hides a key is a mask, which hides none of these."""
    *b, T, N, _ = at.q.shape
    S, (K, D) = at.k.shape[-3], at.k.shape[-2:]
    nothing = jnp.zeros(K * D, at.k.dtype)
    more = [*learned, *([(nothing, nothing)] if zeros else [])]
    k, v = (
        jnp.concatenate([a, *(jnp.broadcast_to(m.reshape(K, D), (*b, 1, K, D)) for m in of_a)], -3)
        for a, of_a in zip((at.k, at.v), zip(*more, strict=True), strict=True)
    )
    seen = np.ones((*b, N, T, S), bool)
    for t in range(T):
        for s in range(S):
            left, right = window if isinstance(window, tuple) else (T + S if window is None else window - 1,) * 2
            seen[..., t, s] = (not causal or s <= t) and t - left <= s <= t + right
    mask = jnp.asarray(seen) if at.mask is None else jnp.asarray(seen) & at.mask
    if at.q_segments is not None:
        of_k = at.q_segments if at.kv_segments is None else at.kv_segments
        mask = mask & (at.q_segments[..., None, :, None] == of_k[..., None, None, :])
    mask = jnp.concatenate([mask, jnp.ones((*b, N, T, len(more)), bool)], -1)
    bias = at.bias
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*b, N, T, S))
        bias = jnp.concatenate([bias, jnp.zeros((*b, N, T, len(more)), bias.dtype)], -1)
    return Heads(at.q, k, v, mask, bias, key=at.key), of_logits
