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


def one_or_mean(terms: Array, mean: bool) -> Array:
    """The examples' terms, or their mean, in the terms' dtype."""
    return jnp.sum(terms) / terms.size if mean else terms


def for_each(dJ: Array, B: int, mean: bool) -> Array:
    """The cotangent of each example's term, given that of `one_or_mean`."""
    return jnp.broadcast_to(dJ / B, (B,)) if mean else dJ


def require_examples(who: str, B: int, mean: bool) -> None:
    """Raise `ValueError` when a mean is to be taken over no examples."""
    if mean and B == 0:
        raise ValueError(f"{who}: the batch is empty, its mean is not defined")


def require_label(who: str, name: str, label: int, C: int) -> None:
    """Raise `ValueError` unless a label that is a hyperparameter is one of the C classes."""
    if label >= C:
        raise ValueError(f"{who}: {name} is {label}, logits has {C} classes in its last axis")
