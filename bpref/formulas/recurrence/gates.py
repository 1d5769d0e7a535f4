"""Gates: one matrix of preactivations cut into equal blocks of columns, and the slopes made of the gates themselves."""

import jax.numpy as jnp
from jax import Array


def blocks(z: Array, count: int) -> list[Array]:
    """`count` blocks of columns of the last axis."""
    return jnp.split(z, count, axis=-1)


def sigmoid_slope(s: Array) -> Array:
    """The slope of the sigmoid where its value is s."""
    return s * (1 - s)


def tanh_slope(t: Array) -> Array:
    """The slope of tanh where its value is t."""
    return 1 - t * t
