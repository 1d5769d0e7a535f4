"""InfoNCE in both directions, as in CLIP: row i of queries belongs to row i of keys.

L = e^s Q K', J = half the mean cross-entropy of L's rows and of its columns, the diagonal being the labels. With p
the softmax over rows, c over columns: dL = dy (p + c - 2 I) / 2N, dQ = e^s dL K, dK = e^s dL' Q, ds = sum(dL L).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_cotangent, with_incoming


def forward(queries: Array, keys: Array, log_scale: Array) -> Array:
    """`(N, D), (N, D), () -> ()`."""
    logits = jnp.exp(log_scale) * queries @ keys.T
    rows, columns = (jnp.mean(jnp.diag(jax.nn.log_softmax(logits, axis=axis))) for axis in (1, 0))
    return -(rows + columns) / 2


def backward(args: tuple, dy: Array) -> tuple:
    queries, _, log_scale = args
    dlogits = _of_direction(args, dy, 1) + _of_direction(args, dy, 0)
    return _of_logits(args, dlogits, jnp.exp(log_scale) * dlogits.T @ queries)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    queries, keys = (rng.normal(size=(5, 7)).astype(dtype) for _ in range(2))
    return queries, keys, np.asarray(rng.uniform(-1.5, -0.5), dtype)


def _of_direction(args: tuple, dy: Array, axis: int) -> Array:
    queries, keys, log_scale = args
    p = jax.nn.softmax(jnp.exp(log_scale) * queries @ keys.T, axis=axis)
    return dy * (p - jnp.eye(len(p), dtype=p.dtype)) / (2 * len(p))


def _of_logits(args: tuple, dlogits: Array, dkeys: Array) -> tuple:
    queries, keys, log_scale = args
    scale = jnp.exp(log_scale)
    return scale * dlogits @ keys, dkeys, jnp.sum(dlogits * (scale * queries @ keys.T))


def _detach_the_other_direction(args: tuple, dy: Array) -> tuple:
    _, keys, log_scale = args
    return jnp.exp(log_scale) * _of_direction(args, dy, 1) @ keys, *backward(args, dy)[1:]


def _forget_the_transpose(args: tuple, dy: Array) -> tuple:
    queries, _, log_scale = args
    dlogits = _of_direction(args, dy, 1) + _of_direction(args, dy, 0)
    return _of_logits(args, dlogits, jnp.exp(log_scale) * dlogits @ queries)


DERIVATION = Derivation(
    "info_nce",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "queries get the gradient of one direction only",
            _detach_the_other_direction,
            ("queries",),
            "missing_term",
            "facebookresearch/vissl#123, facebookresearch/SLIP#31: one side of the loss is gathered without gradient",
        ),
        Wrong(
            "dlogits is not transposed for the keys",
            _forget_the_transpose,
            ("keys",),
            "unexplained",
            "a habit: the similarity matrix is square, so that no shape reveals it",
        ),
        Wrong(
            "the two directions are added, not averaged",
            with_incoming(backward, lambda dy: 2 * dy),
            ("queries", "keys", "log_scale"),
            "factor",
            "a habit: the 1/2 of the mean is forgotten; a gather scales alike in mlfoundations/open_clip#616",
        ),
        Wrong(
            "the scale is taken for a temperature",
            with_cotangent(backward, 2, jnp.negative),
            ("log_scale",),
            "sign",
            "a habit: one code multiplies logits by e^s, another divides them by it",
        ),
    ),
)
