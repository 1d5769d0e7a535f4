"""Rows sorted by group, laid out in blocks that each lie in one group: a ragged product becomes a loop of whole ones.

R rows come sorted, s_e of them in group e; the rest belongs to no group. A block has B slots:

    ragged       group e has ceil(s_e / B) blocks, all groups (R + E (B - 1)) / B at most: the number that is reserved
    capacity     group e has one block, B is its capacity, and rows from B on in a group have no slot

A slot without a row reads zeros, a row without a slot gets zeros, and both ways are gathers: the adjoint of
`rows_in_blocks` is `rows_from_blocks`, and the reverse.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, PyTree

from bpref.dtypes import wide_dtype, widen, widen_integers
from bpref.loops import scan


class Blocks(NamedTuple):
    """Where rows lie.

    Attributes:
      group: the group of each block.
      row: the row in each slot, R where there is none.
      slot: the slot of each row, the number of all slots where it has none.
    """

    group: Int[Array, " blocks"]
    row: Int[Array, "blocks B"]
    slot: Int[Array, " R"]


def ragged_blocks(sizes: Int[Array, " E"], rows: int, block: int) -> Blocks:
    """Every row of a group has a slot. A negative size counts as 0, and groups end with the last row."""
    E = sizes.shape[0]
    B = max(min(block, rows), 1)
    ends = jnp.minimum(jnp.cumsum(jnp.clip(widen_integers(sizes), 0, rows)), rows).astype(jnp.int32)
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    last = jnp.cumsum(-((starts - ends) // B))
    first = jnp.concatenate([jnp.zeros_like(last[:1]), last[:-1]])
    number = jnp.arange((rows + E * (B - 1)) // B if E else 0, dtype=jnp.int32)
    group = jnp.minimum(_count_up_to(last, number), max(E - 1, 0))
    return _laid_out(group, first, number - first[group], starts, ends, rows, B, None)


def capacity_blocks(sizes: Int[Array, " E"], rows: int, capacity: int) -> Blocks:
    """The first `capacity` rows of every group have a slot."""
    ends = jnp.cumsum(sizes).astype(jnp.int32)
    group = jnp.arange(sizes.shape[0], dtype=jnp.int32)
    return _laid_out(group, group, jnp.zeros_like(group), ends - sizes, ends, rows, capacity, capacity)


def placed(chosen: Int[Array, "N k"], experts: int, blocks_of: Callable[[Array, int], Blocks]) -> Blocks:
    """Blocks of which the row is the number of a choice: all first choices, then all second ones, in tokens' order.

    Args:
      chosen: each token's experts; a number that is none has no slot.
      experts: their number.
      blocks_of: the layout, of how many rows each has, and of all rows.
    """
    _, order, sizes = by_expert(chosen, experts)
    blocks = blocks_of(sizes, chosen.size)
    if not chosen.size:  # XLA does not gather from nothing
        return blocks
    row = order.at[blocks.row].get(mode="fill", fill_value=chosen.size)
    return Blocks(blocks.group, row, by_choice(order, blocks.slot))


def by_expert(chosen: Int[Array, "N k"], experts: int) -> tuple[Int[Array, " M"], Int[Array, " M"], Int[Array, " E"]]:
    """Of choices numbered j N + n the expert, `experts` for none; their order by expert; and how many each has."""
    expert = widen_integers(chosen.T.reshape(-1))
    expert = jnp.where((expert >= 0) & (expert < experts), expert, experts).astype(jnp.int32)
    counts = jnp.sum(expert[:, None] == jnp.arange(experts, dtype=jnp.int32)[None], 0, dtype=jnp.int32)
    return expert, jnp.argsort(expert, stable=True).astype(jnp.int32), counts


def by_choice(order: Int[Array, " M"], v: Int[Array, " M"]) -> Int[Array, " M"]:
    """Numbers of choices in their order by expert, each where its choice is; a TPU sorts faster than it scatters."""

    def scattered(order, v):
        return jnp.zeros_like(v).at[order].set(v, unique_indices=True)

    return lax.platform_dependent(order, v, tpu=lambda *both: lax.sort_key_val(*both)[1], default=scattered)


def token_of(choice: Array, N: int, k: int) -> Array:
    """The token of each choice, N where there is none."""
    return jnp.where(choice < k * N, choice % max(N, 1), N)


def _laid_out(group, first, ordinal, starts, ends, rows, B, capacity) -> Blocks:
    def of(per_group, groups):
        return per_group[groups][:, None]

    rank = ordinal[:, None] * B + jnp.arange(B, dtype=jnp.int32)[None]
    row = of(starts, group) + rank
    row = jnp.where(row < of(ends, group), row, rows)
    each = jnp.arange(rows, dtype=jnp.int32)
    its_group = _count_up_to(ends, each)
    nowhere = row.size
    if ends.shape[0] == 0:
        return Blocks(group, row, jnp.full((rows,), nowhere, jnp.int32))
    clipped = jnp.minimum(its_group, ends.shape[0] - 1)
    rank = each - starts[clipped]
    has_slot = its_group < ends.shape[0]
    if capacity is not None:
        has_slot &= rank < capacity
    return Blocks(group, row, jnp.where(has_slot, first[clipped] * B + rank, nowhere))


def _count_up_to(ends: Array, each: Array) -> Array:
    """How many of the ascending `ends` are at most each number: the group that it lies in."""
    return jnp.sum(ends[None, :] <= each[:, None], -1, dtype=jnp.int32)


def rows_in_blocks(x: Float[Array, "R d"], row: Int[Array, "blocks B"]) -> Float[Array, "blocks B d"]:
    """Each slot's row, zeros where there is none."""
    return _at(x, row)


def rows_from_blocks(y: Float[Array, "blocks B m"], slot: Int[Array, "..."]) -> Float[Array, "... m"]:
    """Each row's slot, zeros where it has none."""
    return _at(y.reshape(y.shape[0] * y.shape[1], y.shape[2]), slot)


def each_choice(rows: Float[Array, "R d"], number: Int[Array, "k N"]) -> list[Array]:
    """The rows of all first choices (N, d), of all second ones, ..., in at least float32; zeros where there is none.

    One gather for each: of numbers that are no vector XLA on a CPU gathers 30 times as long, element by element.
    """
    return [widen(_at(rows, of_one)) for of_one in number]


def _at(rows: Array, number: Array) -> Array:
    """The numbered rows, zeros for a number that is none; XLA does not gather from nothing."""
    if rows.shape[0] == 0:
        return jnp.zeros((*number.shape, rows.shape[1]), rows.dtype)
    return jnp.asarray(rows).at[number].get(mode="fill", fill_value=0)


def over_blocks(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], totals: PyTree, group: Array, blocks: PyTree
) -> tuple[PyTree, PyTree]:
    """`(totals, ys)` of `step(e, block) -> (terms, y)`, where each of the terms is added to its total's element e."""

    def body(totals, one):
        e, block = one
        terms, y = step(e, block)
        return tuple(t.at[e].add(v) for t, v in zip(totals, terms, strict=True)), y

    return scan(body, totals, (group, blocks))


def total_like(W: Array) -> Array:
    """Zeros of W's shape, in at least float32."""
    return jnp.zeros(W.shape, wide_dtype(W.dtype))
