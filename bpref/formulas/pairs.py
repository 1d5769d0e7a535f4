"""The input of a loss, the pair (prediction, target), and what is taken of it."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.dtypes import cast, widen

Target = Float[Array, "*n"] | Int[Array, "*n"] | Bool[Array, "*n"]
"""Real numbers, which have a cotangent, or labels, which have none."""


class Pair(NamedTuple):
    prediction: Float[Array, "*n"]
    target: Float[Array, "*n"]


class LogitsAndTarget(NamedTuple):
    logits: Float[Array, "*n"]
    target: Target


def require_batch(who: str, count: int) -> int:
    """The number of terms that the mean is taken over; raises `ValueError` when there are none."""
    if count == 0:
        raise ValueError(f"{who}: the batch is empty, its mean is not defined")
    return count


def count_examples(prediction: Array) -> int:
    """N, the size of the first axis; a scalar is one example."""
    return prediction.shape[0] if prediction.ndim else 1


def of_no_size(x: Array) -> Float[Array, "0"]:
    """What a cache keeps, in no bytes, so that dx is of x's dtype where nothing else in it is: J is wider."""
    return jnp.zeros((0,), x.dtype)


def scaled(dJ: Array, N: int, slope: Array) -> Array:
    """dJ / N times what was kept of a term's derivative, in the derivative's dtype, rounded once."""
    return cast(widen(dJ) / N * widen(slope), slope.dtype)
