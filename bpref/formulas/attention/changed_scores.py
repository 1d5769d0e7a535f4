"""Scores that a layer changes before the softmax: what it is told of a block of them, and both of its ways."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, PyTree

from bpref.layer import Layer

Pull = Callable[[Array], tuple[PyTree, Array]]
"""Of dx the cotangents of the params and of z."""


class Scores(NamedTuple):
    """What a layer that changes scores is given: those of some queries t and keys s, and the places of both.

    Attributes:
      z: scale q_t . k_s, in at least float32.
      t, s: the places, from 0 on.
    """

    z: Float[Array, "*b N T S"]
    t: Int[Array, " T"]
    s: Int[Array, " S"]


class Changed(NamedTuple):
    """How scores are changed: a layer from `Scores` to an array like z, and its params."""

    by: Layer
    params: PyTree


def changed(score: Changed, z: Array, *places: tuple[Array, int]) -> tuple[Array, Pull]:
    """What the layer makes of a block (*b, K, G, bq, bk), and its backward.

    `places` are where the block begins and how many there are, of queries and of keys; those behind the end, which
    nothing sees, count as the last.
    """
    layer, params = score
    *b, K, G, bq, bk = z.shape
    t, s = (
        jnp.minimum(start + jnp.arange(size, dtype=jnp.int32), n - 1)
        for (start, n), size in zip(places, (bq, bk), strict=True)
    )
    x, cache = layer.forward(params, Scores(z.reshape(*b, K * G, bq, bk), t, s))

    def pull(dx):
        dparams, d = layer.backward(params, cache, dx.reshape(*b, K * G, bq, bk))
        return dparams, d.z.reshape(z.shape)

    return x.reshape(z.shape), pull
