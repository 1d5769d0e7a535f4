"""Choices sorted by their expert: where each choice's row stands, and which choice a row is of.

All first choices come before all second ones, each in the order of the tokens: a choice (n, j) that is one too many for
the capacity of its expert, or whose expert is none, has no row. The rows of expert e are the next s_e ones, s_e = c_e,
or C where more chose it; behind the last there is nothing, up to R = N k rows, or E C.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from bpref.formulas.mixture.grouped_rows import by_choice, by_expert


class Order(NamedTuple):
    """Of choices numbered j N + n.

    Attributes:
      choice: of each row its choice, k N where there is none.
      row: of each choice its row, R where it has none.
      sizes: how many rows each expert has.
    """

    choice: Int[Array, " R"]
    row: Int[Array, "k N"]
    sizes: Int[Array, " E"]


def rows_of(N: int, k: int, experts: int, capacity: int | None) -> int:
    """R, how many rows are reserved."""
    return N * k if capacity is None else min(N * k, experts * capacity)


def order_of(chosen: Int[Array, "N k"], experts: int, capacity: int | None) -> Order:
    """The order by experts; what is no number of an expert has no row."""
    N, k = chosen.shape
    R, M = rows_of(N, k, experts, capacity), N * k
    expert, order, counts = by_expert(chosen, experts)
    sizes = counts if capacity is None else jnp.minimum(counts, capacity)
    if not M:  # XLA does not gather from nothing
        return Order(jnp.zeros(R, jnp.int32), jnp.zeros((k, N), jnp.int32), sizes)
    its_expert = jnp.minimum(expert[order], experts - 1)
    rank = jnp.arange(M, dtype=jnp.int32) - (jnp.cumsum(counts) - counts).astype(jnp.int32)[its_expert]
    has_row = (expert[order] < experts) & (rank < sizes[its_expert])
    row = jnp.where(has_row, (jnp.cumsum(sizes) - sizes).astype(jnp.int32)[its_expert] + rank, R)
    if capacity is None:  # then a row stands where its choice does in the order
        choice = jnp.where(has_row, order, M)
    else:
        choice = jnp.full(R, M, jnp.int32).at[row].set(order, mode="drop")
    return Order(choice, by_choice(order, row).reshape(k, N), sizes)
