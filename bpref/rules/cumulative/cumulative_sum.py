"""cumulative_sum: y_t = x_1 + ... + x_t along one axis.

Forward, t and k along the axis, all other axes apart:

    y_t = sum_k [k <= t] x_k                  inclusive                   y, x: one shape
    y_t = sum_k [k < t] x_k                   exclusive: y_1 = 0

`reverse` turns both inequalities round: the sum runs from the end.

Differential: delta y_t = sum_k [k <= t] delta x_k, a triangular matrix of ones, which does not depend on x. Its
transpose has the same ones, read along the columns:

    dx_k = sum_t [k <= t] dy_t                                            dx: as x

the cumulative sum from the other end, exclusive if the forward is.

Cached: nothing. The map is linear, and its matrix is known.

Numerical care: the exclusive sum is summed as such; y_t - x_t would cancel, and be NaN behind an infinity. Half
precision is summed in float32 and rounded once. On a CPU the sum runs in order and reads memory once; what each
addition rounds away is kept and added at the end (s + x = t + ((s - (t - b)) + (x - b)) with b = t - s, exactly), so
that y has one rounding's error at any T. A tree of partial sums, as `jnp.cumsum` makes it, rounds log T times and reads
memory log T times. It is taken elsewhere, where T steps one after the other would be slow.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.formulas.indexing.along_axis import axis_of, run_along, scalar_as_line, shifted
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


def cumulative_sum(
    axis: int = -1, reverse: bool = False, exclusive: bool = False
) -> Layer[tuple[()], Array, Reals, NoCache]:
    """y_t = the sum of x_k over k up to t.

    Args:
      axis: the axis that is summed along, counted from the last if negative.
      reverse: whether the sum runs from the end: over k from t on.
      exclusive: whether x_t itself is left out.

    Returns:
      A layer with params `()`, x of any shape and y of x's shape and dtype; a scalar is a line of one element.

    Raises:
      ValueError: x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "cumulative_sum"
    require_flags(who, reverse=reverse, exclusive=exclusive)

    def total(x, reverse):
        def step(before, at):
            after = _added(before, at)
            return after, _rounded(before if exclusive else after)

        def nothing(like):
            return jnp.zeros_like(like), jnp.zeros_like(like)

        def joined(v, axis, reverse):
            return lax.cumsum(shifted(v, axis, reverse, 0.0) if exclusive else v, axis, reverse)

        return cast(run_along(step, nothing, (widen(x),), axis, reverse, joined), x.dtype)

    def forward(params, x: Float[Array, "..."]):
        axis_of(who, "x", x, axis)
        return total(x, reverse), NoCache()

    def backward(params, cache, dy):
        return (), total(dy, not reverse)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def _added(before: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """s + x, rounded, and all that was lost in rounding so far: Knuth's two-sum."""
    s, lost = before
    t = s + x
    of_x = t - s
    return t, lost + ((s - (t - of_x)) + (x - of_x))


def _rounded(total: tuple[Array, Array]) -> Array:
    """The sum with what was lost; of an infinite one nothing is known to be lost."""
    s, lost = total
    return jnp.where(jnp.isfinite(s), s + lost, s)


def reference(params: tuple[()], x: Array, axis: int = -1, reverse: bool = False, exclusive: bool = False) -> Array:
    along = jnp.moveaxis(jnp.flip(x, axis) if reverse else x, axis, 0)
    if exclusive:
        along = jnp.concatenate([jnp.zeros_like(along[:1]), along])[: len(along)]
    y = jnp.moveaxis(jnp.cumsum(along, 0), 0, axis)
    return jnp.flip(y, axis) if reverse else y


RULE = Rule(
    "cumulative_sum",
    cumulative_sum,
    reference,
    cases=(
        Case("last axis", Real("N T")),
        Case("middle axis", Real("B T d"), {"axis": 1}, timed={"B": 64, "T": 512, "d": 32}),
        Case("exclusive, from the end", Real("B T d"), {"axis": 1, "reverse": True, "exclusive": True}),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.2: the adjoint of a linear recurrence; the "
    "exact sum of two: Knuth, 'The Art of Computer Programming', volume 2, 4.2.2, theorem B",
    covers=("cumsum", "prefix sum", "scan"),
)
