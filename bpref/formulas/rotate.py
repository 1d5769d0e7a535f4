"""The rotation of RoPE: pairs of features turned by an angle that is their position times a frequency.

R_i turns the features c and c + D / 2 of x_i, as the two coordinates of a plane, by the angle i base^(-2 c / D). It is
orthogonal, so its adjoint is its inverse, the rotation the other way.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.dtypes import cast, widen


def rotate(x: Array, base: float, way: int) -> Array:
    """R_i x_i for x of shape (*b, T, N, D), or R_i^T x_i where `way` is -1.

    The angles are computed in float64: in float32, that of position 1e4 is off by 1e-3.
    """
    T, _, D = x.shape[-3:]
    angle = np.arange(T)[:, None] * float(base) ** (-2 * np.arange(D // 2) / D)
    half = (*x.shape[:-1], D // 2)

    def spread(v):
        return lax.broadcast_in_dim(jnp.asarray(v, wide.dtype), half, (x.ndim - 3, x.ndim - 1))

    wide = widen(x)
    c, s = spread(np.cos(angle)), spread(way * np.sin(angle))
    a, b = lax.slice_in_dim(wide, 0, D // 2, axis=-1), lax.slice_in_dim(wide, D // 2, D, axis=-1)
    return cast(lax.concatenate([a * c - b * s, a * s + b * c], x.ndim - 1), x.dtype)
