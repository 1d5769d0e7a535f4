"""reduce_max: the largest value, or the smallest, over some axes.

Forward, with i over the reduced axes:

    y = max_i x_i       or       y = min_i x_i                            x's shape without the reduced axes

Differential: where one x_i is the largest, y changes as it does, and as no other: delta y = delta x_i. With M_i = 1
where x_i = y and 0 elsewhere, and c = sum_i M_i the number of those that are equally large,

    dx_i = dy M_i / c                                                     x's shape

Kink: where several are equally large (c > 1) y has no derivative, but subgradients, which are all the weightings of
these with sum 1. Equal shares are taken, as `jax.numpy.max` does.

With indices, k = the first i with x_i = y is given too, an integer without a cotangent; then y is x_k, and so is the
weighting that is taken, as in PyTorch:

    dx_i = dy [i = k]                                                     x's shape

Cached: M, in one byte for each value. c is the sum of it, and y itself is not needed. With indices k alone, in the
smallest integers that hold it, and the shape of x, which an array without elements remembers.

Numerical care: nothing is rounded but dy / c. A NaN makes y NaN, as it is equal to nothing c is 0, and dx is made NaN
for all values that were compared with it: it is not swallowed. With indices the first NaN is k, and nothing is divided.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, UInt

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.indexing.indices import smallest_integer
from bpref.formulas.norm.reduced import Axis, numbered, require_axes, require_values, restored, shared_out, without
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class ReduceMaxCache(NamedTuple):
    is_extreme: Bool[Array, "..."]


class ReduceMaxWithIndicesCache(NamedTuple):
    k: UInt[Array, "..."]
    shape: Float[Array, "0 ..."]


def reduce_max(
    axis: Axis = None, keepdims: bool = False, minimum: bool = False, with_indices: bool = False
) -> Layer[tuple[()], Array, Reals | tuple[Reals, Array], ReduceMaxCache | ReduceMaxWithIndicesCache]:
    """y = the largest x over some axes, or the smallest.

    Args:
      axis: one axis, several, or None for all of them.
      keepdims: whether y keeps the reduced axes, with size 1.
      minimum: whether y is the smallest instead.
      with_indices: whether the place of the first of the largest is given too: along one axis, or for None in x as one
        long vector.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. Values that are equally
      large share the gradient equally; where one is NaN, y and all dx are. With indices y is a pair
      `(values, indices)`, the indices int32, and the value at the index has all of the gradient; of dy, a pair too,
      only the values' is read.

    Raises:
      ValueError: x has no such axis, or an axis is named twice; there are several, and indices; there is no value along
        them.
      TypeError: x is not floating-point.
    """
    who = "reduce_max"
    require_flags(who, keepdims=keepdims, minimum=minimum, with_indices=with_indices)
    if with_indices:
        return _with_indices(who, axis, keepdims, minimum)
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


def _with_indices(who: str, axis: Axis, keepdims: bool, minimum: bool) -> Layer:
    if isinstance(axis, tuple):
        raise ValueError(f"{who}: axis is {axis!r}, expected one axis, or None for all, where indices are asked for")
    place_of = jnp.argmin if minimum else jnp.argmax

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        require_values(who, x, axes)
        line = x.reshape(-1) if axis is None or x.ndim == 0 else x
        along = axes[0] if line is x else 0
        k = place_of(line, along, keepdims=True)
        y = jnp.take_along_axis(line, k, along)
        if line is not x:
            y, k = y.reshape((1,) * x.ndim), k.reshape((1,) * x.ndim)
        cache = ReduceMaxWithIndicesCache(k.astype(smallest_integer(line.shape[along])), shape_keeper(x))
        return (without(y, axes, keepdims), without(k.astype(jnp.int32), axes, keepdims)), cache

    def backward(params, cache, dy):
        if dy[0] is None:
            return (), None
        shape, k = cache.shape.shape[1:], widen_integers(cache.k)
        axes = numbered(axis, len(shape))
        if axis is None or not shape:
            places = lax.iota(k.dtype, math.prod(shape)).reshape(shape)
        else:
            places = lax.broadcasted_iota(k.dtype, shape, axes[0])
        return (), jnp.where(places == k, restored(dy[0], axes, keepdims), 0)

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()],
    x: Array,
    axis: Axis = None,
    keepdims: bool = False,
    minimum: bool = False,
    with_indices: bool = False,
) -> Array | tuple[Array, Array]:
    if with_indices and not isinstance(axis, tuple):
        k = (jnp.argmin if minimum else jnp.argmax)(x, axis, keepdims=True)
        y = x.reshape(-1)[k] if axis is None else jnp.take_along_axis(x, k, axis)
        y, k = y.reshape(k.shape), k.astype(jnp.int32)
        return (y, k) if keepdims else (jnp.squeeze(y, axis), jnp.squeeze(k, axis))
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
        Case("indices", Real("N d T", points=(4.0,) * 3), {"axis": 1, "with_indices": True}, ("d",)),
        Case(
            "smallest of all with its index, kept",
            Real("N d", points=(-4.0,) * 3),
            {"keepdims": True, "minimum": True, "with_indices": True},
            ("N", "d"),
        ),
    ),
    cite="Clarke, 'Optimization and nonsmooth analysis' (1983), proposition 2.3.12: the subgradients of a maximum",
    covers=("reduce_min", "amax", "amin", "argmax", "argmin"),
)
