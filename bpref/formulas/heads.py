"""What attention is given: queries, keys and values by heads, and what decides which of them meet."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.dtypes import came, require_floating, require_integer
from bpref.formulas.tuples import require_dtype_of


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

    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b S K D"]
    v: Float[Array, "*b S K E"]
    mask: Bool[Array, "*#b #N #T #S"] | None = None
    bias: Float[Array, "*#b #N #T #S"] | None = None
    q_segments: Int[Array, "*b T"] | None = None
    kv_segments: Int[Array, "*b S"] | None = None
    key: Array | None = None


def require_heads(who: str, x: Any) -> None:
    """Raise `ValueError` or `TypeError` unless the arrays of `x` fit each other, as `Heads` says."""
    if not isinstance(x, Heads):
        raise TypeError(f"{who}: x is {came(x)}, expected bpref.Heads(q, k, v)")
    q, k, v = x.q, x.k, x.v
    for name, array in (("q", q), ("k", k), ("v", v)):
        require_floating(who, name, array)
        require_dtype_of(who, name, array, "q", q)
        if len(array.shape) < 3 or 0 in array.shape[-3:]:
            axes = "(..., T, N, D)" if name == "q" else "(..., S, K, D)"
            raise ValueError(f"{who}: {name} has shape {array.shape}, expected {axes}, each of these at least 1")
    if q.shape[:-3] != k.shape[:-3] or q.shape[-1] != k.shape[-1]:
        raise ValueError(
            f"{who}: k has shape {k.shape}, expected (..., S, K, {q.shape[-1]}) with q's batch axes (q: {q.shape})"
        )
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"{who}: v has shape {v.shape}, expected {k.shape[:-1]} and E features (k: {k.shape})")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{who}: q has {q.shape[-2]} heads, expected a multiple of k's {k.shape[-2]}")
    whole = (*q.shape[:-3], q.shape[-2], q.shape[-3], k.shape[-3])
    for name, array in (("mask", x.mask), ("bias", x.bias)):
        if array is not None and not _fits(array.shape, whole):
            raise ValueError(f"{who}: {name} has shape {array.shape}, expected {whole}, or 1 in place of any of these")
    if x.mask is not None and x.mask.dtype != bool:
        raise TypeError(f"{who}: mask has dtype {x.mask.dtype}, expected bool")
    if x.bias is not None:
        require_dtype_of(who, "bias", x.bias, "q", q)
    for name, array, like in (("q_segments", x.q_segments, q), ("kv_segments", x.kv_segments, k)):
        if array is not None:
            require_integer(who, name, array)
            if array.shape != like.shape[:-2]:
                raise ValueError(f"{who}: {name} has shape {array.shape}, expected {like.shape[:-2]}")
    if x.kv_segments is not None and x.q_segments is None:
        raise ValueError(f"{who}: kv_segments are given without q_segments")
    if x.q_segments is not None and x.kv_segments is None and q.shape[-3] != k.shape[-3]:
        raise ValueError(f"{who}: {q.shape[-3]} queries and {k.shape[-3]} keys need kv_segments too")


def segments_of(x: Heads) -> tuple[Array, Array] | None:
    """The ids of queries and keys; `None` where nothing is packed."""
    if x.q_segments is None:
        return None
    return x.q_segments, x.q_segments if x.kv_segments is None else x.kv_segments


def by_groups(a: Array, K: int) -> Array:
    """(*b, T, N, D) as (*b, K, N / K, T, D): the heads that share a key stand together."""
    *b, T, N, D = a.shape
    return jnp.moveaxis(a.reshape(*b, T, K, N // K, D), -4, -2)


def from_groups(a: Array) -> Array:
    """The inverse of `by_groups`."""
    *b, K, G, T, D = a.shape
    return jnp.moveaxis(a, -2, -4).reshape(*b, T, K * G, D)


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return len(shape) == len(whole) and all(n in (1, m) for n, m in zip(shape, whole, strict=True))
