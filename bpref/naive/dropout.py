"""What is dropped by a key and by the place, by its definition: what draws it again in parts is held against this."""

import math

import jax.numpy as jnp
from jax import Array, lax
from jax.extend.random import threefry_2x32
from jax.typing import DTypeLike


def naive_kept(key: Array, rate: float, shape: tuple[int, ...], dtype: DTypeLike, from_the_end: bool = False) -> Array:
    """0 with probability `rate`, else 1 / (1 - rate): element c of row i is drawn by the counter (i, c).

    Rows are all axes but the last; `from_the_end` c is 2^32 - 1 less the element's place.
    """
    i = jnp.arange(math.prod(shape[:-1]), dtype=jnp.uint32).reshape(*shape[:-1], 1)
    c = lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)
    counts = jnp.concatenate(
        [jnp.broadcast_to(i, shape).reshape(-1), (jnp.uint32(2**32 - 1) - c if from_the_end else c).reshape(-1)]
    )
    bits = threefry_2x32(key, counts)[: c.size].reshape(shape)
    uniform = (bits >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)  # the first 23 of them, as jax.random.uniform
    return jnp.where(uniform < jnp.float32(1 - rate), jnp.asarray(1 / (1 - rate), dtype), 0)
