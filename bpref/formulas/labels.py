"""Labels, integers that each name one of C classes along the last axis of some scores.

A label that is no class cannot be seen while tracing. Layers make NaN of its position; the nearest class stands in
for it meanwhile.
"""

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import widen_integers


def is_class(label: Array, scores: Array) -> Array:
    """Whether each label is a class: (...)."""
    y = widen_integers(label)
    return (y >= 0) & (y < scores.shape[-1])


def nearest_class(label: Array, scores: Array) -> Array:
    """A class for every label: (...)."""
    return jnp.clip(widen_integers(label), 0, scores.shape[-1] - 1)


def is_own(label: Array, scores: Array) -> Array:
    """[c = y], of the scores' shape."""
    y = widen_integers(label)
    return lax.broadcasted_iota(y.dtype, scores.shape, scores.ndim - 1) == y[..., None]


def own_score(label: Array, scores: Array) -> Array:
    """z_y, `(..., 1)`."""
    return jnp.take_along_axis(scores, nearest_class(label, scores)[..., None], -1, mode="clip")
