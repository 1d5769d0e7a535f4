"""fan_in: several arrays made one: their sum, their product, or one after the other.

Forward, with x_1 ... x_n the arrays, for every element of them, and i the positions along the axis of a concatenation:

    sum:               y = x_1 + ... + x_n                                all of one shape
    product:           y = x_1 x_2 ... x_n
    concatenation:     y = (x_1, ..., x_n) along the axis                 of one shape but there

Differential: delta y = sum_k delta x_k; delta y = sum_k (prod over j != k of x_j) delta x_k; delta y = (delta x_1 ...
delta x_n). The factor of each perturbation:

    sum:               dx_k = dy
    product:           dx_k = dy prod over j != k of x_j
    concatenation:     dx_k = the stretch of dy where x_k stands          dx_k: as x_k

Nothing is divided for the product of the others, so that it holds at zeros: going through the arrays once, the product
of those before each of them is there; going back, that of those after, into which dy is put first.

Cached: for the product x; else nothing but how long each array is, in arrays of no elements.

Numerical care: a sum or a product of half precision is taken in float32 and rounded once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_choice
from bpref.dtypes import cast, require_arrays, require_floating, widen
from bpref.formulas.norm.reduced import numbered
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Real, Rule

COMBINED = ("sum", "product", "concatenation")


class FanInCache(NamedTuple):
    x: PyTree


def fan_in(combined: str = "sum", axis: int = -1) -> Layer[tuple[()], PyTree, Reals, FanInCache]:
    """The sum, the product or the concatenation of several arrays: what `fan_out` or `parallel` made, one again.

    Args:
      combined: "sum", "product" or "concatenation".
      axis: along which arrays are concatenated.

    Returns:
      A layer with params `()`, x a tuple, a dict or any tree of arrays, in the order in which JAX has its leaves (a
      dict's by name), and y one array in their dtype: of their shape, or as long along `axis` as all of them together.

    Raises:
      ValueError: `combined` is none of these; x has no array; shapes differ, or arrays have no such axis.
      TypeError: an array is not floating-point, or not of the dtype of the first.
    """
    who = "fan_in"
    require_choice(who, "combined", combined, COMBINED)
    concatenated = combined == "concatenation"

    def require(x):
        require_arrays(who, x=x)
        arrays = jax.tree.leaves(x)
        if not arrays:
            raise ValueError(f"{who}: x has no array, expected at least one")
        for i, v in enumerate(arrays):
            require_floating(who, f"array {i} of x", v)
            if concatenated and not -v.ndim <= axis < v.ndim:
                raise ValueError(f"{who}: array {i} of x has shape {v.shape}, which has no axis {axis}")
            if shape_of(v) != shape_of(arrays[0]):
                but = f" but along axis {axis}" if concatenated else ""
                raise ValueError(
                    f"{who}: array {i} of x has shape {v.shape}, expected that of array 0, {arrays[0].shape}{but}"
                )
            if v.dtype != arrays[0].dtype:
                raise TypeError(
                    f"{who}: array {i} of x has dtype {v.dtype}, expected that of array 0, {arrays[0].dtype}"
                )
        return arrays

    def shape_of(v):
        """What all arrays must agree in."""
        if not concatenated:
            return v.shape
        (along,) = numbered(axis, v.ndim)
        return (*v.shape[:along], *v.shape[along + 1 :])

    def forward(params, x):
        arrays = require(x)
        if concatenated:
            lengths = jax.tree.map(lambda v: jnp.zeros((0, v.shape[axis]), v.dtype), x)
            return jnp.concatenate(arrays, axis), FanInCache(lengths)
        operator = lax.add if combined == "sum" else lax.mul
        y = widen(arrays[0])
        for v in arrays[1:]:
            y = operator(y, widen(v))
        kept = x if combined == "product" else jax.tree.map(lambda v: jnp.zeros((0,), v.dtype), x)
        return cast(y, arrays[0].dtype), FanInCache(kept)

    def backward(params, cache, dy):
        arrays, tree = jax.tree.flatten(cache.x)
        if concatenated:
            (along,) = numbered(axis, dy.ndim)
            dx = lax.split(dy, [v.shape[1] for v in arrays], along)
        elif combined == "product":
            dx = [cast(d, dy.dtype) for d in _times_others(list(map(widen, arrays)), widen(dy))]
        else:
            dx = [dy] * len(arrays)
        return (), jax.tree.unflatten(tree, dx)

    decoding = each_position if combined != "concatenation" or axis == -1 else None
    return Layer(no_params, forward, backward, who, decoding=decoding)


def _times_others(x: list[Array], dy: Array) -> list[Array]:
    """dy times, for each of the arrays, the product of all others."""
    before: list[Array | None] = [None]
    for v in x[:-1]:
        before.append(v if before[-1] is None else before[-1] * v)
    found = []
    for v, b in zip(reversed(x), reversed(before), strict=True):
        found.append(dy if b is None else dy * b)
        dy = dy * v
    return found[::-1]


def reference(params: tuple[()], x: PyTree, combined: str = "sum", axis: int = -1) -> Array:
    arrays = jax.tree.leaves(x)
    if combined == "concatenation":
        return jnp.concatenate(arrays, axis)
    stacked = jnp.stack(arrays)
    return stacked.sum(0) if combined == "sum" else stacked.prod(0)


RULE = Rule(
    "fan_in",
    fan_in,
    reference,
    cases=(
        Case("sum", (Real("N d"), Real("N d"), Real("N d")), timed={"N": 4096, "d": 256}),
        Case("product", (Real("N d", points=(0.0,)), Real("N d"), Real("N d")), {"combined": "product"}),
        Case(
            "concatenation, named", {"b": Real("N p d"), "a": Real("N q d")}, {"combined": "concatenation", "axis": 1}
        ),
    ),
    cite="Rumelhart, Hinton and Williams, 'Learning representations by back-propagating errors' (1986): the sum rule "
    "of the chain; product as in reduce_prod",
    covers=("add", "multiply", "concatenate", "merge"),
)
