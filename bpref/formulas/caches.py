"""What a function of one array keeps for its backward: its input, its output, where it passes it, or nothing."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float


class InputCache(NamedTuple):
    x: Float[Array, "..."]


class RowsCache(NamedTuple):
    """The input, whose last axis is what the function is of."""

    A: Float[Array, "... d"]


class OutputCache(NamedTuple):
    y: Float[Array, "..."]


class InputAndOutputCache(NamedTuple):
    x: Float[Array, "..."]
    y: Float[Array, "..."]


class PassingCache(NamedTuple):
    """Where the cotangent passes; elsewhere none does."""

    passes: Bool[Array, "..."]


class NoCache(NamedTuple):
    """Of what needs its params and dy alone."""
