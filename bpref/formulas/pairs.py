"""The input of a loss, the pair (prediction, target), and what is taken of it."""

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


def of_no_size(x: Array) -> Float[Array, "0"]:
    """What a cache keeps, in no bytes, so that dx is of x's dtype where nothing else in it is: J is wider."""
    return jnp.zeros((0,), x.dtype)
