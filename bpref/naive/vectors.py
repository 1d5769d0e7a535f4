"""Vectors that a decomposition leaves open but for a number of size 1, turned as rules turn them."""

import jax.numpy as jnp
from jax import Array


def turning_largest_positive(V: Array) -> Array:
    """For each column of V, `(..., k)`, the number of size 1 that makes its largest element real and positive."""
    if not jnp.iscomplexobj(V):
        return jnp.where(-V.min(-2, initial=0) > V.max(-2, initial=0), -1, 1).astype(V.dtype)
    sizes = jnp.abs(V)
    largest = jnp.sum(jnp.where(sizes == sizes.max(-2, keepdims=True, initial=0), V, 0), -2)
    return largest.conj() / jnp.abs(largest).astype(V.dtype)
