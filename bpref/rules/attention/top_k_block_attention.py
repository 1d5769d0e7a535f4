"""top_k_block_attention: causal attention of each query to its own block of keys and the best of the earlier ones.

Forward, for each head of queries, with keys in blocks of b, block j those of s = b j ... b j + b - 1, and query t in
block i = floor(t / b), with a = scale, 1 / sqrt(D) if it is not given:

    c_j  = 1/b sum of k_s over s in block j                               (T / b, D)
    C_t  = i, and those k - 1 of the j < i for which q_t . c_j is largest, or all of them
    x_ts = a q_t . k_s                        s <= t in a block of C_t    (T, T)
    L_t  = log sum_s exp(x_ts)
    p_ts = exp(x_ts - L_t)
    y_t  = sum_s p_ts v_s                                                 (T, E)

Of blocks with equal products the earlier is taken.

Differential: C_t is piecewise constant in x, and where it is constant nothing goes through c: the choice has no
derivative, and q and k have no cotangent from it. Where two products meet y jumps, and taken is the derivative with the
choice as it is, as MoBA's code has it. What is left is attention with a mask. With D_t = sum_s p_ts dy_t . v_s,

    dx_ts = p_ts (dy_t . v_s - D_t)           s <= t in a block of C_t    (T, T)
    dv_s  = sum_t p_ts dy_t                                               (T, E)
    dq_t  = a sum_s dx_ts k_s                                             (T, D)
    dk_s  = a sum_t dx_ts q_t                                             (T, D)

How: each block that a query chose is a row, and rows are sorted by block, as those of experts are
(`bpref/formulas/mixture/grouped_rows.py`): b queries that chose the same block meet its keys in one product. What a
query has seen of its blocks is merged at the end, as in `merge_attention`. The backward goes through the products
twice, for L_t and D_t, and then for the rest. So work grows as T k b (D + E), with T / b products for each query's
choice besides.

Cached: x, and what was chosen, k integers for each query and head: a product that another program rounds otherwise
could choose another block.

Numerical care: that of `blockwise_attention`. The means and products of the choice are at least float32.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Int

from bpref.checks.hyperparameters import require_finite, require_sizes
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import times, times_transposed, transposed_times
from bpref.formulas.attention.attention_grid import LOWEST
from bpref.formulas.attention.heads import Heads, from_rows, in_rows, require_heads
from bpref.formulas.attention.heads_to_try import WITHIN
from bpref.formulas.attention.plain_heads import require_plain
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.formulas.mixture.grouped_rows import (
    over_blocks,
    placed,
    ragged_blocks,
    rows_from_blocks,
    rows_in_blocks,
    token_of,
    total_like,
)
from bpref.layer import Layer, Reals, no_params
from bpref.naive.attention import naive_attention
from bpref.rule import Case, Rule, called_as


class TopKBlockAttentionCache(NamedTuple):
    x: Heads
    chosen: Int[Array, "M R k"]


def top_k_block_attention(
    block: int, k: int, scale: float | None = None
) -> Layer[tuple[()], Heads, Reals, TopKBlockAttentionCache]:
    """Each query's mean of the values in k blocks: its own, and those whose mean key goes with it best.

    Args:
      block: b, the number of keys in a block.
      k: how many blocks a query sees, its own among them.
      scale: a, what the dot products are multiplied by; 1 / sqrt(D) if it is not given.

    Returns:
      A layer with params `()`, x `Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E))`, N a multiple of K, and
      y `(*b, T, N, E)`. Heads that share keys choose each for itself. The cache is x and the choice.

    Raises:
      ValueError: `block` or `k` is not positive, `scale` not finite; shapes do not fit; x has more than q, k and v.
      TypeError: x is no `Heads`; its arrays are not floating-point numbers of one dtype.
    """
    who = "top_k_block_attention"
    b, k = require_sizes(who, block=block, k=k)
    scale = None if scale is None else require_finite(who, "scale", scale)

    def forward(params, x: Heads):
        require_plain(who, x)
        require_heads(who, x)
        if x.q_segments is not None:
            raise ValueError(f"{who}: q_segments is given, expected None: blocks are of one sequence")
        q, keys, v = grouped(x)
        chosen = _choice(q, keys, x.q.shape[-3], k)
        y = jax.vmap(lambda *of: _attend(_Tiles(x.q.shape[-3], a_of(x), *of)))(q, keys, v, chosen)
        return cast(from_rows(y, x.q, x.k), x.q.dtype), TopKBlockAttentionCache(x, chosen)

    def backward(params, cache, dy):
        x, chosen = cache
        pull = jax.vmap(lambda dy, *of: _pull_attend(_Tiles(x.q.shape[-3], a_of(x), *of), dy))
        dq, *of_keys = pull(in_rows(dy, x.k), *grouped(x), chosen)
        dk, dv = (d.reshape(d.shape[0], d.shape[1] * b, d.shape[3])[:, : x.k.shape[-3]] for d in of_keys)
        dx = (from_rows(d, like, x.k) for d, like in ((dq, x.q), (dk, x.k), (dv, x.k)))
        return (), Heads(*(cast(d, x.q.dtype) for d in dx))

    def a_of(x):
        return x.q.shape[-1] ** -0.5 if scale is None else scale

    def grouped(x):
        """q (M, R, D), and the keys (M, T / b, b, D) and values that its rows share."""
        return in_rows(x.q, x.k), *(_in_blocks(in_rows(u, x.k), b) for u in x[1:3])

    return Layer(no_params, forward, backward, who)


def _in_blocks(a: Array, b: int) -> Array:
    """(M, T, D) as (M, T / b, b, D), with zeros behind the end."""
    M, T, D = a.shape
    number = -(-T // b)
    return lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), (0, number * b - T, 0), (0, 0, 0)]).reshape(M, number, b, D)


def _choice(q: Array, keys: Array, T: int, k: int) -> Array:
    """C_t of each row, its own block first, (M, R, k); the number of blocks where there is none."""
    number, b = keys.shape[1:3]
    own = jnp.broadcast_to(jnp.arange(q.shape[1], dtype=jnp.int32) % T // b, q.shape[:2])
    products = jnp.einsum("mrd,mjd->mrj", widen(q), jnp.mean(widen(keys), 2))
    is_earlier = lax.broadcasted_iota(jnp.int32, products.shape, 2) < own[..., None]
    largest, j = lax.top_k(jnp.where(is_earlier, products, -jnp.inf), min(k - 1, number))
    return jnp.concatenate([own[..., None], jnp.where(largest > -jnp.inf, j, number)], -1)


class _Tiles:
    """The rows of one head of keys, sorted by the blocks that they chose, b at a time."""

    def __init__(self, T: int, a: float, q: Array, keys: Array, v: Array, chosen: Array) -> None:
        self.keys, self.v, self.a, self.wide = keys, v, a, wide_dtype(q.dtype)
        (self.R, self.k), (number, self.b, _) = chosen.shape, keys.shape
        self.places = placed(chosen, number, partial(ragged_blocks, block=self.b))
        self.row = token_of(self.places.row, self.R, self.k)
        self.t = jnp.where(self.row < self.R, self.row % T, -1)
        self.q = self.of_rows(q)

    def of_rows(self, a: Array) -> Array:
        """What each row has, (R, n), at the places of its choices."""
        return rows_in_blocks(a, self.row)

    def of_choices(self, a: Array) -> Array:
        """(places, n) as (k, R, n): 0 where there is no choice."""
        return rows_from_blocks(a, self.places.slot.reshape(self.k, self.R))

    def over(self, step, totals, *more):
        """`step(e, (q, t, ...))` for one tile after the other."""
        return over_blocks(step, totals, self.places.group, (self.q, self.t, *more))

    def logits(self, q: Array, t: Array, e: Array) -> tuple[Array, Array]:
        """x, and which of them are seen."""
        s = e * self.b + lax.broadcasted_iota(jnp.int32, (t.shape[0], self.b), 1)
        sees = s <= t[:, None]
        return jnp.where(sees, self.a * times_transposed(q, self.keys[e]), LOWEST), sees

    def met(self, q: Array, t: Array, e: Array) -> tuple[Array, Array]:
        """The largest logit m of each place, and exp(x - m)."""
        x, sees = self.logits(q, t, e)
        m = jnp.max(x, -1)
        return m, jnp.where(sees, jnp.exp(x - m[:, None]), 0)

    def merged(self, m: Array, Z: Array, *sums: Array) -> tuple[Array, ...]:
        """m and Z over all choices of each row, and sums (places, n) divided by Z; (R, 1) and (R, n)."""
        m, Z, *others = (self.of_choices(v) for v in (m[..., None], Z[..., None], *sums))
        m = jnp.where(Z > 0, m, LOWEST)
        largest = jnp.max(m, 0, keepdims=True)
        shrink = jnp.exp(m - largest)
        Z = jnp.sum(shrink * Z, 0)
        return largest[0], Z, *(jnp.sum(shrink * v, 0) / Z for v in others)


def _attend(tiles: _Tiles) -> Array:
    """y, (R, E)."""

    def step(e, tile):
        q, t = tile
        m, w = tiles.met(q, t, e)
        return (), (m, jnp.sum(w, -1), times(cast(w, tiles.v.dtype), tiles.v[e]))

    return tiles.merged(*tiles.over(step, ())[1])[2]


def _pull_attend(tiles: _Tiles, dy: Array) -> tuple[Array, Array, Array]:
    """dq (R, D), dk (T / b, b, D) and dv, of dy (R, E), in at least float32."""
    dy = tiles.of_rows(dy)

    def sums(e, tile):
        q, t, dy = tile
        m, w = tiles.met(q, t, e)
        return (), (m, jnp.sum(w, -1), jnp.sum(w * times_transposed(dy, tiles.v[e]), -1, keepdims=True))

    of_rows = jnp.concatenate(tiles.merged(*tiles.over(sums, (), dy)[1]), -1)

    def step(e, tile):
        q, t, dy, of_rows = tile
        m, Z, D = jnp.split(of_rows, 3, -1)
        x, sees = tiles.logits(q, t, e)
        p = jnp.where(sees, jnp.exp(x - m), 0) / jnp.where(Z > 0, Z, 1)
        dx = cast(tiles.a * p * (times_transposed(dy, tiles.v[e]) - D), q.dtype)
        return (transposed_times(dx, q), transposed_times(cast(p, q.dtype), dy)), times(dx, tiles.keys[e])

    totals = total_like(tiles.keys), total_like(tiles.v)
    (dk, dv), dq = tiles.over(step, totals, dy, tiles.of_rows(of_rows))
    return jnp.sum(tiles.of_choices(dq), 0), dk, dv


@called_as(top_k_block_attention)
def reference(params: tuple[()], x: Heads, block, k, scale) -> Array:
    """A mask of all pairs, from how many earlier blocks are better than each."""
    T, G = x.q.shape[-3], x.q.shape[-2] // x.k.shape[-2]
    means = jnp.stack([x.k[..., j : j + block, :, :].mean(-3) for j in range(0, T, block)], -3)
    products = jnp.einsum("...tnd,...jnd->...ntj", x.q, jnp.repeat(means, G, -2))
    own, j = (jnp.asarray(v) for v in np.broadcast_arrays(np.arange(T)[:, None] // block, np.arange(means.shape[-3])))
    own, j = (jnp.broadcast_to(v, products.shape) for v in (own, j))
    (one, other), (i, before) = ((v[..., None], v[..., None, :]) for v in (products, j))
    is_better = (other > one) | ((other == one) & (before < i))
    better = jnp.sum(is_better & (before < own[..., None]), -1)
    seen = ((better < k - 1) & (j < own)) | (j == own)
    mask = jnp.repeat(seen, block, -1)[..., :T]
    return naive_attention(AttentionParams(), x._replace(mask=mask), causal=True, scale=scale)


_NEVER_EMPTY = ("T", "N", "K", "D", "E")

RULE = Rule(
    "top_k_block_attention",
    top_k_block_attention,
    reference,
    cases=(
        Case("grouped heads", WITHIN, {"block": 3, "k": 2}, _NEVER_EMPTY, fixed={"N": 4, "K": 2, "T": 11}),
        Case(
            "scale, large blocks",
            WITHIN,
            {"block": 64, "k": 3, "scale": 0.4},
            _NEVER_EMPTY,
            fixed={"N": 2, "K": 2},
            timed={"B": 1, "T": 1024, "N": 4, "K": 4, "D": 64, "E": 64},
        ),
    ),
    cite="arXiv:2502.13189, section 2.2 (mixture of block attention; section not checked)",
    covers=("moba", "mixture of block attention", "top-k attention"),
)
