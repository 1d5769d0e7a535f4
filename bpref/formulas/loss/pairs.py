"""The input of a loss, the pair (prediction, target), what is taken of it, and what is kept."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

Target = Float[Array, "*n"] | Int[Array, "*n"] | Bool[Array, "*n"]
"""Real numbers, which have a cotangent, or labels, which have none."""


class Pair(NamedTuple):
    prediction: Float[Array, "*n"]
    target: Float[Array, "*n"]


class LogitsAndTarget(NamedTuple):
    logits: Float[Array, "*n"]
    target: Target


class ScoresAndTarget(NamedTuple):
    scores: Float[Array, "*n"]
    target: Target


class TwoLogits(NamedTuple):
    logits: Float[Array, "*n C>0"]
    target: Float[Array, "*n C"]


class ErrorCache(NamedTuple):
    error: Float[Array, "..."]


class SlopesCache(NamedTuple):
    """What the terms' cotangent is multiplied by in those of the pair; a label has none."""

    slope: Float[Array, "..."]
    target_slope: Float[Array, "..."] | None


def of_no_size(x: Array) -> Float[Array, "0"]:
    """What a cache keeps, in no bytes, so that dx is of x's dtype where nothing else in it is: J is wider."""
    return jnp.zeros((0,), x.dtype)
