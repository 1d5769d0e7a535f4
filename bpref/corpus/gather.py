"""Rows of a table by their ids: row r of dtable is the sum of dy over the places where r was asked for."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent


def forward(table: Array, ids: Array) -> Array:
    """`(R, D), (N,) -> (N, D)`."""
    return jnp.take(table, ids, axis=0, mode="clip")


def backward(args: tuple, dy: Array) -> tuple:
    table, ids = args
    return jnp.zeros_like(table).at[ids].add(dy), None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """One row is asked for three times, one twice, one once, and all others never; the last id is not repeated."""
    a, b, c = rng.choice(13, 3, replace=False)
    return rng.normal(size=(13, 4)).astype(dtype), np.array([a, b, a, a, b, c])


def _overwrite(args: tuple, dy: Array) -> tuple:
    table, ids = args
    dtable = jnp.zeros_like(table)
    for n in range(len(ids)):
        dtable = dtable.at[ids[n]].set(dy[n])
    return dtable, None


def _average(args: tuple, dy: Array) -> tuple:
    table, ids = args
    count = jnp.zeros_like(table).at[ids].add(jnp.ones_like(dy))
    return backward(args, dy)[0] / jnp.maximum(count, 1), None


def _skip_the_last(args: tuple, dy: Array) -> tuple:
    table, ids = args
    return jnp.zeros_like(table).at[ids[:-1]].add(dy[:-1]), None


DERIVATION = Derivation(
    "gather",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "a row asked for repeatedly keeps the last gradient only",
            _overwrite,
            ("table",),
            "sparse",
            "pytorch/pytorch#1631 and apache/mxnet#9172: repeated indices are overwritten, not added",
        ),
        Wrong(
            "a row asked for repeatedly gets the mean",
            _average,
            ("table",),
            "sparse",
            "a habit: scaling by frequency, which is an option of embeddings, taken for the derivative",
        ),
        Wrong(
            "the last id is skipped",
            _skip_the_last,
            ("table",),
            "sparse",
            "a habit: a loop that ends one too early",
        ),
        Wrong(
            "ids count from one",
            with_cotangent(backward, 0, lambda d: jnp.roll(d, -1, axis=0)),
            ("table",),
            "shifted",
            "a habit of those who come from languages where they do",
        ),
        Wrong(
            "dy is returned as it is",
            lambda args, dy: (dy, None),
            ("table",),
            "structure",
            "a habit: the values of a sparse gradient without their indices, as in an unwrapped tf.IndexedSlices",
        ),
    ),
)
