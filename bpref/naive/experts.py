"""Which slot of which expert, or which row of those sorted by expert, each choice has, as it is written down."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def slots(chosen: Array, experts: int, capacity: int, dtype: DTypeLike) -> Array:
    """(N, k, experts, capacity): 1 where choice (n, j) has the slot, all first choices before all second ones."""
    N, k = chosen.shape
    own = jax.nn.one_hot(chosen, experts, dtype=jnp.int32)
    in_order = jnp.swapaxes(own, 0, 1).reshape(k * N, experts)
    rank = jnp.swapaxes((jnp.cumsum(in_order, 0) - in_order).reshape(k, N, experts), 0, 1)
    return jax.nn.one_hot(rank, capacity, dtype=dtype) * own[..., None].astype(dtype)


def rows(chosen: Array, experts: int, capacity: int | None, dtype: DTypeLike) -> tuple[Array, Array]:
    """(N, k, R): 1 where choice (n, j) has the row; and how many rows each expert has."""
    most = chosen.size if capacity is None else capacity
    of_slots = slots(chosen, experts, most, dtype)
    sizes = jnp.sum(of_slots, (0, 1, 3)).astype(jnp.int32)
    first = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
    row = first[:, None] + jnp.arange(most, dtype=jnp.int32)[None]
    R = chosen.size if capacity is None else min(chosen.size, experts * capacity)
    return jnp.einsum("nkec,ecr->nkr", of_slots, jax.nn.one_hot(row, R, dtype=dtype)), sizes
