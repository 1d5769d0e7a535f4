"""maxout: the largest of k pieces, feature by feature: an activation that is learned by the layer below.

Forward, with x = (x^1, ..., x^k) the k pieces of m features that the last axis consists of, as one linear layer of k m
outputs makes them:

    y_i = max_j x^j_i                                                     x: (..., k m), y: (..., m)

Differential: y_i follows the piece that is largest. Where T_i pieces are equally large there is a kink, and each gets
the same share, as `jnp.max` has it:

    delta y_i = 1/T_i sum_j [x^j_i = y_i] delta x^j_i

so the adjoint hands the cotangent back to where the value came from:

    dx^j_i = dy_i [x^j_i = y_i] / T_i                                     (..., k m)

Cached: [x^j_i = y_i], one byte for each element of x; T_i is their sum. Neither x nor y is needed.

Numerical care: the forward is exact, and so is the backward but for the division of a tie by 3 and the like. A
NaN in any piece is NaN in y, equals nothing, so that T is 0, and dx is NaN for all pieces of that feature, as in
`reduce_max`.
"""

from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, widen
from bpref.formulas.norm.reduced import shared_out
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Real, Rule


class MaxoutCache(NamedTuple):
    is_largest: Bool[Array, "... k m"]


def maxout(pieces: int = 2) -> Layer[tuple[()], Array, Reals, MaxoutCache]:
    """y = the largest of the k pieces that the last axis consists of.

    Args:
      pieces: k.

    Returns:
      A layer with params `()`, x `(..., k m)` and y `(..., m)`. Pieces that are equally large share the gradient
      equally; where one is NaN, y and the dx of all are.

    Raises:
      ValueError: `pieces` is not a positive integer; the last axis of x does not consist of as many equal pieces.
      TypeError: x is not floating-point.
    """
    who = "maxout"
    pieces = require_size(who, "pieces", pieces)

    def forward(params, x: Float[Array, "... k*m"]):
        if x.shape[-1] % pieces:
            raise ValueError(f"{who}: x has shape {x.shape}, expected (..., k m) with k = {pieces} pieces")
        of_pieces = x.reshape(*x.shape[:-1], pieces, x.shape[-1] // pieces)
        y = reduce(jnp.maximum, each_piece(of_pieces))
        return y, MaxoutCache(of_pieces == y[..., None, :])

    def backward(params, cache, dy):
        largest, wide = each_piece(cache.is_largest), widen(dy)
        T = reduce(jnp.add, [one.astype(wide.dtype) for one in largest])
        dx = jnp.stack([cast(shared_out(one, wide, T), dy.dtype) for one in largest], -2)
        return (), dx.reshape(*dy.shape[:-1], pieces * dy.shape[-1])

    def each_piece(v):
        return [v[..., j, :] for j in range(pieces)]

    return Layer(no_params, forward, backward, who, decoding=each_position)


def reference(params: tuple[()], x: Array, pieces: int = 2) -> Array:
    return jnp.max(jnp.stack(jnp.split(x, pieces, -1)), 0)


RULE = Rule(
    "maxout",
    maxout,
    reference,
    cases=(
        Case("two pieces", Real("N d", points=(0.0,) * 12), fixed={"d": 12}, timed={"N": 512, "d": 2048}),
        Case("three pieces, a sequence", Real("B T d", points=(0.0,) * 12), {"pieces": 3}, fixed={"d": 12}),
    ),
    cite="arXiv:1302.4389, section 3",
)
