"""A loss of a head's logits by blocks of rows, its gradient made beside it: no array of all logits is ever held.

With rows A (N, d), z = A W^T + b, terms l_n(z_n) and weights w_n, J = sum_n w_n l_n. Of a block of rows all logits are
made, then l and the slopes s_n = dl_n / dz_n, and of these, while they are there, with a_n = w_n s_n

    dA_n = a_n W        dW = sum_n a_n^T A_n        db = sum_n a_n

all for dJ = 1, in at least float32: four products with W where a backward that makes the logits again takes one more.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.affine import plus, times, times_transposed, transposed_times
from bpref.formulas.loss.class_blocks import Classes
from bpref.loops import block_of, for_blocks


class HeadGradient(NamedTuple):
    """The cotangents for dJ = 1, in at least float32."""

    W: Float[Array, "V d"]
    b: Float[Array, " V"] | None
    h: Float[Array, "... d"]


def by_rows(
    rows: int,
    classes: Classes,
    A: Array,
    weight: Array,
    terms_of: Callable[[Array, Array | int, int], tuple[Array, Array]],
) -> tuple[Array, HeadGradient]:
    """J and its gradient; `terms_of` gives l and s of a block's logits (size, V), of its start and its size.

    A weight of 0 makes l and s count for nothing, whatever they are.
    """

    def add(carry, start, size):
        J, d = carry
        A_, w = block_of(A, start, size), block_of(weight, start, size)
        l, slope = terms_of(logits(classes, A_), start, size)
        a = jnp.where(w[:, None] == 0, 0, w[:, None] * slope)
        db = None if d.b is None else d.b + jnp.sum(a, 0)
        dA = lax.dynamic_update_slice_in_dim(d.h, times(a, widen(classes.W)), start, 0)
        dW = d.W + transposed_times(a, widen(A_))
        return J + jnp.sum(jnp.where(w == 0, 0, w * l)), HeadGradient(dW, db, dA)

    def none(v):
        return jnp.zeros(v.shape, widen(v).dtype)

    b = None if classes.b is None else none(classes.b)
    return for_blocks(len(A), rows, add, (jnp.zeros((), widen(A).dtype), HeadGradient(none(classes.W), b, none(A))))


def logits(classes: Classes, A: Array) -> Array:
    """z of rows A (N, d): (N, V), in at least float32."""
    return plus(times_transposed(A, classes.W), classes.b)


def scaled_gradient(dJ: Array, d: Array, like: Array) -> Array:
    """dJ times a cotangent for dJ = 1, in the dtype of `like`; 0 where that is 0, whatever dJ is."""
    return cast(jnp.where(d == 0, 0, widen(dJ) * d), like.dtype)
