"""Layers of which each device along an axis of a mesh holds a part: what their arrays and cotangents mean.

The arrays are those of the whole computation, and J is one number. Along the axis an array of theirs is either *split*,
each of the P devices with a block of it, or *alike*, every device with all of it. A cotangent lies as what it belongs
to does: that of an array that is alike is alike, and whole. So what crosses devices in the backward is read off what
crosses in the forward, as any adjoint:

    forward                                              backward
    alike, used on each device with its own block        the devices' shares of its cotangent are summed: `psum`
    summed over devices, so that it is alike: `psum`     each has the whole cotangent already: nothing crosses
    blocks joined on each device: `all_gather`           shares summed, each has its block's: `psum_scatter`
    summed, and each has its block: `psum_scatter`       blocks joined: `all_gather`
    sent from p to q: `ppermute`, `all_to_all`           sent from q to p

In `jax.shard_map` with `check_vma=True`, what is split is what JAX's types call varying along the axis, and what is
alike what does not vary: through `as_function` its gradients are these, taken inside or outside. With `check_vma=False`
there are no such types, and JAX holds each device's copy of what is alike for an array of its own: take `backpropagate`
inside.

On one device `over_devices` does the same with blocks along a first axis, by `jax.vmap`; so a derivation with
collectives is verified like any other.
"""

from inspect import unwrap
from typing import Any

import jax
from jax import Array, lax

from bpref.checks.given import declared_of
from bpref.checks.hyperparameters import is_integer, require_size
from bpref.checks.shapes import normalized
from bpref.dtypes import described
from bpref.layer import Layer, require_layer
from bpref.loops import varies_along

SPLIT: Any = 0
ALIKE: Any = None
"""How an array, or a tree of them, lies: by blocks, along a first axis on one device; or the same for every device."""

ON_ONE = "devices"
"""The name of the axis where the devices are blocks on one."""


def axis_name(who: str, axis: Any) -> str:
    """The name that a layer's collectives use, of its hyperparameter `axis`: a name, or a number of blocks."""
    if isinstance(axis, str) and axis:
        return axis
    if not is_integer(axis):
        raise ValueError(f"{who}: axis is {axis!r}, expected the name of an axis of a mesh, or a number of blocks")
    require_size(who, "axis", axis)
    return ON_ONE


def laid_out(layer: Layer, axis: str | int, params: Any, x: Any, cache: Any, y: Any) -> Layer:
    """The layer, whose collectives use `axis_name`: as it is on a mesh, or `over_devices` on one device."""
    return layer if isinstance(axis, str) else over_devices(layer, ON_ONE, axis, params, x, cache, y)


def over_devices(layer: Layer, axis: str, devices: int, params: Any, x: Any, cache: Any, y: Any) -> Layer:
    """A layer for `jax.shard_map`, on one device: a function of all blocks, that can be checked like any other.

    Args:
      layer: its functions are those of one device, and name the axis in collectives.
      axis: that name.
      devices: their number P.
      params, x, cache, y: how each lies, as `in_axes` of `jax.vmap` has it: 0 where it is split, its blocks along a new
        first axis; `None` where it is alike; or a tree of these. dparams lie as params, dx as x, dy as y.

    Returns:
      A layer of the arrays with their blocks.

    Example:
      A share of a product, and what a forgotten sum over the devices of dx looks like:

      >>> layer = bpref.over_devices(mine, "model", 2, params=0, x=None, cache=None, y=0)
      >>> print(bpref.check(layer, layer.init(jax.random.key(0), X), X))

    Raises:
      TypeError: `layer` is no Layer; and the layer, when it is called inside of `jax.shard_map`.
      ValueError: `devices` is no positive integer; a split array has another number of blocks; what is to be alike
        differs between the devices.
    """
    require_layer("over_devices", "layer", layer)
    P, who = require_size("over_devices", "devices", devices), layer.name
    declared = declared_of(unwrap(layer.forward))

    def on_each(f, lies, gives):
        if jax.sharding.get_abstract_mesh().manual_axes:
            raise TypeError(f"{who}: {P} devices on one, inside of shard_map; expected the name of an axis of its mesh")

        def run(*of):
            try:
                return jax.vmap(f, in_axes=lies, out_axes=gives, axis_name=axis, axis_size=P)(*of)
            except ValueError as error:
                if "out_axes is None" not in str(error):
                    raise
                missing = f"expected the same on all, as a sum over {axis!r} gives"
                raise ValueError(f"{who}: what is to be alike is each device's own; {missing}") from error

        return run

    def init(key, of_x):
        of_x = normalized(who, of_x, declared)
        _require_blocks(who, P, "x", of_x, x)
        block = jax.tree.map(
            lambda lie, part: jax.tree.map(_block if lie == SPLIT else _like, part), x, of_x, is_leaf=_is_lie
        )
        return on_each(lambda _: layer.init(key, block), ALIKE, params)(None)

    def forward(of_params, of_x):
        of_x = normalized(who, of_x, declared)
        _require_blocks(who, P, "x", of_x, x)
        return on_each(layer.forward, (params, x), (y, cache))(of_params, of_x)

    def backward(of_params, of_cache, dy):
        return on_each(layer.backward, (params, cache, y), (params, x))(of_params, of_cache, dy)

    forward.__module__ = unwrap(layer.forward).__module__
    return Layer(init, forward, backward, who)


def own_key(key: Any, axis: str) -> Any:
    """Another key on each device, for params that are split."""
    return jax.random.fold_in(key, lax.axis_index(axis))


def require_alike(who: str, axis: str, **arrays: Any) -> None:
    """Raise `ValueError` where JAX's types say that devices along the axis may hold different arrays."""
    for name, v in arrays.items():
        if axis in varies_along(v):
            raise ValueError(f"{who}: {name} varies along {axis!r} by its type, expected the same on all devices of it")


def joined(v: Array, axis: str, along: int) -> Array:
    """The blocks of all devices, joined along an axis of the array."""
    return lax.all_gather(v, axis, axis=along % v.ndim, tiled=True)


def summed_and_split(v: Array, axis: str, along: int) -> Array:
    """The block of this device of the sum over all."""
    return lax.psum_scatter(v, axis, scatter_dimension=along % v.ndim, tiled=True)


def _is_lie(v: Any) -> bool:
    return v is None


def _like(v: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.shape, v.dtype)


def _block(v: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(v.shape[1:], v.dtype)


def _require_blocks(who: str, P: int, name: str, v: Any, lies: Any) -> None:
    def require(path, lie, part):
        for inner, leaf in jax.tree_util.tree_flatten_with_path(part)[0] if lie == SPLIT else ():
            if getattr(leaf, "shape", ())[:1] != (P,):
                where = name + jax.tree_util.keystr((*path, *inner))
                came = f"has shape {leaf.shape}" if hasattr(leaf, "shape") else f"is {described(leaf)}"
                raise ValueError(f"{who}: {where} {came}, expected {P} blocks along its first axis, one of each device")

    jax.tree_util.tree_map_with_path(require, lies, v, is_leaf=_is_lie)
