"""Lengths and directions along the last axis, defined at the vector 0 too, and what a change of direction costs.

    |z| = sqrt(sum_j z_j^2)         delta |z| = u . delta z
    u   = z / |z|                   delta u   = (delta z - u (u . delta z)) / |z|

The matrix I - u u^T is its own transpose, so dz = (du - u (u . du)) / |z|. At z = 0, where neither has a derivative,
u is 0 and both derivatives are taken as 0, which any autodiff of these functions also gives. Squares overflow, in
float32, where |z| is beyond 1e19, and vanish below 1e-23.
"""

import jax.numpy as jnp
from jax import Array


def length(z: Array) -> Array:
    """|z|: (..., d) -> (..., 1)."""
    square = jnp.sum(z * z, -1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), square)


def inverse(length: Array) -> Array:
    """1 / |z|, and 0 where |z| is 0."""
    return jnp.where(length == 0, 0, 1 / jnp.where(length == 0, 1, length))


def unit(z: Array) -> tuple[Array, Array]:
    """u and 1 / |z|: (..., d) and (..., 1).

    u is rounded once: a vector of one number has exactly 1 or -1, which z times 1 / |z| misses by a bit.
    """
    size = length(z)
    return z / jnp.where(size == 0, 1, size), inverse(size)


def from_unit(u: Array, per_length: Array, du: Array) -> Array:
    """dz, given du."""
    return (du - u * jnp.sum(u * du, -1, keepdims=True)) * per_length
