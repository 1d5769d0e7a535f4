"""reduce_sum: the sum, or the mean, over some axes.

Forward, with i over the reduced axes, n of them together, and s = 1 for the sum and 1 / n for the mean:

    y = s sum_i x_i                                                       x's shape without the reduced axes

Differential: delta y = s sum_i delta x_i. Every x_i has the same factor:

    dx_i = s dy                                                           x's shape

Cached: no number at all. The backward must know how often dy is repeated, and that is kept as an array that has no
elements: of x's shape and dtype, with an axis of size 0 in front.

Numerical care: half precision is summed in float32 and rounded once; a sum of a thousand bfloat16 ones that are added
up in bfloat16 is 256.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.norm.reduced import Axis, count, numbered, require_axes, require_values, restored, without
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class ReduceSumCache(NamedTuple):
    like: Float[Array, "0 ..."]


def reduce_sum(
    axis: Axis = None, keepdims: bool = False, mean: bool = False
) -> Layer[tuple[()], Array, Reals, ReduceSumCache]:
    """y = the sum of x over some axes, or its mean.

    Args:
      axis: one axis, several, or None for all of them.
      keepdims: whether y keeps the reduced axes, with size 1.
      mean: whether the sum is divided by the number of its terms.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. A sum of nothing is 0.

    Raises:
      ValueError: x has no such axis, or an axis is named twice; a mean is asked for of nothing.
      TypeError: x is not floating-point.
    """
    who = "reduce_sum"
    require_flags(who, keepdims=keepdims, mean=mean)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        n = require_values(who, x, axes) if mean else 1
        y = without(jnp.sum(widen(x), axes, keepdims=True) / n, axes, keepdims)
        return cast(y, x.dtype), ReduceSumCache(jnp.zeros((0, *x.shape), x.dtype))

    def backward(params, cache, dy):
        shape, dtype = cache.like.shape[1:], cache.like.dtype
        axes = numbered(axis, len(shape))
        dx = widen(dy) / count(shape, axes) if mean else dy
        return (), jnp.broadcast_to(restored(cast(dx, dtype), axes, keepdims), shape)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: Array, axis: Axis = None, keepdims: bool = False, mean: bool = False) -> Array:
    return (jnp.mean if mean else jnp.sum)(x, axis, keepdims=keepdims)


RULE = Rule(
    "reduce_sum",
    reduce_sum,
    reference,
    cases=(
        Case("last axis", Real("N d"), {"axis": -1}, timed={"N": 1024, "d": 4096}),
        Case("several axes, kept", Real("N T d"), {"axis": (0, -1), "keepdims": True}),
        Case("mean", Real("N d"), {"axis": 0, "mean": True}, ("N",)),
        Case("mean of all", Real("N T d"), {"mean": True}, ("N", "T", "d")),
    ),
    cite="Giles, 'An extended collection of matrix derivative results' (2008), section 2.1, the adjoint of a sum",
    covers=("reduce_mean", "mean"),
)
