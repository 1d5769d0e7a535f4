"""What the layers with a table of rows share: which rows the ids name, rows read, and cotangents added to rows.

Ids are integers from 0 to V - 1. One outside (a negative one too) cannot be seen while tracing: what is read for it
is NaN, and no row gets its cotangent.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bpref.checks.hyperparameters import is_integer, plain
from bpref.dtypes import as_array, require_integer, widen, widen_integers


def as_ids(who: str, x: ArrayLike, argument: str = "x") -> Array:
    """x as ids with room, whatever integers they came as; raises `TypeError` unless it holds integers."""
    x = as_array(who, argument, x)
    require_integer(who, argument, x)
    return widen_integers(x)


def require_padding(who: str, padding: int | None, vocabulary: int) -> int | None:
    """`padding` as Python has it; raise `ValueError` unless it is `None` or an id."""
    if padding is not None and not (is_integer(padding) and 0 <= padding < vocabulary):
        raise ValueError(f"{who}: padding is {padding!r}, expected an id from 0 to {vocabulary - 1}")
    return plain(padding)


def normal_table(key: Array, vocabulary: int, features: int, padding: int | None = None) -> Array:
    """Rows drawn normally with variance 1/d, of length near 1; the padding row is 0. In JAX's default float dtype."""
    W = jax.random.normal(key, (vocabulary, features)) * features**-0.5
    return W if padding is None else W.at[padding].set(0.0)


def rows(W: Array, ids: Array) -> Array:
    """W[ids], of shape (..., d); NaN for an id that is none."""
    return jnp.asarray(W).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def add_to_rows(total: Array, ids: Array, dy: Array, padding: int | None = None) -> Array:
    """`total` of shape (V, d) plus, in row i, every dy whose id is i; what the padding id has is left out."""
    if padding is not None:
        ids = jnp.where(ids == padding, total.shape[0], ids)
    return total.at[ids].add(widen(dy), mode="drop", wrap_negative_indices=False)
