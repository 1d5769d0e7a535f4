"""The logits of a linear layer by blocks of classes: what the fused cross-entropy sums over all classes, both ways.

In the symbols of `fused_linear_cross_entropy`: u = h W^T + b, z_nc = t tanh(u_nc / t) with a soft cap t and u_nc
without, of one block of classes after the other, as (classes, rows).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.affine import times, times_transposed, transposed_times
from bpref.loops import among_devices, block_of, for_blocks


class Classes(NamedTuple):
    """The layer of which z are the logits."""

    W: Float[Array, "V d"]
    b: Float[Array, " V"] | None


class Blocks(NamedTuple):
    """How logits are made: with which soft cap, of how many classes at once; and whether their sum is of use."""

    soft_cap: float | None
    size: int
    has_total: bool


class Sums(NamedTuple):
    """Of each row: the largest logit m, R, z_y, and, where it is of use, the sum of all logits."""

    m: Float[Array, " N"]
    R: Float[Array, " N"]
    own: Float[Array, " N"]
    total: Float[Array, " N"]


class Slopes(NamedTuple):
    """Of each row, what dJ / dz is made of: rate e^(z - m) - even, and at_own - even where c = y."""

    m: Float[Array, " N"]
    rate: Float[Array, " N"]
    at_own: Float[Array, " N"]
    even: Float[Array, " N"]


def sums_over(blocks: Blocks, classes: Classes, A: Array, y: Array, keep: bool = False) -> tuple[Sums, Array | None]:
    """Of rows A (N, d) with labels y the sums over all classes, and the logits (V, N) where they are to be kept."""

    def add(carry, start, size):
        (m, R, own, total), kept = carry
        z = _logits(blocks, classes, A, start, size)
        is_own = _is_own(y, start, size)
        higher = lax.stop_gradient(jnp.maximum(m, jnp.max(z, 0)))
        rest = jnp.sum(jnp.where(is_own, 0, jnp.exp(z - higher[None])), 0)
        R = R * jnp.exp(m - higher) + rest
        own += jnp.sum(jnp.where(is_own, z, 0), 0)
        total = total + jnp.sum(z, 0) if blocks.has_total else total
        return Sums(higher, R, own, total), lax.dynamic_update_slice_in_dim(kept, z, start, 0) if keep else kept

    zero = jnp.zeros(y.shape, widen(A).dtype)
    kept = jnp.zeros((len(classes.W), y.size), zero.dtype) if keep else None
    return for_blocks(len(classes.W), blocks.size, add, (Sums(zero - jnp.inf, zero, zero, zero), kept))


def pull_sums(
    blocks: Blocks,
    classes: Classes,
    A: Array,
    y: Array,
    slopes: Slopes,
    dclasses: Classes | None = None,
    logits: Array | None = None,
) -> tuple[Array, Array | None, Array]:
    """dW, db, and dh of these rows, the last in at least float32; with kept logits, dW and db are added to."""
    m, rate, at_own, even = slopes
    if dclasses is None:
        dclasses = Classes(jnp.zeros_like(classes.W), None if classes.b is None else jnp.zeros_like(classes.b))

    def add(cotangents, start, size):
        dW, db, dh = cotangents
        z = _logits(blocks, classes, A, start, size) if logits is None else block_of(logits, start, size)
        slope = jnp.where(_is_own(y, start, size), at_own[None], rate[None] * jnp.exp(z - m[None]))
        if blocks.has_total:
            slope -= even[None]
        if blocks.soft_cap is not None:
            slope *= (1 - z / blocks.soft_cap) * (1 + z / blocks.soft_cap)
        dW = put(dW, times(slope, widen(A)), start)
        db = None if db is None else put(db, jnp.sum(slope, 1), start)
        return dW, db, dh + transposed_times(slope, widen(block_of(classes.W, start, size)))

    def put(d, of_block, start):
        if logits is not None or among_devices():
            of_block += block_of(d, start, of_block.shape[0])
        return lax.dynamic_update_slice_in_dim(d, cast(of_block, d.dtype), start, 0)

    return for_blocks(len(classes.W), blocks.size, add, (*dclasses, jnp.zeros_like(widen(A))))


def _logits(blocks: Blocks, classes: Classes, A: Array, start: Array | int, size: int) -> Array:
    """z of a block of classes: (size, N)."""
    z = times_transposed(block_of(classes.W, start, size), A)
    if classes.b is not None:
        z += lax.broadcast_in_dim(widen(block_of(classes.b, start, size)), z.shape, (0,))
    return z if blocks.soft_cap is None else blocks.soft_cap * jnp.tanh(z / blocks.soft_cap)


def _is_own(y: Array, start: Array | int, size: int) -> Array:
    """[c = y] for the classes of a block: (size, N)."""
    return lax.broadcasted_iota(y.dtype, (size, y.size), 0) == (y - cast(jnp.asarray(start), y.dtype))[None]
