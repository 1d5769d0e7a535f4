"""What attention is given: queries, keys and values by heads, and what decides which of them meet."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_sizes


class Heads(NamedTuple):
    """The input x of every attention layer; what is `None` is not used.

    N heads of queries share K heads of keys and values, N a multiple of K: head n meets head n // (N / K). Axes before
    T, written *b, are batch axes, the same in all arrays.

    Attributes:
      q: queries.
      k, v: keys and values; their features D and E may differ.
      mask: which query may see which key, with axes of size 1 where it is the same for all.
      bias: added to the logits; its cotangent is given back, summed over the axes where it has size 1. Below -1e30, and
        at -inf, it is a mask: a query with no other key sees nothing, where a softmax alone would give it their mean.
      q_segments, kv_segments: ids of packed sequences: a query sees keys of its own id only. `kv_segments` is
        `q_segments` where it is left out.
      key: a PRNG key, for dropout.
    """

    q: Float[Array, "*b T N>0 D"]
    k: Float[Array, "*b S K>0 D"]
    v: Float[Array, "*b S K E"]
    mask: Bool[Array, "*#b #N #T #S"] | None = None
    bias: Float[Array, "*#b #N #T #S"] | None = None
    q_segments: Int[Array, "*b T"] | None = None
    kv_segments: Int[Array, "*b S"] | None = None
    key: Array | None = None

    by_name = True


def require_groups(who: str, x: Heads) -> None:
    """Raise `ValueError` unless each head of keys has as many heads of queries."""
    N, K = x.q.shape[-2], x.k.shape[-2]
    if N % K:
        raise ValueError(f"{who}: q has {N} heads, expected a multiple of k's {K}")


def require_kv_heads(who: str, heads: int, kv_heads: int | None) -> tuple[int, int]:
    """N and K, as many where the latter is left out; raise `ValueError` unless K divides N."""
    N, K = require_sizes(who, heads=heads, kv_heads=heads if kv_heads is None else kv_heads)
    if N % K:
        raise ValueError(f"{who}: kv_heads is {K}, expected a divisor of heads {N}")
    return N, K


def features_of_head(who: str, x: Array, heads: int, head_dim: int | None) -> int:
    """D, its share of x's features where it is left out; raise `ValueError` where these cannot be shared out."""
    d = x.shape[-1]
    if head_dim is None and d % heads:
        raise ValueError(f"{who}: x has {d} features in its last axis, not a multiple of {heads} heads")
    return d // heads if head_dim is None else head_dim


def require_heads(who: str, x: Heads) -> None:
    """Raise `ValueError` unless heads can be shared out, no array is empty, and segments are given of both sides."""
    require_groups(who, x)
    q, k, v = x[:3]
    for name, array in zip("qkv", (q, k, v), strict=True):
        if 0 in array.shape[-3:]:
            raise ValueError(f"{who}: {name} has shape {array.shape}, expected none of its last three axes empty")
    if x.kv_segments is not None and x.q_segments is None:
        raise ValueError(f"{who}: kv_segments are given without q_segments")
    if x.q_segments is not None and x.kv_segments is None and q.shape[-3] != k.shape[-3]:
        raise ValueError(f"{who}: {q.shape[-3]} queries and {k.shape[-3]} keys need kv_segments too")


def segments_of(x: Heads) -> tuple[Array, Array] | None:
    """The ids of queries and keys; `None` where nothing is packed."""
    if x.q_segments is None:
        return None
    return x.q_segments, x.q_segments if x.kv_segments is None else x.kv_segments


def by_head(a: Array, n: int) -> Array:
    """(*b, T, n D) as (*b, T, n, D)"""
    return a.reshape(*a.shape[:-1], n, a.shape[-1] // n)


def by_position(a: Array) -> Array:
    """(*b, T, N, D) as (*b, T, N D)"""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def by_groups(a: Array, K: int) -> Array:
    """(*b, T, N, D) as (*b, K, N / K, T, D): the heads that share a key stand together."""
    *b, T, N, D = a.shape
    return jnp.moveaxis(a.reshape(*b, T, K, N // K, D), -4, -2)


def from_groups(a: Array) -> Array:
    """The inverse of `by_groups`."""
    *b, K, G, T, D = a.shape
    return jnp.moveaxis(a, -2, -4).reshape(*b, T, K * G, D)


def in_rows(a: Array, k: Array) -> Array:
    """(*b, T, N, D) as (M, R, D): for each batch and head of keys k, M in all, the R = N T / K steps of its heads."""
    of = by_groups(a, k.shape[-2])
    return of.reshape(math.prod(of.shape[:-3]), of.shape[-3] * of.shape[-2], of.shape[-1])


def from_rows(a: Array, like: Array, k: Array) -> Array:
    """The inverse, of arrays of as many heads as `like`."""
    *b, T, N, _ = like.shape
    return from_groups(a.reshape(*b, k.shape[-2], N // k.shape[-2], T, a.shape[-1]))
