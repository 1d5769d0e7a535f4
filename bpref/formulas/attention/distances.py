"""Logits that depend on how far a key is from its query: relative position biases, and ALiBi.

Such a bias is a function u of the distance s - t, so that a block of t rows and s columns is a piece of u that moves by
one place from row to row: nothing of T x S is kept, and the cotangent of u is the sum along each diagonal.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def skew(u: Array, rows: int) -> Array:
    """M of shape (*b, rows, n - rows + 1) with M[r, c] = u[c - r + rows - 1], for u of shape (*b, n).

    u is repeated with one more element than the rows are long, so that each row begins one place earlier.
    """
    *b, n = u.shape
    u = jnp.concatenate([u[..., rows - 1 :], jnp.zeros((*b, 1), u.dtype), u[..., : rows - 1]], -1)
    u = jnp.broadcast_to(u[..., None, :], (*b, rows, n + 1)).reshape(*b, rows * (n + 1))
    return u[..., : rows * n].reshape(*b, rows, n)[..., : n - rows + 1]


def sum_of_diagonals(M: Array) -> Array:
    """du of shape (*b, rows + columns - 1): the adjoint of `skew`, du[d + rows - 1] = sum_r M[r, r + d]."""
    *b, rows, columns = M.shape
    n = rows + columns - 1
    nothing = [(0, 0, 0)] * len(b)
    M = lax.pad(M, jnp.zeros((), M.dtype), [*nothing, (0, 0, 0), (0, n - columns, 0)]).reshape(*b, rows * n)
    u = lax.pad(M, jnp.zeros((), M.dtype), [*nothing, (0, rows, 0)]).reshape(*b, rows, n + 1).sum(-2)
    return jnp.concatenate([u[..., columns + 1 :], u[..., :columns]], -1)


def slopes(heads: int) -> np.ndarray:
    """ALiBi's slope of each head: 2^(-8 n / N) for n = 1 ... N; between powers of two, those of the next, every other.

    Source: arXiv:2108.12409, section 3 and its authors' code.
    """
    power = 2 ** int(np.floor(np.log2(heads)))
    steps = np.arange(1, power + 1) / power
    between = np.arange(1, 2 * power + 1, 2) / (2 * power)
    return 2.0 ** (-8 * np.concatenate([steps, between])[:heads])


def buckets(distance: np.ndarray, number: int, furthest: int, both_ways: bool) -> np.ndarray:
    """T5's bucket of each distance s - t: one for each of the nearest, wider ones further on, one beyond `furthest`.

    Source: arXiv:1910.10683, section 2.1 and its authors' code.
    """
    back = -distance
    first = np.zeros_like(back)
    if both_ways:
        number //= 2
        first, back = np.where(back < 0, number, 0), np.abs(back)
    back = np.maximum(back, 0)
    exact = number // 2
    share = np.log(np.maximum(back, 1) / exact) / np.log(furthest / exact)
    far = np.minimum(exact + (share * (number - exact)).astype(int), number - 1)
    return first + np.where(back < exact, back, far)
