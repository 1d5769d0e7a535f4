"""segment_sum: y_s = the sum, or mean, of the rows whose id is s.

Forward, with data x of shape (N, ...), integer ids i of shape (N,), and c_s the number of rows of segment s:

    sum:   y_s = sum_n [i_n = s] x_n                                      y: (S, ...)
    mean:  y_s = sum_n [i_n = s] x_n / max(c_s, 1)

An empty segment has y_s = 0, also as a mean. Ids need not be sorted; one outside [0, S) belongs to no segment, a
negative one too, as in `jax.ops.segment_sum`. Along another axis each line is such data: with the same ids, or with
those of its own.

Differential: delta y_s = w_s sum_n [i_n = s] delta x_n, with w_s = 1 for the sum and 1 / max(c_s, 1) for the mean.
Each row is in one sum at most, so the factor of delta x_n is one term, the cotangent of its segment:

    dx_n = w_{i_n} dy_{i_n}                   0 where i_n is outside      (N, ...)

The mean divides dy by segment, before it is spread over the rows. The ids are integers: None.

Cached: the ids, as segments from 0 to S - 1 with S for none, in the smallest integers: one byte up to S = 255, two up
to 65535; and for the mean the counts. The map is linear in x, whose values are not needed.

Numerical care: half precision is summed in float32 and rounded once; the order of the sum is the device's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.indexing.indices import DataAndIds, of_segments, placed
from bpref.formulas.indexing.segments_along import along
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule, Size


class SegmentSumCache(NamedTuple):
    segments: UInt[Array, " N"]
    counts: Float[Array, " S"] | None


def segment_sum(
    num_segments: int, mean: bool = False, axis: int = 0
) -> Layer[tuple[()], tuple[Array, Array], Reals, SegmentSumCache]:
    """y_s = the sum of the rows with id s, or their mean.

    Args:
      num_segments: S, the number of segments.
      mean: whether each sum is divided by its number of rows (at least 1).
      axis: the axis of data that the ids are along, in whose place y has the segments. Ids `(*lines, N)`, of the shape
        of data up to this axis, are each line's own, in place of the same ones in all.

    Returns:
      A layer with params `()`, x `(data, ids)`, data `(N, ...)`, integer ids `(N,)`, and y `(S, ...)`. A row whose id
      is outside `[0, S)` is in no segment, and its cotangent is 0. dx is `(ddata, None)`.

    Raises:
      ValueError: num_segments is not a positive integer; data has no such axis; there is not one id for each row,
        or in each line one.
      TypeError: x is no pair; data is not floating-point; the ids are not integers.
    """
    who = "segment_sum"
    require_flags(who, mean=mean)
    num_segments = require_size(who, "num_segments", num_segments)

    def forward(params, x: DataAndIds):
        data, ids = x.data, widen_integers(x.ids)
        segments = placed(ids, num_segments, wrap=False)
        total = jax.ops.segment_sum(widen(data), ids, num_segments)
        if not mean:
            return cast(total, data.dtype), SegmentSumCache(segments, None)
        counts = jax.ops.segment_sum(jnp.ones(ids.shape, total.dtype), ids, num_segments)
        return cast(_divided(total, counts), data.dtype), SegmentSumCache(segments, counts)

    def backward(params, cache, dy):
        segments, counts = cache
        share = dy if counts is None else cast(_divided(widen(dy), counts), dy.dtype)
        return (), (of_segments(share, segments), None)

    return along(Layer(no_params, forward, backward, who), axis)


def _divided(rows: Array, counts: Array) -> Array:
    return rows / jnp.maximum(counts, 1).reshape(-1, *[1] * (rows.ndim - 1))


def reference(params: tuple[()], x: tuple[Array, Array], num_segments: int, mean: bool = False, axis: int = 0) -> Array:
    if x[1].ndim > 1:
        return jax.vmap(lambda *line: reference(params, line, num_segments, mean, axis % x[0].ndim - 1))(*x)
    if axis != 0:
        return jnp.moveaxis(reference(params, (jnp.moveaxis(x[0], axis, 0), x[1]), num_segments, mean), 0, axis)
    data, ids = x
    total = jax.ops.segment_sum(data, ids, num_segments)
    if not mean:
        return total
    counts = jax.ops.segment_sum(jnp.ones(data.shape, data.dtype), ids, num_segments)
    return total / jnp.maximum(counts, 1)


_X = (Real("N d"), Integer("N", 0, "S", points=(-1, 99)))

RULE = Rule(
    "segment_sum",
    segment_sum,
    reference,
    cases=(
        Case("sum", _X, {"num_segments": Size("S")}, never_empty=("S",)),
        Case(
            "mean",
            _X,
            {"num_segments": Size("S"), "mean": True},
            never_empty=("S",),
            timed={"N": 16384, "d": 64, "S": 2048},
        ),
        Case(
            "mean, each line's own ids",
            (Real("B N d"), Integer("B N", 0, "S", points=(-1, 99))),
            {"num_segments": Size("S"), "mean": True, "axis": -2},
            never_empty=("S",),
        ),
        Case("sum of scalars", (Real("N"), Integer("N", 0, "S")), {"num_segments": Size("S")}, never_empty=("S",)),
    ),
    cite="Gilmer et al., 'Neural message passing for quantum chemistry', arXiv:1704.01212, equation 1",
    covers=("segment_mean", "message passing", "scatter_mean"),
)
