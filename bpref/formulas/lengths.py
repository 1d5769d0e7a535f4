"""Sequences of different lengths in one array: their lengths checked, and which of the places are used."""

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import widen_integers


def within(lengths: Array, n: int) -> Array:
    """Lengths from 0 to n: one beyond the array is the array's."""
    return jnp.clip(widen_integers(lengths), 0, n).astype(jnp.int32)


def used(lengths: Array, n: int, axis: int = 1) -> Array:
    """Which places lie before each example's end: (B, n), or (n, B) along axis 0."""
    shape = (lengths.size, n) if axis == 1 else (n, lengths.size)
    ends = lax.broadcast_in_dim(lengths, shape, (1 - axis,))
    return lax.broadcasted_iota(ends.dtype, shape, axis) < ends


def require_label(who: str, name: str, label: int, C: int) -> None:
    """Raise `ValueError` unless a label that is a hyperparameter is one of the C classes."""
    if label >= C:
        raise ValueError(f"{who}: {name} is {label}, logits has {C} classes in its last axis")
