"""rounding: parameters kept in bfloat16, where an update that is small beside them is not lost but taken by chance."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree


def stochastic_round(key: Array, x: Array) -> Array:
    """x (float32) in bfloat16: up or down to a neighbour, by the chance that makes x the mean (arXiv:1502.02551).

    What is not finite stays so.
    """
    low = jax.random.bits(key, x.shape, jnp.uint32) >> 16
    bits = (lax.bitcast_convert_type(x, jnp.uint32) + low) & jnp.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), lax.bitcast_convert_type(bits, jnp.float32), x).astype(jnp.bfloat16)


def rounded_like(key: Array, wide: PyTree, narrow: PyTree) -> PyTree:
    """A tree in the dtypes of `narrow`: what is in bfloat16 there is rounded, each array by its own draws."""
    leaves, tree = jax.tree.flatten(wide)
    dtypes = [v.dtype for v in jax.tree.leaves(narrow)]
    keys = jax.random.split(key, len(leaves))
    rounded = [stochastic_round(k, v) if d == jnp.bfloat16 else v for k, v, d in zip(keys, leaves, dtypes, strict=True)]
    return jax.tree.unflatten(tree, rounded)
