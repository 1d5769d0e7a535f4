"""The inverse of a matrix with 1 on its diagonal and 0 above it, by products alone.

Two blocks make one of the next size, [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]]. Powers of what lies below
the diagonal would cancel.
"""

import jax.numpy as jnp
from jax import Array

from bpref.formulas.long_sums import times


def inverse_of_unit(N: Array) -> Array:
    """(I + N)^-1 of N below the diagonal: of blocks of 1, 2, 4, ... steps, two of which make one of the next size."""
    L = N.shape[-1]
    X = jnp.broadcast_to(jnp.eye(L, dtype=N.dtype), N.shape)
    for level in range((L - 1).bit_length()):
        block = jnp.arange(L) >> level
        of_pair = (block[:, None] ^ block[None, :]) == 1
        X = X - times(times(X, jnp.where(of_pair[None], N, 0)), X)
    return X
