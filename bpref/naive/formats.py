"""Numbers of 8 bits, by a list of all there are."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def nearest_e4m3(v: Array) -> Array:
    """By the numbers of 0 and above, and the midpoints of each two: where |v| is one, the even number; 448 beyond."""
    listed = np.arange(127, dtype=np.uint8).view(jnp.float8_e4m3fn).astype(np.float64)
    numbers, u = jnp.asarray(listed, v.dtype), jnp.abs(v)
    middle = (numbers[1:] + numbers[:-1]) / 2
    at = jnp.searchsorted(middle, u)
    is_tied = u == middle[jnp.minimum(at, len(listed) - 2)]
    at = jnp.where(is_tied & (at % 2 == 1), at + 1, at)
    return jnp.sign(v) * numbers[at]
