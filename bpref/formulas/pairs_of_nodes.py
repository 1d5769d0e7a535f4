"""Features of each pair (i, j) of N nodes, and which of the pairs there are: the x of what updates triangles."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float


class PairsOfNodes(NamedTuple):
    """Pairs, and a mask where nodes only fill up the batch.

    Attributes:
      z: the features of each pair.
      mask: which pairs there are; all, where it is left out.
    """

    z: Float[Array, "*b N>0 N c>0"]
    mask: Bool[Array, "*b N N"] | None = None

    by_name = True


def as_pairs(x: Array | PairsOfNodes) -> PairsOfNodes:
    """`x`, an array being all pairs there are."""
    return x if isinstance(x, PairsOfNodes) else PairsOfNodes(x)


def like_pairs(dz: Array, x: Array | PairsOfNodes) -> Array | PairsOfNodes:
    """dx, in the form that x came in."""
    return PairsOfNodes(dz) if isinstance(x, PairsOfNodes) else dz


def mirrored(v: Array) -> Array:
    """(*b, N, N, c) with the pair (j, i) in the place of (i, j)."""
    return jnp.swapaxes(v, -3, -2)
