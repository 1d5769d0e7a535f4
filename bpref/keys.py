"""keys: the two words of a PRNG key, and which example of a batch it draws for, where that is told by the place."""

import jax
import jax.numpy as jnp
from jax import Array


def words(key: Array) -> Array:
    """Two 32-bit words of a PRNG key, however it is written."""
    return (jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key)[:2]


def numbered(key: Array, n: int) -> Array:
    """For each of n examples alone the key that draws what `key` draws for it among all: its words, and which it is."""
    return jnp.concatenate([jnp.broadcast_to(words(key), (n, 2)), jnp.arange(n, dtype=jnp.uint32)[:, None]], 1)


def another(key: Array) -> Array:
    """A key to draw from beside this one, for the same example where it is `numbered`."""
    if key.shape != (3,):
        return jax.random.fold_in(key, 1)
    own = jax.random.fold_in(jax.random.wrap_key_data(key[:2], impl="threefry2x32"), 1)
    return jnp.concatenate([words(own), key[2:]])


def number_of(key: Array) -> Array:
    """Which example a key draws for first: that of `numbered`, and else 0."""
    return key[2] if key.shape == (3,) else jnp.uint32(0)
