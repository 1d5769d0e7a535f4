"""What a function of one array keeps of it for its backward, where that is a single array of its shape, or nothing."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float


class InputCache(NamedTuple):
    x: Float[Array, "..."]


class OutputCache(NamedTuple):
    y: Float[Array, "..."]


class PassingCache(NamedTuple):
    """Where the cotangent passes; elsewhere none does."""

    passes: Bool[Array, "..."]


class NoCache(NamedTuple):
    """Of what needs its params and dy alone."""
