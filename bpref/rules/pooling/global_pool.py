"""global_pool: one number for each channel, the mean or the maximum over all spatial axes, channels last.

Forward, with j running over the S places of all spatial axes:

    mean      y_nc = 1/S sum_j x_njc                                                      x: (N, *sizes, C)
    maximum   y_nc = x_n,w_nc,c, w the first place, in memory, of the largest element     y: (N, C)

Differential: delta y = 1/S sum_j delta x_j, or delta x_w: while no two elements are equal, w does not change. Collect
the factor of each delta x_j:

    mean      dx_njc = dy_nc / S                                                          (N, *sizes, C)
    maximum   dx_njc = [j = w_nc] dy_nc                                                   (N, *sizes, C)

Ties: the first of the largest elements gets all of dy, as in `max_pool`, where `jnp.max` shares it out. A NaN is larger
than everything: y is NaN, and the first NaN gets dy.

Cached: for a mean x's sizes and dtype alone, which an array without examples carries in 0 bytes; for a maximum w as
well, 4 bytes for each channel. Neither x nor y is needed.

Numerical care: the sum runs in at least float32. w is found by comparing x with its maximum, which is two passes over
x; the pairs (value, place) that `argmax` reduces take a CPU longer.
"""

import math
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.dtypes import cast, widen
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule
from bpref.rules.pooling.adaptive_pool import require_kind


class GlobalPoolCache(NamedTuple):
    winner: Int[Array, "N C"] | None
    no_examples: Float[Array, "0 *sizes C"]


def global_pool(kind: Literal["average", "max"] = "average") -> Layer[tuple[()], Array, Reals, GlobalPoolCache]:
    """y = the mean or the maximum over all spatial axes.

    Args:
      kind: "average" or "max".

    Returns:
      A layer with params `()`, x `(N, *sizes, C)` with one spatial axis or more, and y `(N, C)`.

    Raises:
      ValueError: there is no such kind; x has no spatial axis, or an empty one.
      TypeError: x is not floating-point.
    """
    who = "global_pool"
    require_kind(who, kind)

    def forward(params, x: Float[Array, "N S>0 some=*sizes C"]):
        if kind == "average":
            S = math.prod(x.shape[1:-1])
            y = lax.reduce_sum(widen(x), tuple(range(1, x.ndim - 1))) / S
            return cast(y, x.dtype), GlobalPoolCache(None, x[:0])
        flat = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        w = _first_largest(flat)
        y = jnp.take_along_axis(flat, w[:, None], 1, mode="clip")[:, 0]
        return y, GlobalPoolCache(w, x[:0])

    def backward(params, cache, dy):
        N, C = dy.shape
        sizes, dtype = cache.no_examples.shape[1:-1], cache.no_examples.dtype
        S = math.prod(sizes)
        if cache.winner is None:
            share = cast(widen(dy) / S, dtype)
            return (), lax.broadcast_in_dim(share, (N, *sizes, C), (0, len(sizes) + 1))
        place = lax.broadcasted_iota(cache.winner.dtype, (N, S, C), 1)
        dx = jnp.where(place == cache.winner[:, None], dy[:, None], 0)
        return (), dx.reshape(N, *sizes, C)

    return Layer(no_params, forward, backward, who)


def _first_largest(x: Array) -> Array:
    """The first place along the middle axis of x `(N, S, C)` where the maximum is, or a NaN."""
    S = x.shape[1]
    largest = lax.reduce_max(x, (1,))
    place = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return lax.reduce_min(jnp.where((x == largest[:, None]) | jnp.isnan(x), place, S - 1), (1,))


def reference(params: tuple[()], x: Array, kind: Literal["average", "max"] = "average") -> Array:
    if kind == "average":
        return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    return jnp.take_along_axis(flat, jnp.argmax(flat, 1, keepdims=True), 1)[:, 0]


RULE = Rule(
    "global_pool",
    global_pool,
    reference,
    cases=(
        Case("average, 2-D", Real("N H W C"), never_empty=("H", "W"), timed={"N": 16, "H": 32, "W": 32, "C": 32}),
        Case("average, 1-D", Real("N T C"), never_empty=("T",)),
        Case("max, 2-D", Real("N H W C", points=(4.0,) * 40), {"kind": "max"}, never_empty=("H", "W")),
        Case("max, 3-D", Real("N D H W C"), {"kind": "max"}, never_empty=("D", "H", "W")),
    ),
    cite="Lin et al., 'Network in network' (2013), arXiv:1312.4400, section 3.2",
    covers=("global average pooling", "global max pooling"),
)
