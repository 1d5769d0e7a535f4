"""Attention's arrays by blocks of queries and keys: which pairs of blocks meet, and what is in the logits of a pair.

Heads are grouped by the keys that they share: axes *b, K, G = N / K in front, then queries, keys or both, padded to
whole blocks.

What is not seen is not read, though a product meets it, with a weight of 0, and 0 times NaN is NaN. So whatever is not
finite is 0 in all products but the logits; it makes those of its query, or of its key, NaN, and they are replaced where
they are not seen.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Bool, Float, PyTree

from bpref.checks.hyperparameters import is_integer, plain
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.attention.changed_scores import Changed, Pull, changed
from bpref.formulas.attention.distances import skew, sum_of_diagonals
from bpref.formulas.attention.heads import Heads, by_groups, from_groups, segments_of
from bpref.formulas.random_draws import kept_at
from bpref.keys import number_of

LOWEST = -1e30
"""A logit of what is not seen, and where a running maximum starts: finite, so that no difference of two is NaN."""


Window = int | tuple[int, int]
"""How near a key must be: |s - t| < w, or -left <= s - t <= right."""


class Pattern(NamedTuple):
    """What is fixed about an attention when it is traced; see the arguments of `dot_product_attention`.

    `meet` says which pairs of blocks meet at all, those of queries first; `None` that any may.
    """

    scale: float
    causal: bool = False
    window: Window | None = None
    soft_cap: float | None = None
    dropout: float = 0.0
    query_block: int | None = None
    key_block: int | None = None
    meet: Bool[np.ndarray, "blocks_of_q blocks_of_k"] | None = None


def sides(window: Window) -> tuple[int, int]:
    """How many keys before a query's own place, and how many behind it, it sees."""
    return window if isinstance(window, tuple) else (window - 1, window - 1)


def require_window(who: str, window: Window | None) -> Window | None:
    """`window` as Python has it; raise `ValueError` unless it is a `Window`, or `None`."""
    if isinstance(window, tuple) and len(window) == 2:
        sizes = [(v, 0) for v in window]
    else:
        sizes = [] if window is None else [(window, 1)]
    if any(not is_integer(v) or v < least for v, least in sizes):
        raise ValueError(
            f"{who}: window is {window!r}, expected an integer of at least 1, or a pair (left, right) of at least 0"
        )
    return (plain(window[0]), plain(window[1])) if isinstance(window, tuple) else plain(window)


class Extras(NamedTuple):
    """Of each head, where they are used: the logit of its sink `(N,)`, and u `(N, T + S - 1)`, from d = 1 - T on.

    `score` is what changes z before anything is added to it; as a cotangent, that of its params.
    """

    sinks: Float[Array, " N"] | None = None
    u: Float[Array, "N distances"] | None = None
    score: Changed | PyTree = None


class Logits(NamedTuple):
    """x, and LOWEST where a key is not seen; da / dz of the soft cap; the backward of a layer that changed z."""

    x: Array
    seen: Bool[Array, "..."]
    slope: Array | None = None
    pull: Pull | None = None


