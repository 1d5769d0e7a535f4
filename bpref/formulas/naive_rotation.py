"""The rotation of RoPE as the matrix that it is: what layers with positions are held against."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from bpref.dtypes import widen
from bpref.formulas.rotations import Stretch, frequencies, magnitude


def naive_rotation(
    x: Array, base: float, interleaved: bool = False, fraction: float = 1.0, stretch: Stretch | None = None
) -> Array:
    """R_t x_t for x of shape (*b, T, N, D), position t having a D x D matrix R_t."""
    T, _, D = x.shape[-3:]
    turned = round(fraction * D)
    i = np.arange(turned // 2)
    first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + turned // 2)
    angle, size = np.arange(T)[:, None] * frequencies(turned, base, stretch), magnitude(stretch)
    R = np.tile(np.eye(D), (T, 1, 1))
    R[:, first, first] = R[:, second, second] = size * np.cos(angle)
    R[:, second, first] = size * np.sin(angle)
    R[:, first, second] = -size * np.sin(angle)
    wide = widen(x)
    return jnp.einsum("...tnd,ted->...tne", wide, jnp.asarray(R, wide.dtype)).astype(x.dtype)
