"""reduce_max: the largest value, or the smallest, over some axes.

Forward, with i over the reduced axes:

    y = max_i x_i       or       y = min_i x_i                            x's shape without the reduced axes

Differential: where one x_i is the largest, y changes as it does, and as no other: delta y = delta x_i. With M_i = 1
where x_i = y and 0 elsewhere, and c = sum_i M_i the number of those that are equally large,

    dx_i = dy M_i / c                                                     x's shape

Kink: where several are equally large (c > 1) y has no derivative, but subgradients, which are all the weightings of
these with sum 1. Equal shares are taken, as `jax.numpy.max` does; `argmax` would give all to the first.

Cached: M, in one byte for each value. c is the sum of it, and y itself is not needed.

Numerical care: nothing is rounded but dy / c. A NaN makes y NaN, as it is equal to nothing c is 0, and dx is made NaN
for all values that were compared with it: it is not swallowed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.reduced import Axis, numbered, require_axes, require_values, restored, shared_out, without
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class ReduceMaxCache(NamedTuple):
    is_extreme: Bool[Array, "..."]


def reduce_max(
    axis: Axis = None, keepdims: bool = False, minimum: bool = False
) -> Layer[tuple[()], Array, Reals, ReduceMaxCache]:
    """y = the largest x over some axes, or the smallest.

    Args:
      axis: one axis, several, or None for all of them.
      keepdims: whether y keeps the reduced axes, with size 1.
      minimum: whether y is the smallest instead.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. Values that are equally
      large share the gradient equally; where one is NaN, y and all dx are.

    Raises:
      ValueError: x has no such axis, or an axis is named twice; there is no value along them.
      TypeError: x is not floating-point.
    """
    who = "reduce_max"
    require_flags(who, keepdims=keepdims, minimum=minimum)
    extreme = jnp.min if minimum else jnp.max

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        require_values(who, x, axes)
        y = extreme(x, axes, keepdims=True)
        return without(y, axes, keepdims), ReduceMaxCache(x == y)

    def backward(params, cache, dy):
        M = cache.is_extreme
        axes = numbered(axis, M.ndim)
        wide = widen(dy)
        c = jnp.sum(M, axes, dtype=wide.dtype, keepdims=True)
        return (), cast(shared_out(M, restored(wide, axes, keepdims), c), dy.dtype)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: Array, axis: Axis = None, keepdims: bool = False, minimum: bool = False) -> Array:
    return (jnp.min if minimum else jnp.max)(x, axis, keepdims=keepdims)


RULE = Rule(
    "reduce_max",
    reduce_max,
    reference,
    cases=(
        Case("last axis", Real("N d", points=(4.0,) * 3), {"axis": -1}, ("d",), timed={"N": 1024, "d": 4096}),
        Case(
            "smallest of several axes, kept",
            Real("N d T"),
            {"axis": (0, 2), "keepdims": True, "minimum": True},
            ("N", "T"),
        ),
        Case("of all", Real("N d"), never_empty=("N", "d")),
    ),
    cite="Clarke, 'Optimization and nonsmooth analysis' (1983), proposition 2.3.12: the subgradients of a maximum",
    covers=("reduce_min",),
)
