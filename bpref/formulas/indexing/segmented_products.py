"""Products of neighbours that belong together: of each stretch of a line, and for each value the product of the others.

A line is cut into stretches by `starts`, True at the first value of each. Prefixes and suffixes of a stretch,

    P_j = v_first ... v_j       S_j = v_j ... v_last       others of v_j = P_{j-1} S_{j+1}

need no division, and so are right with any number of zeros. Both are found in 2 log2 n steps.
"""

import jax.numpy as jnp
from jax import Array, lax

from bpref.formulas.indexing.along_axis import shifted


def running_product(v: Array, starts: Array, axis: int, reverse: bool = False) -> Array:
    """P along an axis; with `reverse` S, and `starts` is True at the last value of each stretch."""

    def then(first, second):
        (has_start, a), (starts_later, b) = first, second
        return has_start | starts_later, jnp.where(starts_later, b, a * b)

    return lax.associative_scan(then, (starts, v), reverse=reverse, axis=axis)[1]


def product_of_others(v: Array, starts: Array, ends: Array, axis: int) -> Array:
    """For each value the product of all others of its stretch."""
    before = jnp.where(starts, 1, shifted(running_product(v, starts, axis), axis, False, 1))
    after = jnp.where(ends, 1, shifted(running_product(v, ends, axis, reverse=True), axis, True, 1))
    return before * after


def stretches(of: Array, axis: int) -> tuple[Array, Array]:
    """Where stretches of equal neighbours start, and where they end."""
    n = of.shape[axis]
    if n == 0:
        return jnp.zeros_like(of, bool), jnp.zeros_like(of, bool)
    differs = lax.slice_in_dim(of, 1, n, axis=axis) != lax.slice_in_dim(of, 0, n - 1, axis=axis)
    edge = jnp.ones_like(lax.slice_in_dim(of, 0, 1, axis=axis), bool)
    return lax.concatenate((edge, differs), axis), lax.concatenate((differs, edge), axis)
