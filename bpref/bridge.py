"""The bridge: a layer as a function that JAX differentiates by the layer's own backward.

What JAX's types say of devices a cotangent has to say as well. Under `shard_map` a value may vary along axes of the
mesh, and another be alike on all devices: J changes with the latter through each of them, so that its cotangent is the
sum of theirs. On a mesh with explicit axes a cotangent is laid out as what it belongs to. How XLA gets it there is left
to it: the backward has automatic axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.sharding import NamedSharding, PartitionSpec, auto_axes, get_abstract_mesh
from jaxtyping import PyTree

from bpref.layer import Layer, P, X, Y, require_layer
from bpref.loops import made_to_vary, varies_along


def as_function(
    layer: Layer[P, X, Y, PyTree], out_sharding: NamedSharding | PartitionSpec | None = None
) -> Callable[[P, X], Y]:
    """The bridge: `(params, x) -> y`, a `jax.custom_vjp` function whose reverse is the layer's own backward.

    `jax.grad`, Flax and Equinox differentiate it like any function. A cotangent of `None` becomes zero, and what JAX
    knows to be zero, since an output is not used, becomes `None`: the layer does no work for it.

    Args:
      layer: any layer or composition.
      out_sharding: on a mesh with explicit axes, how y is laid out, as JAX's own functions have it: the layer then
        works with automatic axes. Where it is left out, JAX must be able to tell how all is laid out that is computed
        on the way to y.

    Example:
      >>> f = bpref.as_function(bpref.tanh())
      >>> jax.grad(lambda x: f((), x).sum())(jnp.zeros(2))
      Array([1., 1.], dtype=float32)

    Raises:
      TypeError: `layer` is no Layer; and JAX's own where forward mode (`jax.jvp`, `jax.jacfwd`, `jax.linearize`) meets
        the function: a layer has a backward, and no rule for tangents.
    """
    require_layer("as_function", "layer", layer)

    def apply(params, x):
        return layer.forward(params, x)[0]

    apply.__name__ = apply.__qualname__ = layer.name  # what JAX's programs, reports and an audit call it
    function = jax.custom_vjp(apply)

    def forward(params, x):
        params, x = custom_vjp_primal_tree_values((params, x))
        y, cache = layer.forward(params, x)
        leaves, tree = jax.tree.flatten((params, x))
        data = None if layer.begin is None else x.data
        return y, (params, cache, data, _Types(tuple(map(_type_of, leaves)), tree))

    def backward(residuals, dy):
        params, cache, data, types = residuals
        dy = jax.tree.map(lambda d: None if isinstance(d, SymbolicZero) else d, dy)
        dy = dy if layer.begin is None else (dy[0], data)
        of_inputs = jax.tree.unflatten(types.tree, types.leaves)
        cotangents = _laid_out(layer.backward, of_inputs, params, cache, dy)
        return _by_input(_as_its_primal, cotangents, of_inputs)

    function.defvjp(forward, backward, symbolic_zeros=True)
    bridged = function if out_sharding is None else auto_axes(function, out_sharding=out_sharding)
    return cast(Callable[[P, X], Y], bridged)


class _Type(NamedTuple):
    """What JAX's type of a value says of devices: along which axes it varies, and how it is laid out."""

    varies_along: frozenset[str]
    spec: PartitionSpec


@jax.tree_util.register_static
class _Types(NamedTuple):
    """Those of all inputs: no arrays, and so nothing that JAX would trace."""

    leaves: tuple[_Type, ...]
    tree: Any


def _type_of(v: Array) -> _Type:
    return _Type(varies_along(v), jax.typeof(v).sharding.spec)


def _by_input(f: Callable[[PyTree, PyTree], PyTree], cotangents: PyTree, types: PyTree) -> PyTree:
    """f of each cotangent that there is and of its input's type."""
    return jax.tree.map(lambda d, t: None if d is None else f(d, t), cotangents, types, is_leaf=lambda d: d is None)


def _laid_out(backward: Callable[..., PyTree], types: PyTree, *given: PyTree) -> PyTree:
    """The cotangents, on a mesh with explicit axes laid out as what they belong to."""
    if not get_abstract_mesh().explicit_axes:
        return backward(*given)
    cotangents = jax.eval_shape(auto_axes(backward, out_sharding=PartitionSpec()), *given)
    specs = _by_input(lambda _, t: t.spec, cotangents, types)
    return auto_axes(backward, out_sharding=specs)(*given)


def _as_its_primal(d: Array, of_input: _Type) -> Array:
    """The cotangent, the sum over the devices along whatever axes it varies and its input does not."""
    more = tuple(varies_along(d) - of_input.varies_along)
    return made_to_vary(lax.psum(d, more) if more else d, of_input.varies_along)
