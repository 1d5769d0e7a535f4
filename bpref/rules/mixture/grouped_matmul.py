"""grouped_matmul: a matrix for each group of rows, the rows sorted by group: the ragged product inside of experts.

Forward, with R rows x of d features, of which the first s_0 belong to group 0, the next s_1 to group 1, and so on, and
e(r) the group of row r:

    y_ri = sum_j W_{e(r) i j} x_rj                                        y: (R, m), W: (E, m, d)

Rows from sum_e s_e on belong to no group: their y is 0.

Differential:

    dJ = sum_ri dy_ri sum_j ((delta W_{e(r) i j}) x_rj + W_{e(r) i j} (delta x_rj))

Collect the rows of one group for W, and read off the factor of each perturbation:

    dW_eij = sum over r in group e of dy_ri x_rj      dW_e = dy_e^T x_e    (E, m, d)
    dx_rj  = sum_i dy_ri W_{e(r) i j}                 dx_e = dy_e W_e      (R, d)

dx is the grouped product again, with the same sizes, and 0 for rows of no group. Sizes are integers, without cotangent.
A group without rows has dW_e = 0.

Cached: x and the sizes. Where the rows lie is a few integers, and made again.

How: rows are gathered into blocks of one group each, so that the groups of any sizes are one loop over whole matrix
products (`bpref.formulas.mixture.grouped_rows`). `lax.ragged_dot` on a CPU multiplies every row by every expert, and
masks.

Numerical care: products and the sum of dW over the blocks are in at least float32, and rounded once.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.mixture.grouped_rows import over_blocks, ragged_blocks, rows_from_blocks, rows_in_blocks, total_like
from bpref.layer import Layer, Reals
from bpref.rule import Case, Integer, Real, Rule, Size


class GroupedMatmulParams(NamedTuple):
    W: Float[Array, "E m d"]


class Groups(NamedTuple):
    rows: Float[Array, "R d>0"]
    sizes: Int[Array, " E>0"]


def grouped_matmul(features: int, block: int = 128) -> Layer[GroupedMatmulParams, tuple[Array, Array], Reals, Groups]:
    """y_r = W_e x_r, e the group of row r.

    Args:
      features: the number of outputs m.
      block: how many rows of one group are multiplied at a time.

    Returns:
      A layer with params `GroupedMatmulParams(W: (E, m, d))`, x `(rows, sizes)`, rows `(R, d)` sorted by group, sizes
      `(E,)` integers, and y `(R, m)`. Rows beyond the sum of the sizes give 0. Sizes cannot be judged while tracing: a
      negative one counts as 0, and what they claim beyond row R is not there.

    Raises:
      ValueError: `features` or `block` is not a positive integer; there is no group; shapes do not fit.
      TypeError: x is no pair; rows are not floating-point, or not of W's dtype; sizes are not integers.
    """
    who = "grouped_matmul"
    features = require_size(who, "features", features)
    block = require_size(who, "block", block)

    def init(key, x):
        rows, sizes = x
        d = rows.shape[1]
        return GroupedMatmulParams(lecun_uniform(key, (sizes.shape[0], features, d), d, rows.dtype))

    def forward(params, x: Groups):
        rows, sizes = x
        W = jnp.asarray(params.W)
        blocks = ragged_blocks(sizes, rows.shape[0], block)

        def step(e, x):
            return (), cast(times_transposed(x, W[e]), x.dtype)

        y = over_blocks(step, (), blocks.group, rows_in_blocks(rows, blocks.row))[1]
        return rows_from_blocks(y, blocks.slot), x

    def backward(params, cache, dy):
        W = jnp.asarray(params.W)
        blocks = ragged_blocks(cache.sizes, cache.rows.shape[0], block)

        def step(e, both):
            x, dy = both
            return (transposed_times(dy, x),), cast(times(dy, W[e]), dy.dtype)

        both = rows_in_blocks(cache.rows, blocks.row), rows_in_blocks(dy, blocks.row)
        (dW,), dx = over_blocks(step, (total_like(W),), blocks.group, both)
        return GroupedMatmulParams(cast(dW, W.dtype)), (rows_from_blocks(dx, blocks.slot), None)

    return Layer(init, forward, backward, who, couples="the order by groups")


def reference(params: GroupedMatmulParams, x: tuple[Array, Array], features: int, block: int = 128) -> Array:
    rows, sizes = x
    ends = jnp.cumsum(sizes)
    number = lax.broadcasted_iota(ends.dtype, (rows.shape[0], 1), 0)
    y = jnp.zeros((rows.shape[0], features), rows.dtype)
    for e in range(sizes.shape[0]):
        member = (number >= ends[e] - sizes[e]) & (number < ends[e])
        y += jnp.where(member, rows @ params.W[e].T, 0)
    return y


RULE = Rule(
    "grouped_matmul",
    grouped_matmul,
    reference,
    cases=(
        Case(
            "some without rows",
            (Real("R d"), Integer("E", 0, 9, points=(2, 0, 7))),
            {"features": Size("m"), "block": 3},
            ("d", "m", "E"),
        ),
        Case(
            "large blocks",
            (Real("R d"), Integer("E", 0, "R")),
            {"features": Size("m")},
            ("d", "m", "E"),
            timed={"R": 1024, "d": 128, "E": 4, "m": 256},
        ),
    ),
    cite="Gale et al., 'MegaBlocks: efficient sparse training with mixture-of-experts', arXiv:2211.15841, section 4",
    covers=("ragged_dot", "grouped_gemm"),
)
