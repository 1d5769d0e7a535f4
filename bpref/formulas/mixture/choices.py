"""What routers share: a token's chosen experts as numbers among all of them, and the softmax on the way back."""

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import cast


def one_hot(chosen: Array, z: Array) -> Array:
    """[i_nj = e], of shape (..., k, E), for the choices i (..., k) among what z (..., E) has a number of."""
    shape = *chosen.shape, z.shape[-1]
    expert = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    return cast(jnp.broadcast_to(chosen[..., None].astype(jnp.int32), shape) == expert, z.dtype)


def at(v: Array, chosen: Array) -> Array:
    """v (..., E) at the choices, (..., k)."""
    return jnp.take_along_axis(v, chosen.astype(jnp.int32), -1, mode="promise_in_bounds")


def at_the_chosen(d: Array, chosen: Array, z: Array) -> Array:
    """sum_j d_nj [i_nj = e], of shape (..., E): the adjoint of `at`."""
    return jnp.sum(one_hot(chosen, z) * d[..., None], -2)


def through_softmax(p: Array, dp: Array) -> Array:
    """The cotangent of what p is the softmax of."""
    return p * (dp - jnp.sum(p * dp, -1, keepdims=True))


def first_k(a: Array, k: int) -> Array:
    """The numbers of the k largest; of -0 and 0, which are a tie, `lax.top_k` takes the second for the larger."""
    return lax.top_k(jnp.where(a == 0, 0, a), k)[1]
