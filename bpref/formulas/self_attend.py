"""Attention of a sequence to itself, block by block: nothing of T x T is ever made.

With q (*b, T, N, D), k and v (*b, T, K, D), head n of the queries meeting head floor(n K / N) of the keys, and position
j visible from i where j <= i (causal) and |i - j| < w (a window):

    s_ij = q_i . k_j / sqrt(D)        m_i = max_j s_ij        e_ij = exp(s_ij - m_i)
    S_i  = sum_j e_ij               p_ij = e_ij / S_i
    o_i  = sum_j p_ij v_j

Differential: delta o_i = sum_j p_ij delta v_j + sum_j delta p_ij v_j with delta p_ij = p_ij (delta s_ij - sum_m p_im
delta s_im), so that with g_i = do_i / S_i and c_i = g_i . o_i = sum_j p_ij g_i . v_j

    dv_j = sum_i e_ij g_i               ds_ij = e_ij (g_i . v_j - c_i)
    dq_i = sum_j ds_ij k_j / sqrt(D)    dk_j = sum_i ds_ij q_i / sqrt(D)

o and S are summed over the blocks of keys in any order, with a running maximum that sums so far are rescaled to. Both
ways are one loop over those pairs of blocks in which anything is visible. m and S are kept as two numbers: of their
log-sum-exp m + log S, rounded, the p that come back differ from those that o was made of by |m| rounding errors.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.dtypes import cast, wide_dtype, widen

LOWEST = -1e30
"""What the running maximum starts with: finite, so that a block of keys of which a row sees nothing adds 0, not NaN."""


class Sight(NamedTuple):
    """What is visible, and how many positions are worked on at once."""

    causal: bool
    window: int | None
    block: int


def attend(q: Array, k: Array, v: Array, sight: Sight) -> tuple[Array, Array, Array]:
    """o `(*b, T, N, D)` in q's dtype, m and S `(*b, T, N)` in at least float32."""
    T, N, D = q.shape[-3:]
    size = min(sight.block, T)
    Q, K, V = _rows(q, k.shape[-2], size), _blocks(k, size), _blocks(v, size)
    wide = wide_dtype(q.dtype)
    rows = Q.shape[:-1]

    def body(sums, pair):
        i, j = pair
        m, S, o = (_at(a, i) for a in sums)
        seen = _seen(i, j, size, T, Q.shape[-2] // size, sight)
        s = jnp.where(seen, _dot(_at(Q, i), _at(K, j), 1, 1) * D**-0.5, LOWEST)
        top = jnp.maximum(m, s.max(-1))
        e = jnp.where(seen, jnp.exp(s - top[..., None]), 0)
        shrink = jnp.exp(m - top)
        S = S * shrink + e.sum(-1)
        o = o * shrink[..., None] + _dot(e, _at(V, j), 1, 0)
        return tuple(_put(a, v, i) for a, v in zip(sums, (top, S, o), strict=True)), None

    start = jnp.full(rows, LOWEST, wide), jnp.zeros(rows, wide), jnp.zeros((*rows, D), wide)
    (m, S, o), _ = lax.scan(body, start, _pairs(T, size, sight))
    m, S = (_unrows(a[..., None], T, N) for a in (m, S))
    return cast(_unrows(o, T, N) / S, q.dtype), m[..., 0], S[..., 0]


def pull_attend(
    q: Array, k: Array, v: Array, o: Array, m: Array, S: Array, do: Array, sight: Sight
) -> tuple[Array, Array, Array]:
    """dq, dk and dv in the dtype of q."""
    T, N, D = q.shape[-3:]
    heads = k.shape[-2]
    size = min(sight.block, T)
    g = widen(do) / S[..., None]
    Q, K, V, G = _rows(q, heads, size), _blocks(k, size), _blocks(v, size), _rows(g, heads, size)
    M, C = (_rows(a, heads, size) for a in (m[..., None], jnp.sum(g * widen(o), -1, keepdims=True)))

    def body(sums, pair):
        i, j = pair
        dQ, dK, dV = sums
        Q_i, K_j, V_j, g_i = _at(Q, i), _at(K, j), _at(V, j), _at(G, i)
        seen = _seen(i, j, size, T, Q.shape[-2] // size, sight)
        e = jnp.where(seen, jnp.exp(_dot(Q_i, K_j, 1, 1) * D**-0.5 - _at(M, i)), 0)
        ds = e * (_dot(g_i, V_j, 1, 1) - _at(C, i))
        dV = _put(dV, _at(dV, j) + _dot(e, g_i, 0, 0), j)
        dK = _put(dK, _at(dK, j) + _dot(ds, Q_i, 0, 0), j)
        dQ = _put(dQ, _at(dQ, i) + _dot(ds, K_j, 1, 0), i)
        return (dQ, dK, dV), None

    start = tuple(jnp.zeros(a.shape, wide_dtype(a.dtype)) for a in (Q, K, V))
    (dQ, dK, dV), _ = lax.scan(body, start, _pairs(T, size, sight))
    dq, dk, dv = _unrows(dQ * D**-0.5, T, N), _unrows(dK * D**-0.5, T, heads), _unrows(dV, T, heads)
    return cast(dq, q.dtype), cast(dk, q.dtype), cast(dv, q.dtype)


def _pairs(T: int, size: int, sight: Sight) -> tuple[np.ndarray, np.ndarray]:
    """The blocks i of queries and j of keys that see something of each other."""
    count = -(-T // size)
    i, j = (a.reshape(-1).astype(np.int32) for a in np.indices((count, count)))
    near = np.ones(i.shape, bool) if sight.window is None else (abs(i - j) - 1) * size + 1 < sight.window
    kept = near & (j <= i) if sight.causal else near
    return i[kept], j[kept]


def _seen(i: Array, j: Array, size: int, T: int, group: int, sight: Sight) -> Array:
    """Which of block i's rows, `group` for each position, see which of block j's keys: (size group, size)."""
    shape = (size * group, size)
    at = i * size + lax.broadcasted_iota(jnp.int32, shape, 0) // group
    key = j * size + lax.broadcasted_iota(jnp.int32, shape, 1)
    seen = key < T
    if sight.causal:
        seen &= key <= at
    return seen if sight.window is None else seen & (abs(at - key) < sight.window)


def _rows(x: Array, heads: int, size: int) -> Array:
    """(*b, T, N, D) as (count, *b, K, size N/K, D): the query heads that share keys are rows of one matrix."""
    *b, T, N, D = x.shape
    x = _blocks(x.reshape(*b, T, heads, N // heads * D), size)
    return x.reshape(*x.shape[:-2], size * (N // heads), D)


def _blocks(x: Array, size: int) -> Array:
    """(*b, T, K, D) as (count, *b, K, size, D), zeros behind the end."""
    *b, T, K, D = x.shape
    count = -(-T // size)
    pads = ((0, 0, 0),) * len(b) + ((0, count * size - T, 0), (0, 0, 0), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), pads).reshape(*b, count, size, K, D)
    return jnp.moveaxis(jnp.swapaxes(x, -3, -2), -4, 0)


def _unrows(x: Array, T: int, N: int) -> Array:
    """The inverse of `_rows`, and of `_blocks` where there are as many heads."""
    count, *b, K, rows, D = x.shape
    x = x.reshape(count, *b, K, rows * K // N, N // K * D)
    x = jnp.swapaxes(jnp.moveaxis(x, 0, -4), -3, -2)
    x = x.reshape(*b, count * (rows * K // N), N, D)
    return lax.slice_in_dim(x, 0, T, axis=len(b))


def _dot(a: Array, b: Array, of_a: int, of_b: int) -> Array:
    """The product of the last two axes over one of each, in at least float32; those before are batch axes."""
    n = a.ndim - 2
    batch = tuple(range(n))
    contract = ((n + of_a,), (n + of_b,))
    return lax.dot_general(widen(a), widen(b), (contract, (batch, batch)))


def _at(x: Array, i: Array) -> Array:
    return lax.dynamic_index_in_dim(x, i, 0, keepdims=False)


def _put(x: Array, v: Array, i: Array) -> Array:
    return lax.dynamic_update_index_in_dim(x, v, i, 0)
