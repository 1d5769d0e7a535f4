"""What every activation shares: the adjoint of a function applied element by element.

Forward: `y = g(x)`. The differential is `dy_i = g'(x_i) dx_i`, a diagonal matrix, which is its own transpose:
the cotangent is `dx = dy g'(x)`, the seed's `dZ = dA g'(Z)`. An activation therefore states two things,
`g` with what it keeps, and `g'` of what was kept. Half precision is computed in float32 and rounded once.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree

from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer, each_position, no_params


def elementwise(
    name: str,
    g: Callable[[Array], tuple[Array, PyTree]],
    slope: Callable[[PyTree], Array] | None = None,
    flat: Callable[[PyTree], Array] | None = None,
) -> Layer:
    """The layer of `y = g(x)`, element by element, for `x` of any shape and floating dtype.

    Args:
      name: what error messages call the layer.
      g: `x -> (y, cache)`; the cache is a NamedTuple of arrays of x's shape, kept in x's dtype or as booleans.
      slope: `cache -> g'(x)`, of x's shape; left out where g' is 0 or 1, which a `PassingCache` tells. Of a cache of
        booleans it may choose between Python numbers.
      flat: `cache -> ` where g is constant, whatever `slope` says there: no cotangent passes, and a NaN neither.
    """

    def forward(params, x: Float[Array, "..."]):
        y, cache = g(widen(x))
        return cast(y, x.dtype), _in_dtype(cache, x.dtype)

    def backward(params, cache, dy):
        if slope is None:
            return (), jnp.where(cache.passes, dy, 0)
        wide = wide_dtype(dy.dtype)
        derivative = slope(_in_dtype(cache, wide))
        dx = cast(lax.mul(cast(dy, wide), cast(derivative, wide)), dy.dtype)
        return (), dx if flat is None else jnp.where(flat(cache), 0, dx)

    return Layer(no_params, forward, backward, name, decoding=each_position)


def _in_dtype(cache: PyTree, dtype: DTypeLike) -> PyTree:
    """The cache with its floating-point fields in `dtype`; masks stay booleans."""
    return type(cache)(*(cast(v, dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for v in cache))


def above_infinity(x: Array) -> Array:
    """x, and the lowest finite number for -inf: its product with 0 is 0, which is what a tail falls to, and not NaN."""
    return jnp.maximum(x, jnp.finfo(x.dtype).min)


def finite(x: Array) -> Array:
    """x, and the finite number that is farthest from 0 for either infinity."""
    return lax.clamp(jnp.finfo(x.dtype).min, x, jnp.finfo(x.dtype).max)
