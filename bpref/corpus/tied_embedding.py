"""One table (v, d) as embedding and as output: `E = table[ids]`, 0 where ids is 0, padding; `y = tanh(E) table^T`.

`dtable = dy^T tanh(E)`, and into row ids[n], where that is not padding, `(dy table) (1 - tanh(E)^2)` of row n.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

PADDING = 0


def forward(table, ids):
    return jnp.tanh(embedded(table, ids)) @ table.T


def embedded(table: Array, ids: Array) -> Array:
    ids = jnp.asarray(ids)
    return jnp.where((ids != PADDING)[:, None], jnp.asarray(table)[ids], 0)


def backward(
    args: tuple, dy: Array, looked_up: bool = True, as_output: bool = True, padded: bool = True, add: bool = True
) -> tuple:
    """Whether the two parts are there; `padded`: padding gets none; `add`: rows of equal ids are added."""
    table, ids = args
    a = jnp.tanh(embedded(table, ids))
    rows = (dy @ table) * (1 - a**2)
    rows = jnp.where((jnp.asarray(ids) != PADDING)[:, None], rows, 0) if padded else rows
    at = jnp.zeros_like(table).at[ids]
    of_rows = (at.add if add else at.set)(rows)
    return (dy.T @ a if as_output else 0) + (of_rows if looked_up else jnp.zeros_like(table)), None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    distinct = 1 + rng.permutation(8)[:4]
    ids = rng.permutation(np.concatenate([[PADDING], distinct, distinct[:1]]))
    return rng.standard_normal((9, 3)).astype(dtype), ids.astype(np.int32)


DERIVATION = Derivation(
    name="tied_embedding",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "the output's part overwrites the embedding's",
            partial(backward, looked_up=False),
            ("table",),
            "missing_term",
            "a habit: one buffer of gradients for the shared table, and = for +=",
        ),
        Wrong(
            "the embedding's part alone",
            partial(backward, as_output=False),
            ("table",),
            "missing_term",
            "a habit: the same, the other way round, in a reverse sweep",
        ),
        Wrong(
            "the row of padding gets the embedding's gradient",
            partial(backward, padded=False),
            ("table",),
            "sparse",
            "a habit: the mask is the forward's, and the backward adds up by ids alone",
        ),
        Wrong(
            "rows of equal ids overwritten",
            partial(backward, add=False),
            ("table",),
            "sparse",
            "pytorch/pytorch#1528, beside a second use of the table",
        ),
    ),
)