class Grid:
    """The arrays of an attention, padded to whole blocks and grouped, and how to take block (i, j) of each."""

    def __init__(self, pattern: Pattern, x: Heads, extras: Extras) -> None:
        *b, T, N, _ = x.q.shape
        S, K = x.k.shape[-3], x.k.shape[-2]
        self.pattern, self.b, self.T, self.S, self.K, self.G = pattern, b, T, S, K, N // K
        self.bq, self.bk = min(pattern.query_block or T, T), min(pattern.key_block or S, S)
        self.rows_padded, self.keys_padded = (-(-n // m) * m for n, m in ((T, self.bq), (S, self.bk)))
        self.wide = wide_dtype(x.q.dtype)
        self.hides = pattern.causal or any(a is not None for a in (pattern.window, x.mask, x.bias, x.q_segments))
        self.q = self.grouped(x.q)
        self.k, self.v = (_padded(by_groups(a, K)[..., 0, :, :], -2, self.keys_padded) for a in (x.k, x.v))
        self.bias = self.by_pairs(x.bias, 0)
        self.mask = self.by_pairs(x.mask, False)
        self.sinks, self.score = extras.sinks, extras.score
        self.u = None if extras.u is None else self._distanced(extras.u)
        segments = segments_of(x)
        if segments is not None:
            of_q, of_k = segments
            of_q, of_k = _padded(of_q, -1, self.rows_padded), _padded(of_k, -1, self.keys_padded)
            segments = of_q[..., None, None, :, None], of_k[..., None, None, None, :]
        self.segments = segments
        self.r = self._dropped(x.key) if pattern.dropout else None

    def before(self) -> tuple[Array, Array]:
        """m and Z before any key is seen: those of the sink."""
        rows = self.q.shape[:-1]
        if self.sinks is None:
            return jnp.full(rows, LOWEST, self.wide), jnp.zeros(rows, self.wide)
        return jnp.broadcast_to(self.of_heads(self.sinks), rows), jnp.ones(rows, self.wide)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The blocks i of queries and j of keys in which a query may see a key, by their places alone."""
        shape = self.rows_padded // self.bq, self.keys_padded // self.bk
        i, j = (a.reshape(-1).astype(np.int32) for a in np.indices(shape))
        nearest, furthest = j * self.bk - (i + 1) * self.bq + 1, (j + 1) * self.bk - 1 - i * self.bq
        meets = np.ones(i.shape, bool)
        if self.pattern.causal:
            meets &= nearest <= 0
        if self.pattern.window is not None:
            left, right = sides(self.pattern.window)
            meets &= (nearest <= right) & (furthest >= -left)
        if self.pattern.meet is not None:
            meets &= self.pattern.meet[i, j]
        return i[meets], j[meets]

    def logits(self, i: Array, j: Array) -> Logits:
        q, k = self.rows(self.q, i), self.keys(self.k, j)
        if self.hides:
            k = jnp.where(jnp.isfinite(self.keys(self.v, j)).all(-1, keepdims=True), k, jnp.nan)
        z = over_last(q, k, self.wide) * self.pattern.scale
        # For `z - m` a compiler would not round the product, but m was made of one that is rounded: of logits beyond
        # 1e9 the largest would be more than m by more than exp can tell. It cannot look through a maximum.
        z = jnp.maximum(z, jnp.finfo(self.wide).min)
        slope, cap = None, self.pattern.soft_cap
        if cap is not None:
            bent = jnp.tanh(z / cap)
            z, slope = cap * bent, (1 - bent) * (1 + bent)  # 1 - bent^2 loses what is left near the cap
        pull = None
        if self.score is not None:
            z, pull = changed(self.score, z, (i * self.bq, self.T), (j * self.bk, self.S))
        if self.bias is not None:
            z = z + widen(self.pair_of(self.bias, i, j))
        if self.u is not None:
            z = z + skew(lax.dynamic_slice_in_dim(self.u, self._first_distance(i, j), self._distances, -1), self.bq)
        seen = self._seen(i, j)
        return Logits(jnp.where(seen, z, LOWEST), seen, slope, pull)

    def _seen(self, i: Array, j: Array) -> Array:
        shape = (*self.b, self.K, self.G, self.bq, self.bk)
        t = i * self.bq + lax.broadcasted_iota(jnp.int32, (self.bq, self.bk), 0)
        s = j * self.bk + lax.broadcasted_iota(jnp.int32, (self.bq, self.bk), 1)
        near = s < self.S
        if self.rows_padded > self.T:
            near &= t < self.T
        if self.pattern.causal:
            near &= s <= t
        if self.pattern.window is not None:
            left, right = sides(self.pattern.window)
            near &= (s >= t - left) & (s <= t + right)
        seen = lax.broadcast_in_dim(near, shape, (len(shape) - 2, len(shape) - 1))
        if self.mask is not None:
            seen &= self.pair_of(self.mask, i, j)
        if self.bias is not None:
            seen &= ~(widen(self.pair_of(self.bias, i, j)) < LOWEST)
        if self.segments is not None:
            of_q, of_k = self.segments
            of_q = lax.dynamic_slice_in_dim(of_q, i * self.bq, self.bq, -2)
            seen &= of_q == lax.dynamic_slice_in_dim(of_k, j * self.bk, self.bk, -1)
        return seen

    def _dropped(self, key: PyTree):
        """r of block (i, j): each element's bits are a function of the key and of its place, whatever the blocks.

        One example alone, with the key that is its own, has those that it has among all.
        """
        front = (*self.b, self.K, self.G)
        size = int(np.prod(front))
        lead = jnp.arange(size, dtype=jnp.uint32).reshape(*front, 1, 1) + jnp.uint32(size) * number_of(key)
        rate = self.pattern.dropout

        def r(i, j):
            t, s = (
                lax.broadcasted_iota(jnp.uint32, (*front, self.bq, self.bk), len(front) + axis)
                + jnp.uint32(size) * cast(index, jnp.uint32)
                for axis, size, index in ((0, self.bq, i), (1, self.bk, j))
            )
            row = lead * jnp.uint32(self.T) + t
            return jnp.where(kept_at(key, rate, row, s), jnp.full((), 1 / (1 - rate), self.wide), 0)

        return r

    def readable(self, a: Array) -> Array:
        """`a` for a product, in which what is not seen has a weight of 0."""
        return jnp.where(jnp.isfinite(a), a, 0) if self.hides else a

    def of_seen(self, logits: Logits, a: Array) -> Array:
        """`a`, in which the sums of a query may be NaN, of the keys that it sees."""
        return jnp.where(logits.seen, a, 0) if self.hides else a

    def grouped(self, a: Array, value: float = 0) -> Array:
        return _padded(by_groups(a, self.K), -2, self.rows_padded, value)

    def ungrouped(self, a: Array) -> Array:
        return from_groups(a[..., : self.T, :])

    def like_rows(self, a: Array) -> Array:
        """A number of each query, (*b, T, N), as (*b, K, G, T)."""
        return self.grouped(a[..., None])[..., 0]

    def unlike_rows(self, a: Array) -> Array:
        return self.ungrouped(a[..., None])[..., 0]

    def of_heads(self, a: Array) -> Array:
        return widen(a).reshape((1,) * len(self.b) + (self.K, self.G, 1))

    def rows(self, a: Array, i: Array) -> Array:
        return lax.dynamic_slice_in_dim(a, i * self.bq, self.bq, self._row_axis)

    def put_rows(self, a: Array, v: Array, i: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(a, v, i * self.bq, self._row_axis)

    def keys(self, a: Array, j: Array) -> Array:
        return lax.dynamic_slice_in_dim(a, j * self.bk, self.bk, -2)

    def add_keys(self, a: Array, v: Array, j: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(a, self.keys(a, j) + v, j * self.bk, -2)

    def add_bias(self, dbias: Array, dx: Array, i: Array, j: Array) -> Array:
        part = self.pair_of(dbias, i, j)
        summed = tuple(axis for axis, (n, m) in enumerate(zip(part.shape, dx.shape, strict=True)) if n < m)
        return lax.dynamic_update_slice(dbias, part + dx.sum(summed, keepdims=True), self._start(dbias, i, j))

    def add_distances(self, du: Array, dx: Array, i: Array, j: Array) -> Array:
        first = self._first_distance(i, j)
        part = lax.dynamic_slice_in_dim(du, first, self._distances, -1)
        summed = dx.sum(tuple(range(len(self.b))), keepdims=True)
        return lax.dynamic_update_slice_in_dim(du, part + sum_of_diagonals(summed), first, -1)

    def unlike_bias(self, dbias: Array, shape: tuple[int, ...]) -> Array:
        return dbias[..., : shape[-2], : shape[-1]].reshape(shape)

    def undistanced(self, du: Array, u: Array) -> Array:
        first = self.rows_padded - self.T
        return cast(du.reshape(u.shape[0], -1)[:, first : first + u.shape[1]], u.dtype)

    @property
    def _row_axis(self) -> int:
        """Of all arrays that have one: those with features, and those with a number for each query."""
        return len(self.b) + 2

    @property
    def _distances(self) -> int:
        return self.bq + self.bk - 1

    def _first_distance(self, i: Array, j: Array) -> Array:
        return j * self.bk - (i + 1) * self.bq + self.rows_padded

    def _distanced(self, u: Array) -> Array:
        """u as (1.., K, G, distances) of the padded sequences."""
        u = lax.pad(
            widen(u), jnp.zeros((), self.wide), [(0, 0, 0), (self.rows_padded - self.T, self.keys_padded - self.S, 0)]
        )
        return u.reshape((1,) * len(self.b) + (self.K, self.G, -1))

    def by_pairs(self, a: Array | None, value: ArrayLike) -> Array | None:
        """(*#b, #N, #T, #S) as (*#b, #K, #G, #T, #S), padded where it is not 1."""
        if a is None:
            return None
        *b, N, T, S = a.shape
        a = a.reshape(*b, 1, 1, T, S) if N == 1 else a.reshape(*b, self.K, self.G, T, S)
        a = a if T == 1 else _padded(a, -2, self.rows_padded, value)
        return a if S == 1 else _padded(a, -1, self.keys_padded, value)

    def _start(self, a: Array, i: Array, j: Array) -> list[Array]:
        """Where block (i, j) begins; an axis of size 1 is the same for all."""
        nowhere = jnp.zeros((), jnp.int32)
        row, column = i * self.bq if a.shape[-2] > 1 else nowhere, j * self.bk if a.shape[-1] > 1 else nowhere
        return [*[nowhere] * (a.ndim - 2), row, column]

    def pair_of(self, a: Array, i: Array, j: Array) -> Array:
        sizes = (*a.shape[:-2], min(self.bq, a.shape[-2]), min(self.bk, a.shape[-1]))
        return lax.dynamic_slice(a, self._start(a, i, j), sizes)


def _padded(a: Array, axis: int, n: int, value: ArrayLike = 0) -> Array:
    """`a` with `value` behind its end, n long."""
    pads = [(0, 0, 0)] * a.ndim
    pads[axis] = (0, n - a.shape[axis], 0)
    return a if n == a.shape[axis] else lax.pad(a, jnp.full((), value, a.dtype), pads)


def over_last(a: Array, b: Array, dtype: DTypeLike) -> Array:
    """Rows (*b, K, G, bq, n) by keys (*b, K, bk, n): (*b, K, G, bq, bk)."""
    return _product(_stacked(a), b, -1, -1, dtype).reshape(*a.shape[:-1], b.shape[-2])


def over_keys(a: Array, b: Array, dtype: DTypeLike) -> Array:
    """Pairs (*b, K, G, bq, bk) by keys (*b, K, bk, n): (*b, K, G, bq, n)."""
    return _product(_stacked(a), b, -1, -2, dtype).reshape(*a.shape[:-1], b.shape[-1])


def over_rows(a: Array, b: Array, dtype: DTypeLike) -> Array:
    """Pairs (*b, K, G, bq, bk) by rows (*b, K, G, bq, n): (*b, K, bk, n).

    In half precision over both axes as they are: of stacked ones XLA on CPU has no product if `vmap` is over b alone.
    """
    if a.dtype != dtype:
        batch = tuple(range(a.ndim - 3))
        contract = (a.ndim - 3, a.ndim - 2)
        return lax.dot_general(a, b, ((contract, contract), (batch, batch)), preferred_element_type=dtype)
    return _product(_stacked(a), _stacked(b), -2, -2, dtype)


def _stacked(a: Array) -> Array:
    """The rows of all heads that share keys as those of one matrix: XLA copies what is summed over two axes."""
    return a.reshape(*a.shape[:-3], a.shape[-3] * a.shape[-2], a.shape[-1])


def _product(a: Array, b: Array, of_a: int, of_b: int, dtype: DTypeLike) -> Array:
    """Of the last two axes, over one of each; those before are batch axes."""
    batch = tuple(range(a.ndim - 2))
    contract = (a.ndim + of_a,), (b.ndim + of_b,)
    return lax.dot_general(a, b, (contract, (batch, batch)), preferred_element_type=dtype)
