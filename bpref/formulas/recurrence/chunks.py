"""A sequence cut into chunks that are worked on one after the other, each by products of small matrices.

An array (*b, T, N, D) becomes (C, G, rows, D): C chunks of L time steps, G the batches times the K heads of keys, and
L N / K rows, since N / K heads of queries that meet one head of keys are but more rows of it. The last chunk is filled
up with zeros. Half precision becomes float32 here, once.
"""

from math import prod

import jax.numpy as jnp
from jax import Array, ShapeDtypeStruct, lax

from bpref.dtypes import cast, wide_dtype, widen


def into_chunks(x: Array, K: int, chunk: int) -> Array:
    """(*b, T, N, D) -> (C, G, L N / K, D), zeros after T; at least one chunk."""
    *b, T, N, D = x.shape
    L = chunk
    C = max(-(-T // L), 1)
    x = jnp.reshape(widen(x), (prod(b), T, N, D))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, C * L - T, 0), (0, 0, 0), (0, 0, 0)])
    x = jnp.reshape(x, (prod(b), C, L, K, N // K, D))
    return jnp.reshape(jnp.transpose(x, (1, 0, 3, 2, 4, 5)), (C, prod(b) * K, L * (N // K), D))


def fitting(chunk: int, T: int) -> int:
    """The number of steps of a chunk: no more than there are, and at least 1."""
    return max(min(chunk, T), 1)


def halving(chunk: int, T: int) -> int:
    """The same, of a power of 2: the next one where there are fewer steps."""
    return min(chunk, 1 << max(T - 1, 0).bit_length())


def from_chunks(x: Array, K: int, like: Array) -> Array:
    """The way back: (C, G, L N / K, E) -> (*b, T, N, E), in the dtype, and with all axes but the last, of `like`."""
    *b, T, N, _ = like.shape
    C, _, rows, E = x.shape
    L = rows // (N // K)
    x = jnp.reshape(x, (C, prod(b), K, L, N // K, E))
    x = jnp.reshape(jnp.transpose(x, (1, 0, 3, 2, 4, 5)), (prod(b), C * L, N, E))
    return cast(jnp.reshape(x[:, :T], (*b, T, N, E)), like.dtype)


def transpose(A: Array) -> Array:
    return jnp.swapaxes(A, -1, -2)


def sees(rows: int, columns: int, reverse: bool = False, strictly: bool = False) -> Array:
    """Which rows of a chunk see which columns, (1, rows, columns): those of no later time; in `reverse`, no earlier.

    Both are spread over the same time steps, several rows in turn at one step where there are more of them.
    """
    steps = max(min(rows, columns), 1)
    row, column = (jnp.arange(n) // max(n // steps, 1) for n in (rows, columns))
    if reverse:
        row, column = -row, -column
    row, column = row[None, :, None], column[None, None, :]
    return row > column if strictly else row >= column


def dot(a: Array, b: Array) -> Array:
    """The products of vectors, kept as one feature."""
    return jnp.sum(a * b, -1, keepdims=True)


def no_state_of(k: Array | ShapeDtypeStruct, E: int) -> Array:
    """What a state (G, D, E) begins with, for keys (*b, T, K, D), or their specification, and values of E features."""
    *b, _, K, D = k.shape
    return jnp.zeros((prod(b) * K, D, E), wide_dtype(k.dtype))
