"""A shape in a cache, for a backward that needs nothing of x but how large it was."""

import jax.numpy as jnp
from jax import Array


def shape_keeper(x: Array) -> Array:
    """An array of no elements that tells x's shape, `keeper.shape[1:]`, and its dtype: a cache of 0 bytes."""
    return jnp.empty((0, *x.shape), x.dtype)
