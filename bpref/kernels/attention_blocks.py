"""Blocks of queries and keys in a kernel: which meet, how they lie in the arrays, and the logits of a pair of them."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, ShapeDtypeStruct, lax

from bpref.formulas.attention.attention_grid import LOWEST, Pattern, sides
from bpref.formulas.attention.heads import Heads, by_groups, from_groups, segments_of
from bpref.kernels.launch import power_of_two, product

LARGEST_ON_GPU = 64
"""Queries or keys of a block there: those of 64 features and their logits fill a core's registers."""


Bound = Array | np.int32
"""The number of a block."""


class Plan(NamedTuple):
    """The sizes of a launch: of the arrays, and of blocks bq of queries and bk of keys."""

    pattern: Pattern
    T: int
    S: int
    bq: int
    bk: int

    def keys_of(self, i: Array) -> tuple[Bound, Bound]:
        """The first block of keys in which a query of block i may see one, and the first behind them."""
        left, right = self.sides()
        return _meeting(i, self.bq, self.bk, self.S, left, right)

    def queries_of(self, j: Array) -> tuple[Bound, Bound]:
        """As `keys_of`, the blocks of queries for block j of keys."""
        left, right = self.sides()
        return _meeting(j, self.bk, self.bq, self.T, right, left)

    def sides(self) -> tuple[int | None, int | None]:
        """How many keys before and behind its own place a query sees, None for all."""
        left, right = (None, None) if self.pattern.window is None else sides(self.pattern.window)
        return left, 0 if self.pattern.causal else right


def _meeting(i: Array, own: int, other: int, size: int, before: int | None, behind: int | None) -> tuple[Bound, Bound]:
    """The blocks of `other` places of `size`, first and end, that reach to within these of block i of `own` places."""
    first, end = np.int32(0), np.int32(-(-size // other))
    if before is not None:
        first = _whole_blocks(jnp.maximum(i * own - before, 0), other)
    if behind is not None:
        end = jnp.minimum(end, _whole_blocks((i + 1) * own - 1 + behind, other) + 1)
    return first, end


def _whole_blocks(n: Array, block: int) -> Array:
    """How many are in n, which is not negative; for `//` Mosaic asks a device that is there."""
    return lax.div(n, np.int32(block))


class Pair(NamedTuple):
    """The logits of a block of queries and one of keys: x, LOWEST where a key is not seen; da / dz of the soft cap."""

    x: Array
    seen: Array
    slope: Array | None

    def relative_to(self, m: Array) -> Array:
        return jnp.where(self.seen, jnp.exp(self.x - m), 0)

    def continued(self, m: Array) -> tuple[Array, Array, Array]:
        """The largest logit so far, what sums so far are multiplied by, and e^x relative to it."""
        m_new = jnp.maximum(m, self.x.max(-1, keepdims=True))
        return m_new, jnp.exp(m - m_new), self.relative_to(m_new)

    def of_seen(self, a: Array) -> Array:
        """`a`, in which the sums of a query may be NaN, of the keys that it sees."""
        return jnp.where(self.seen, a, 0)


def pair_of(plan: Plan, q: Array, k: Array, i: Array, j: Array, segments: tuple[Array, ...]) -> Pair:
    """Of blocks q (bq, D) and k (bk, D), and of the segments of both, (bq, 1) and (1, bk), where there are some."""
    z = product(q, k, 1, 1) * plan.pattern.scale
    z = jnp.maximum(z, float(jnp.finfo(z.dtype).min))  # see `Grid.logits`
    slope, cap = None, plan.pattern.soft_cap
    if cap is not None:
        bent = jnp.tanh(z / cap)
        z, slope = cap * bent, (1 - bent) * (1 + bent)
    t = i * plan.bq + lax.broadcasted_iota(jnp.int32, z.shape, 0)
    s = j * plan.bk + lax.broadcasted_iota(jnp.int32, z.shape, 1)
    seen = (s < plan.S) & (t < plan.T)
    left, right = plan.sides()
    if right is not None:
        seen &= s <= t + right
    if left is not None:
        seen &= s >= t - left
    if segments:
        seen &= segments[0] == segments[1]
    return Pair(jnp.where(seen, z, LOWEST), seen, slope)


class Arrays(NamedTuple):
    """What kernels are given: heads grouped by the keys that they share, in whole blocks, one axis before them.

    Where anything is hidden, v is 0 where it is not finite, and k is NaN then: so are the logits of those who see it.
    `segments` are () or a column of the queries' and the keys' in rows of a block each.
    """

    q: Array
    k: Array
    v: Array
    segments: tuple[Array, ...]


def planned(pattern: Pattern, platform: str, x: Heads) -> tuple[Plan, Arrays]:
    """Blocks no larger than needed, and the arrays in whole ones."""
    T, S, K = x.q.shape[-3], *x.k.shape[-3:-1]
    largest = {LARGEST_ON_GPU} if platform == "cuda" else set()
    bq, bk = (
        min({block or n, power_of_two(n)} | largest) for block, n in ((pattern.query_block, T), (pattern.key_block, S))
    )
    plan = Plan(pattern, T, S, bq, bk)
    q, k, v = (grouped(platform, a, K, block) for a, block in ((x.q, bq), (x.k, bk), (x.v, bk)))
    k, v = k[:, :, 0], v[:, :, 0]
    segments = segments_of(x)
    if segments is not None or plan.sides() != (None, None):
        k = jnp.where(jnp.isfinite(v).all(-1, keepdims=True), k, jnp.full((), jnp.nan, k.dtype))
        v = jnp.where(jnp.isfinite(v), v, jnp.zeros((), v.dtype))
    if segments is None:
        return plan, Arrays(q, k, v, ())
    of_q, of_k = (_whole(a.reshape(-1, a.shape[-1], 1), n) for a, n in zip(segments, (bq, bk), strict=True))
    return plan, Arrays(q, k, v, (of_q, of_k.reshape(len(of_k), -1, bk)))


def grouped(platform: str, a: Array, K: int, block: int) -> Array:
    """(*b, T, N, D) as (b, K, G, T, D), T in whole blocks; on a GPU, which takes no other, D a power of two."""
    a = by_groups(a, K)
    a = _whole(a.reshape(-1, *a.shape[-4:]), block)
    features = power_of_two(a.shape[-1]) if platform == "cuda" else a.shape[-1]
    return _padded(a, -1, features)


def _whole(a: Array, block: int) -> Array:
    return _padded(a, -2, -(-a.shape[-2] // block) * block)


def _padded(a: Array, axis: int, n: int) -> Array:
    """`a` with zeros behind its end, n long."""
    pads = [(0, 0, 0)] * a.ndim
    pads[axis] = (0, n - a.shape[axis], 0)
    return lax.pad(a, jnp.zeros((), a.dtype), pads) if n > a.shape[axis] else a


def ungrouped(a: Array, like: Array | ShapeDtypeStruct) -> Array:
    """(b, K, G, T, D) as (*b, T, N, D), of the sizes of `like`."""
    *b, T, _, D = like.shape
    return from_groups(a[..., :T, :D].reshape(*b, *a.shape[1:3], T, D))
