"""Labels, integers that each name one of C classes along the last axis of some scores.

A label that is no class cannot be seen while tracing. Layers make NaN of its position; the nearest class stands in
for it meanwhile.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax

from bpref.dtypes import widen_integers


def is_label(target: Array) -> bool:
    """Whether a target is labels, and not distributions over the classes."""
    return jnp.issubdtype(target.dtype, jnp.integer)


def is_class(label: Array, scores: Array | ShapeDtypeStruct) -> Array:
    """Whether each label is a class: (...)."""
    y = widen_integers(label)
    return (y >= 0) & (y < scores.shape[-1])


def nearest_class(label: Array, scores: Array | ShapeDtypeStruct) -> Array:
    """A class for every label: (...)."""
    return jnp.clip(widen_integers(label), 0, scores.shape[-1] - 1)


def is_own(label: Array, scores: Array) -> Array:
    """[c = y], of the scores' shape."""
    y = widen_integers(label)
    return lax.broadcasted_iota(y.dtype, scores.shape, scores.ndim - 1) == y[..., None]


def sum_of_others(label: Array, scores: Array, e: Array, exponential: Callable[[Array], Array]) -> Array:
    """R = sum of `e`, the exponentials of the scores, over all classes but the label's: `(..., 1)`.

    Of a sum over all, the others are lost once they are small. Classes are summed by blocks, about sqrt(C) of them, and
    the label's block a second time without it: a mask over all classes costs as much as the exponential. Where C has no
    such divisor the last block is filled up with zeros, in the loop that adds the exponentials: on a CPU half of a loss
    and its gradient again. `lax.reduce_window` would take no longer than one sum; its transpose, which whoever
    differentiates this needs, takes C B additions.
    """
    C, y = e.shape[-1], nearest_class(label, e)
    B = _block(C)
    count = -(-C // B)
    blocked = lax.pad(e, jnp.zeros((), e.dtype), [*[(0, 0, 0)] * (e.ndim - 1), (0, count * B - C, 0)]) if C % B else e
    sums = jnp.sum(blocked.reshape(*label.shape, count, B), -1)
    block = y // B
    members = block[..., None] * B + lax.broadcasted_iota(y.dtype, (*y.shape, B), y.ndim)
    z = jnp.take_along_axis(scores, members, -1, mode="clip")
    rest = jnp.where((members == y[..., None]) | (members >= C), 0, exponential(z))
    return jnp.sum(jnp.where(is_own(block, sums), jnp.sum(rest, -1, keepdims=True), sums), -1, keepdims=True)


def _block(C: int) -> int:
    """The smallest divisor of C from its root on; a power of two where that is more than twice the root and C / 16."""
    root = math.isqrt(C - 1) + 1
    divisor = C // max(n for n in range(1, math.isqrt(C) + 1) if C % n == 0)
    return divisor if divisor <= max(2 * root, C // 16) else 1 << (root - 1).bit_length()


def nats(R: Array, d: Array) -> Array:
    """-log p of a class, log(1 + R / E), with E = exp(d) its exponential and R the sum of all others; at least 0."""
    E = jnp.exp(d)
    return jnp.where(R < E, jnp.log1p(R / jnp.where(R < E, E, 1)), jnp.log(R + E) - d)


def own_score(label: Array, scores: Array) -> Array:
    """z_y, `(..., 1)`."""
    return jnp.take_along_axis(scores, nearest_class(label, scores)[..., None], -1, mode="clip")
