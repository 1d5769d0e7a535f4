"""segment_prod: y_s = the product, element by element, of the rows whose id is s.

Forward, with data x of shape (N, ...), integer ids i of shape (N,), elements k of a row apart:

    y_sk = product over n with i_n = s of x_nk                            y: (S, ...)

An empty segment has y_s = 1. Ids need not be sorted; one outside [0, S) belongs to no segment, a negative one too, as
in `jax.ops.segment_prod`. Along another axis each line is such data: with the same ids, or with those of its own.

Differential, by the product rule: each row is a factor of one product at most, and

    dx_nk = dy_{i_n k} product over n' other than n with i_n' = i_n of x_n'k                    (N, ...)

0 where i_n is outside. The ids are integers: None.

The textbook writes y / x_n for the product of the others, which is 0 / 0 at a zero. Here nothing is divided: rows are
brought into the order of their ids, q being the permutation, and the others of a row are those before and those after
it in its segment, whose running products come from either end,

    P_nk = x_n'k ... x_nk from the segment's first n'    S_nk = x_nk ... x_n''k to its last    others = P_n-1,k S_n+1,k

Cached: x, the ids as segments from 0 to S - 1 with S for none, and q, both in the smallest integers. P and S are made
of x again.

Numerical care: products alone, no difference: a relative error of about log2 N roundings. Half precision is multiplied
in float32. Overflow and underflow are met only where a product of some of the rows is itself out of range.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt

from bpref.checks.hyperparameters import require_size
from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.indexing.indices import DataAndIds, add_rows, of_segments, placed, smallest_integer
from bpref.formulas.indexing.segmented_products import product_of_others, running_product, stretches
from bpref.formulas.indexing.segments_along import along
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule, Size


class SegmentProdCache(NamedTuple):
    data: Float[Array, "N ..."]
    segments: UInt[Array, " N"]
    order: UInt[Array, " N"]


def segment_prod(num_segments: int, axis: int = 0) -> Layer[tuple[()], tuple[Array, Array], Reals, SegmentProdCache]:
    """y_s = the elementwise product of the rows with id s.

    Args:
      num_segments: S, the number of segments.
      axis: the axis of data that the ids are along, in whose place y has the segments. Ids `(*lines, N)`, of the shape
        of data up to this axis, are each line's own, in place of the same ones in all.

    Returns:
      A layer with params `()`, x `(data, ids)`, data `(N, ...)`, integer ids `(N,)`, and y `(S, ...)`, 1 where a
      segment is empty. A row whose id is outside `[0, S)` is in no segment, and its cotangent is 0. dx is
      `(ddata, None)`.

    Raises:
      ValueError: num_segments is not a positive integer; data has no such axis; there is not one id for each row,
        or in each line one.
      TypeError: x is no pair; data is not floating-point; the ids are not integers.
    """
    who = "segment_prod"
    num_segments = require_size(who, "num_segments", num_segments)

    def forward(params, x: DataAndIds):
        data, segments = x.data, placed(x.ids, num_segments, wrap=False)
        order = jnp.argsort(segments).astype(smallest_integer(segments.size))
        rows, starts, ends, of_rows = in_order(data, segments, order)
        is_empty = ~jnp.zeros(num_segments, bool).at[of_rows].set(True, mode="drop")
        ones = jnp.broadcast_to(_column(is_empty, rows), (num_segments, *rows.shape[1:])).astype(rows.dtype)
        last = jnp.where(ends.reshape(-1), of_rows, num_segments)
        y = add_rows(ones, last, running_product(rows, starts, 0), 0)
        return cast(y, data.dtype), SegmentProdCache(data, segments, order)

    def backward(params, cache, dy):
        data, segments, order = cache
        rows, starts, ends, _ = in_order(data, segments, order)
        others = product_of_others(rows, starts, ends, 0)
        of_each = jnp.zeros_like(others).at[widen_integers(order)].set(others, unique_indices=True)
        ddata = of_segments(widen(dy), segments) * of_each
        return (), (cast(jnp.where(_column(segments == num_segments, rows), 0, ddata), data.dtype), None)

    return along(Layer(no_params, forward, backward, who), axis)


def in_order(data: Array, segments: Array, order: Array) -> tuple[Array, Array, Array, Array]:
    """Rows, those of a segment beside each other; where each segment starts and ends; and the segments of all rows."""
    q = widen_integers(order)
    of_rows = widen_integers(segments)[q]
    starts, ends = (_column(edge, data) for edge in stretches(of_rows, 0))
    return widen(data)[q], starts, ends, of_rows


def _column(of_rows: Array, data: Array) -> Array:
    """One value for each row, with as many axes as data has."""
    return of_rows.reshape(-1, *[1] * (data.ndim - 1))


def reference(params: tuple[()], x: tuple[Array, Array], num_segments: int, axis: int = 0) -> Array:
    data, ids = x
    if ids.ndim > 1:
        return jax.vmap(lambda *line: reference(params, line, num_segments, axis % data.ndim - 1))(data, ids)
    rows = jnp.moveaxis(data, axis, 0)
    is_in = ids[:, None] == jnp.arange(num_segments, dtype=ids.dtype)[None]
    is_in = jnp.broadcast_to(is_in.reshape(*is_in.shape, *[1] * (rows.ndim - 1)), (*is_in.shape, *rows.shape[1:]))
    of_each = jnp.broadcast_to(rows[:, None], is_in.shape)
    return jnp.moveaxis(jnp.prod(jnp.where(is_in, of_each, 1), 0), 0, axis)


RULE = Rule(
    "segment_prod",
    segment_prod,
    reference,
    cases=(
        Case(
            "rows",
            (Real("N d", -2.0, 2.0, points=(0.0, 1.0, 0.0)), Integer("N", 0, "S", points=(-1, 99))),
            {"num_segments": Size("S")},
            never_empty=("S",),
            timed={"N": 4096, "d": 64, "S": 512},
        ),
        Case(
            "each line's own ids",
            (Real("B N d", -2.0, 2.0), Integer("B N", 0, "S", points=(-1, 99))),
            {"num_segments": Size("S"), "axis": 1},
            never_empty=("S",),
        ),
    ),
    cite="torch.segment_reduce; the product of the others: Griewank and Walther, 'Evaluating Derivatives' (2008), "
    "section 3.3, Speelpenning's product (section not checked)",
    covers=("scatter_prod",),
)
