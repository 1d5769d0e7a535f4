"""position_embedding: to each position of a sequence its own row of a table is added, y_t = x_t + W_t.

Forward, with x of shape (*b, T, d), W of shape (L, d), L at least T, n over sequences, t over positions, j over
features:

    y_ntj = x_ntj + W_tj                                                  (*b, T, d)

Differential: delta y_ntj = delta x_ntj + delta W_tj. The factor of each perturbation in sum_ntj dy_ntj delta y_ntj:

    dx_ntj = dy_ntj                                                       (*b, T, d)
    dW_tj  = sum_n dy_ntj,  0 for t >= T                                  (L, d)

The rows of positions that no sequence reaches have had no part in y.

Cached: nothing. dy has x's shape.

Numerical care: the sum over the sequences runs in float32 at least and is rounded once.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.formulas.decoder import decoder
from bpref.formulas.indexing.table import normal_table
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule, Size


class PositionEmbeddingParams(NamedTuple):
    W: Float[Array, "L d"]


def position_embedding(positions: int) -> Layer[PositionEmbeddingParams, Array, Reals, NoCache]:
    """y = x + W, row t of W added to position t: learned positions, as GPT-2 has them.

    Args:
      positions: the number of rows L, the longest sequence that there can be.

    Returns:
      A layer with params `PositionEmbeddingParams(W: (L, d))`, x `(*b, T, d)` and y of x's shape. W is drawn normally
      with variance 1/d.

    Raises:
      ValueError: `positions` is not a positive integer; x has more than L positions, or other features than W.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = "position_embedding"
    positions = require_size(who, "positions", positions)

    def init(key, x):
        return PositionEmbeddingParams(cast(normal_table(key, positions, x.shape[-1]), x.dtype))

    def forward(params, x: Float[Array, "*b T d>0"]):
        T = x.shape[-2]
        if positions < T:
            raise ValueError(f"{who}: x has {T} positions, expected at most {positions}, the rows of W")
        rows = lax.slice_in_dim(params.W, 0, T)
        return x + jnp.broadcast_to(rows, x.shape), NoCache()

    def backward(params, cache, dy):
        W = params.W
        of_rows = lax.reduce_sum(widen(dy), tuple(range(dy.ndim - 2)))
        dW = jnp.pad(cast(of_rows, W.dtype), ((0, positions - dy.shape[-2]), (0, 0)))
        return PositionEmbeddingParams(dW), dy

    def decoding(leaf, length):
        if length > positions:
            raise ValueError(f"{who}: there will be {length} positions, expected at most {positions}, the rows of W")

        def step(params, x, n):
            rows = lax.dynamic_slice_in_dim(params.W, n, x.shape[-2], 0)
            after = n + x.shape[-2]
            return jnp.where(after <= length, x + jnp.broadcast_to(rows, x.shape), jnp.nan), after

        return decoder(leaf, lambda params, x: jnp.zeros((), jnp.int32), step)

    return Layer(init, forward, backward, who, decoding=decoding)


def reference(params: PositionEmbeddingParams, x: Array, positions: int) -> Array:
    return x + jnp.broadcast_to(params.W[: x.shape[-2]], x.shape)


RULE = Rule(
    "position_embedding",
    position_embedding,
    reference,
    cases=(
        Case(
            "as long as the table",
            Real("B T d"),
            {"positions": Size("T")},
            ("T", "d"),
            timed={"B": 16, "T": 256, "d": 256},
        ),
        Case("shorter than the table", Real("T d"), {"positions": 64}, ("d",)),
    ),
    cite="arXiv:1705.03122, section 3.1; as in GPT-2: Radford et al., 'Language models are unsupervised multitask "
    "learners' (2019)",
    covers=("learned positions", "positional embedding", "wpe"),
)
