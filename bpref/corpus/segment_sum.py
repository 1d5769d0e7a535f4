"""Sums over segments: each row of values gets the dy of its segment, and a row of no segment (id -1) gets nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong

SEGMENTS = 4


def forward(values: Array, ids: Array) -> Array:
    """`(N, D), (N,) -> (4, D)`."""
    return _membership(values, ids).T @ values


def backward(args: tuple, dy: Array) -> tuple:
    values, ids = args
    return _membership(values, ids) @ dy, None


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    """Segments of one to four rows, in no order, and one row of no segment."""
    ids = rng.permutation(np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, -1]))
    return rng.normal(size=(11, 3)).astype(dtype), ids


def _membership(values: Array, ids: Array) -> Array:
    return jax.nn.one_hot(ids, SEGMENTS, dtype=values.dtype)


def _average(args: tuple, dy: Array) -> tuple:
    values, ids = args
    return _membership(values, ids) @ (dy / jnp.sum(_membership(values, ids), axis=0)[:, None]), None


def _sorted(args: tuple, dy: Array) -> tuple:
    values, ids = args
    return backward((values, jnp.sort(ids)), dy)


DERIVATION = Derivation(
    "segment_sum",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "divided by the size of the segment",
            _average,
            ("values",),
            "unexplained",
            "a habit: the derivative of the segments' mean",
        ),
        Wrong(
            "a row of no segment gets the last segment's gradient",
            lambda args, dy: (jnp.take(dy, args[1], axis=0, mode="wrap"), None),
            ("values",),
            "sparse",
            "a habit: id -1, which stands for padding, is also the index of the last row",
        ),
        Wrong(
            "returned in the order of the segments",
            _sorted,
            ("values",),
            "shifted",
            "a habit: rows are sorted by segment for speed, and never put back",
        ),
    ),
)
