"""Cosine of the angle between matching rows: du = dy (v / (|u| |v|) - y u / |u|^2), and dv likewise."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from bpref.corpus.derivation import Derivation, Wrong
from bpref.corpus.spoil import with_incoming, with_swapped


def forward(u: Array, v: Array) -> Array:
    """`(N, D), (N, D) -> (N,)`."""
    return jnp.sum(u * v, axis=1) / (jnp.linalg.norm(u, axis=1) * jnp.linalg.norm(v, axis=1))


def backward(args: tuple, dy: Array) -> tuple:
    return _of_projections(args, dy, 1, 1, 2)


def make_args(rng: np.random.Generator, dtype: DTypeLike) -> tuple:
    return rng.normal(size=(6, 7)).astype(dtype), (3 * rng.normal(size=(6, 7))).astype(dtype)


def _of_projections(args: tuple, dy: Array, of_u: float, of_v: float, power: int) -> tuple:
    """The derivation, with a factor before each projection, and the power of |u| in u's."""
    u, v = args
    y, dy = forward(u, v)[:, None], dy[:, None]
    nu, nv = (jnp.linalg.norm(w, axis=1, keepdims=True) for w in args)
    return dy * (v / (nu * nv) - of_u * y * u / nu**power), dy * (u / (nu * nv) - of_v * y * v / nv**2)


DERIVATION = Derivation(
    "cosine_similarity",
    forward,
    backward,
    make_args,
    (
        Wrong(
            "the norm of u is taken to be constant",
            lambda args, dy: _of_projections(args, dy, 0, 1, 2),
            ("u",),
            "missing_term",
            "a habit: the projection is left out",
        ),
        Wrong(
            "the projection on v has the wrong sign",
            lambda args, dy: _of_projections(args, dy, 1, -1, 2),
            ("v",),
            "missing_term",
            "a habit: the minus of the quotient rule is lost",
        ),
        Wrong(
            "the projection on u is divided by |u|, not by its square",
            lambda args, dy: _of_projections(args, dy, 1, 1, 1),
            ("u",),
            "unexplained",
            "a habit: u / |u| is the direction, and one more 1 / |u| is easily lost",
        ),
        Wrong(
            "negated",
            with_incoming(backward, jnp.negative),
            ("u", "v"),
            "sign",
            "torch/torch7#298: CosineEmbeddingCriterion of a batch is exactly the negative of what it should be",
        ),
        Wrong(
            "the cotangents of u and v are exchanged",
            with_swapped(backward, 0, 1),
            ("u", "v"),
            "swapped",
            "a habit: the derivative by u begins with v",
        ),
    ),
)
