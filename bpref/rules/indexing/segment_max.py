"""segment_max: y_s = the largest, element by element, of the rows whose id is s, or the smallest.

Forward, with data x of shape (N, ...), integer ids i of shape (N,), elements k of a row apart:

    y_sk = max over n with i_n = s of x_nk                                y: (S, ...)

or the minimum, which is -max of -x. An empty segment has y_s = -inf, as a minimum inf. Ids need not be sorted; one
outside [0, S) belongs to no segment, a negative one too, as in `jax.ops.segment_max`. Along another axis each line is
such data: with the same ids, or with those of its own.

Differential: where one row is the largest, delta y_sk = delta x_nk of that row. With a_nk = [x_nk = y_{i_n k}], the
rows that attain the maximum, and c_sk = sum_n [i_n = s] a_nk their number,

    dx_nk = a_nk dy_{i_n k} / c_{i_n k}                                   (N, ...)

Kinks: a tie is where the maximum has no derivative; those who tie share dy equally, as in `jax.ops.segment_max` and
in PyTorch's `scatter_reduce`. The ids are integers: None.

Cached: the mask a, one byte for each element, and the ids, as segments from 0 to S - 1 with S for none, in the smallest
integers that hold them. The counts are summed up from them in the backward.

Numerical care: the forward only chooses, and is exact. NaN is the largest of its segment, and since it equals nothing c
is 0, and dx is NaN for all rows of that segment, as in `reduce_max`. The counts are float32 numbers, exact up to 2^24
rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, UInt

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.dtypes import cast, wide_dtype, widen, widen_integers
from bpref.formulas.indexing.indices import DataAndIds, of_segments, placed
from bpref.formulas.indexing.segments_along import along
from bpref.formulas.norm.reduced import shared_out
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule, Size


class SegmentMaxCache(NamedTuple):
    attained: Bool[Array, "N ..."]
    segments: UInt[Array, " N"]


def segment_max(
    num_segments: int, minimum: bool = False, axis: int = 0
) -> Layer[tuple[()], tuple[Array, Array], Reals, SegmentMaxCache]:
    """y_s = the elementwise maximum, or minimum, of the rows with id s.

    Args:
      num_segments: S, the number of segments.
      minimum: whether y is the smallest instead.
      axis: the axis of data that the ids are along, in whose place y has the segments. Ids `(*lines, N)`, of the shape
        of data up to this axis, are each line's own, in place of the same ones in all.

    Returns:
      A layer with params `()`, x `(data, ids)`, data `(N, ...)`, integer ids `(N,)`, and y `(S, ...)`, -inf where a
      segment is empty. Rows that tie share the cotangent equally; where one is NaN, y and the cotangents of
      its segment are. A row whose id is outside `[0, S)` is in no
      segment, and its cotangent is 0. dx is `(ddata, None)`.

    Raises:
      ValueError: num_segments is not a positive integer; data has no such axis; there is not one id for each row,
        or in each line one.
      TypeError: x is no pair; data is not floating-point; the ids are not integers.
    """
    who = "segment_max"
    num_segments = require_size(who, "num_segments", num_segments)
    require_flags(who, minimum=minimum)
    extreme = jax.ops.segment_min if minimum else jax.ops.segment_max

    def forward(params, x: DataAndIds):
        data, ids = x.data, widen_integers(x.ids)
        y = extreme(data, ids, num_segments)
        segments = placed(ids, num_segments, wrap=False)
        return y, SegmentMaxCache(data == of_segments(y, segments, of_none=jnp.nan), segments)

    def backward(params, cache, dy):
        attained, segments = cache
        counts = jax.ops.segment_sum(attained.astype(wide_dtype(dy.dtype)), widen_integers(segments), num_segments)
        of_rows = of_segments(widen(dy), segments), of_segments(counts, segments, of_none=1)
        return (), (cast(shared_out(attained, *of_rows), dy.dtype), None)

    return along(Layer(no_params, forward, backward, who), axis)


def reference(
    params: tuple[()], x: tuple[Array, Array], num_segments: int, minimum: bool = False, axis: int = 0
) -> Array:
    if x[1].ndim > 1:
        return jax.vmap(lambda *line: reference(params, line, num_segments, minimum, axis % x[0].ndim - 1))(*x)
    rows = jnp.moveaxis(x[0], axis, 0)
    return jnp.moveaxis((jax.ops.segment_min if minimum else jax.ops.segment_max)(rows, x[1], num_segments), 0, axis)


RULE = Rule(
    "segment_max",
    segment_max,
    reference,
    cases=(
        Case(
            "rows",
            (Real("N d", points=(4.0, 4.0, 4.0, 4.0)), Integer("N", 0, "S", points=(-1, 99))),
            {"num_segments": Size("S")},
            never_empty=("S",),
            timed={"N": 16384, "d": 64, "S": 2048},
        ),
        Case(
            "smallest along another axis",
            (Real("B d N", points=(-4.0, -4.0, -4.0)), Integer("N", 0, "S")),
            {"num_segments": Size("S"), "minimum": True, "axis": -1},
            never_empty=("S",),
        ),
        Case(
            "scalars, with ties",
            (Real("N", points=(4.0, 4.0, 4.0, 4.0)), Integer("N", 0, "S", points=(0, 0, 0, 0))),
            {"num_segments": Size("S")},
            never_empty=("S",),
        ),
    ),
    cite="Qi et al., 'PointNet', arXiv:1612.00593, section 4.2; ties as in jax.ops.segment_max",
    covers=("scatter_max", "segment_min"),
)
