"""Rows of a table: `y[n, t] = table[ids[n, t]]`, table (v, d); `dtable[i]` is the sum of dy wherever ids is i.

One id occurs three times and id 0, which many take for padding, once.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(table, ids):
    return jnp.asarray(table)[ids]


def backward(args: tuple, dy: Array) -> tuple:
    table, ids = args
    return jnp.zeros_like(table).at[ids].add(dy), None


def overwriting(args: tuple, dy: Array) -> tuple:
    table, ids = args
    return jnp.zeros_like(table).at[ids].set(dy), None


def by_frequency(args: tuple, dy: Array) -> tuple:
    table, ids = args
    count = jnp.zeros(table.shape[:1], table.dtype).at[ids].add(1)
    return backward(args, dy)[0] / jnp.maximum(count, 1)[:, None], None


def gathered(args: tuple, dy: Array) -> tuple:
    """The backward of a scatter: row i reads the incoming row that ids names, modulo what there is."""
    table, ids = args
    rows = dy.reshape(-1, dy.shape[-1])
    read = jnp.resize(jnp.asarray(ids).reshape(-1), table.shape[0]) % rows.shape[0]
    return rows[read], None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    rows, dim, shape = 11, 3, (2, 4)
    distinct = 1 + rng.permutation(rows - 1)[:5]
    ids = rng.permutation(np.concatenate([[0], distinct, distinct[:1], distinct[:1]]))
    return rng.standard_normal((rows, dim)).astype(dtype), ids.reshape(shape).astype(np.int32)


DERIVATION = Derivation(
    name="embedding",
    forward=forward,
    backward=backward,
    make_args=make_args,
    wrong=(
        Wrong(
            "rows of repeated ids overwritten in place of added up",
            overwriting,
            ("table",),
            "sparse",
            "pytorch/pytorch#1528: only the last copy of a repeated index keeps its gradient",
        ),
        Wrong(
            "no gradient for row 0, as if it were padding",
            with_cotangent(backward, 0, lambda dtable: dtable.at[0].set(0)),
            ("table",),
            "sparse",
            "ibalazevic/TuckER#17: padding_idx=0 where row 0 is the first real entity",
        ),
        Wrong(
            "rows of repeated ids averaged",
            by_frequency,
            ("table",),
            "sparse",
            "habit: PyTorch's scale_grad_by_freq, or a mean over the occurrences, where the forward has neither",
        ),
        Wrong(
            "every row one too low, the ids being counted from 1",
            with_cotangent(backward, 0, lambda dtable: jnp.roll(dtable, 1, axis=0)),
            ("table",),
            "shifted",
            "habit: tables and ids moved between Lua, Julia or MATLAB and Python",
        ),
        Wrong(
            "a gather with the ids where the scatter belongs",
            gathered,
            ("table",),
            "unexplained",
            "ooples/AiDotNet.Tensors#894: the backward of a scatter used for that of a gather",
        ),
    ),
)
