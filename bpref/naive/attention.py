"""Attention as it is written down: what the layers that make no T x S, or make it again, are held against.

Hyperparameters are those of `dot_product_attention`, by name; what else a layer is called with is passed over.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.naive.distances import bucket, slope
from bpref.naive.dropout import naive_kept


def naive_attention(params: AttentionParams, x: Heads, dropout: float = 0.0, **of_logits) -> Array:
    """y: every logit at once, keys and values repeated for each head."""
    S, N, front = x.k.shape[-3], x.q.shape[-2], (1,) * (x.q.ndim - 3)
    v = jnp.repeat(x.v, N // x.k.shape[-2], axis=-2)
    z, seen = _logits(params, x, **of_logits)
    if params.sinks is not None:
        sink = jnp.broadcast_to(params.sinks.reshape(*front, N, 1, 1), (*z.shape[:-1], 1))
        z = jnp.concatenate([z, sink], -1)
    p = jnp.where(seen, jax.nn.softmax(z)[..., :S], 0)
    if dropout:
        assert x.key is not None
        p = p * naive_kept(x.key, dropout, p.shape, x.q.dtype)
    return jnp.einsum("...nts,...snd->...tnd", p, v)


def naive_log_sum_exp(x: Heads, **of_logits) -> Array:
    """Of the logits of each query and head: (*b, T, N)."""
    z, seen = _logits(AttentionParams(), x, **of_logits)
    of_rows = jax.nn.logsumexp(z, axis=-1)
    return jnp.swapaxes(jnp.where(seen.any(-1), of_rows, -jnp.inf), -1, -2)


def _logits(
    params: AttentionParams,
    x: Heads,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    alibi: bool = False,
    max_distance: int = 128,
    score: Callable[[Array], Array] | None = None,
    **_,
) -> tuple[Array, Array]:
    """(*b, N, T, S), and which of them are seen; -1e30 where they are not."""
    T, N, D = x.q.shape[-3:]
    S, G = x.k.shape[-3], N // x.k.shape[-2]
    k = jnp.repeat(x.k, G, axis=-2)
    z = jnp.einsum("...tnd,...snd->...nts", x.q, k) * (D**-0.5 if scale is None else scale)
    if soft_cap is not None:
        z = soft_cap * jnp.tanh(z / soft_cap)
    if score is not None:
        z = score(z)
    if x.bias is not None:
        z = z + x.bias
    distance = np.arange(S)[None, :] - np.arange(T)[:, None]
    front = (1,) * (z.ndim - 3)
    if params.relative_bias is not None:
        number, both_ways = len(params.relative_bias), not causal
        bucket_of = [[bucket(int(d), number, max_distance, both_ways) for d in row] for row in distance]
        of_pairs = params.relative_bias[np.array(bucket_of, int).reshape(T, S)]
        z = z + jnp.moveaxis(of_pairs, -1, 0).reshape(*front, N, T, S)
    if alibi:
        slopes = np.array([slope(n, N) for n in range(N)])
        z = z - jnp.asarray(slopes[:, None, None] * np.abs(distance), z.dtype).reshape(*front, N, T, S)
    seen = np.ones((T, S), bool)
    if causal:
        seen &= distance <= 0
    if window is not None:
        left, right = window if isinstance(window, tuple) else (window - 1, window - 1)
        seen &= (-left <= distance) & (distance <= right)
    seen = jnp.broadcast_to(jnp.asarray(seen).reshape(*front, 1, T, S), z.shape)
    if x.mask is not None:
        seen = seen & x.mask
    if x.q_segments is not None:
        of_k = x.q_segments if x.kv_segments is None else x.kv_segments
        seen = seen & (x.q_segments[..., None, :, None] == of_k[..., None, None, :])
    return jnp.where(seen, z, -1e30), seen
