"""Which slot of which expert each choice of a token has, as it is written down."""

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
