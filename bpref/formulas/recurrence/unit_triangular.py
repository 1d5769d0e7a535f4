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


def right_divided(B: Array, N: Array, transposed: bool = False) -> Array:
    """B (I + N)^-1, or B (I + N)^-T, of B (G, R, L) and N (G, L, L) below the diagonal, by halves of the columns.

    With N in blocks A, C and D, [X, Y] (I + N) = B is Y (I + D) = B'' and X (I + A) = B' - Y C.
    """
    L = N.shape[-1]
    if L <= 64:
        X = inverse_of_unit(N)
        return jnp.matmul(B, jnp.swapaxes(X, -1, -2) if transposed else X)
    half = L // 2
    A, C, D = N[..., :half, :half], N[..., half:, :half], N[..., half:, half:]
    X, Y = B[..., :half], B[..., half:]
    if transposed:
        X = right_divided(X, A, transposed)
        Y = right_divided(Y - jnp.matmul(X, jnp.swapaxes(C, -1, -2)), D, transposed)
    else:
        Y = right_divided(Y, D)
        X = right_divided(X - jnp.matmul(Y, C), A)
    return jnp.concatenate([X, Y], -1)
