"""Arrays of which every device holds a block: joined, and apart again."""

import jax.numpy as jnp
from jax import Array


def whole(blocks: Array, axis: int) -> Array:
    """P blocks along a first axis, joined along another of each block's."""
    return jnp.concatenate(list(blocks), axis)


def apart(v: Array, P: int, axis: int) -> Array:
    """P blocks of an axis, along a new first axis."""
    return jnp.stack(jnp.split(v, P, axis))
