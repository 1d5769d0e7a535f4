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

from collections.abc import Iterator
from inspect import unwrap

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.apart import sealed_by
from bpref.checks.given import declared_of
from bpref.checks.hyperparameters import is_integer, require_size
from bpref.checks.shapes import normalized
from bpref.layer import Layer, in_evaluation, require_layer
from bpref.loops import varies_along

SPLIT: PyTree = 0
ALIKE: PyTree = None
"""How an array, or a tree of them, lies: by blocks, along a first axis on one device; or the same for every device."""

ON_ONE = "devices"
"""The name of the axis where the devices are blocks on one."""


def axis_name(who: str, axis: str | int) -> str:
    """The name that a layer's collectives use, of its hyperparameter `axis`: a name, or a number of blocks."""
    if isinstance(axis, str) and axis:
        return axis
    if not is_integer(axis):
        raise ValueError(f"{who}: axis is {axis!r}, expected the name of an axis of a mesh, or a number of blocks")
    require_size(who, "axis", axis)
    return ON_ONE


def laid_out(layer: Layer, axis: str | int, params: PyTree, x: PyTree, cache: PyTree, y: PyTree) -> Layer:
    """The layer, whose collectives use `axis_name`: as it is on a mesh, or `over_devices` on one device."""
    return layer if isinstance(axis, str) else over_devices(layer, ON_ONE, axis, params, x, cache, y)


def over_devices(layer: Layer, axis: str, devices: int, params: PyTree, x: PyTree, cache: PyTree, y: PyTree) -> Layer:
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

      >>> layer = bpref.over_devices(bpref.linear(3), "model", 2, params=0, x=0, cache=0, y=0)
      >>> blocks = jnp.ones((2, 4, 2))
      >>> bpref.check(layer, layer.init(jax.random.key(0), blocks), blocks).ok
      True

    Raises:
      TypeError: `layer` is no Layer; and the layer, when it is called inside of `jax.shard_map`.
      ValueError: `devices` is no positive integer; a split array has another number of blocks; what is to be alike
        differs between the devices.
    """
    require_layer("over_devices", "layer", layer)
    P, who = require_size("over_devices", "devices", devices), layer.name
    declared = declared_of(unwrap(layer.forward))

    def on_each(f, given, gives):
        if jax.sharding.get_abstract_mesh().manual_axes:
            raise TypeError(f"{who}: {P} devices on one, inside of shard_map; expected the name of an axis of its mesh")

        def run(*of):
            leaves, tree = jax.tree.flatten(of)
            made: list[PyTree] = []

            def one(*leaves):
                out = f(*jax.tree.unflatten(tree, leaves))
                leaves, out_tree = jax.tree.flatten(out)
                made[:] = out_tree, list(_of_leaves(gives, out))
                pairs = list(zip(leaves, made[1], strict=True))
                return [v for v, lie in pairs if lie == SPLIT], [v for v, lie in pairs if lie is ALIKE]

            lies = tuple(_of_leaves(given, of))
            try:
                outs = jax.vmap(one, lies, (SPLIT, ALIKE), axis_name=axis, axis_size=P)(*leaves)
            except ValueError as error:
                if "out_axes is None" not in str(error):
                    raise
                missing = f"expected the same on all, as a sum over {axis!r} gives"
                raise ValueError(f"{who}: what is to be alike is each device's own; {missing}") from error
            split, alike = map(iter, outs)
            return jax.tree.unflatten(made[0], [next(split if lie == SPLIT else alike) for lie in made[1]])

        return run

    def given_x(of_x):
        of_x = normalized(who, of_x, declared)
        for (path, v), lie in zip(jax.tree_util.tree_flatten_with_path(of_x)[0], _of_leaves(x, of_x), strict=True):
            if lie == SPLIT and jnp.shape(v)[:1] != (P,):
                where = f"x{jax.tree_util.keystr(path)} has shape {jnp.shape(v)}"
                raise ValueError(f"{who}: {where}, expected {P} blocks along its first axis, one of each device")
        return of_x

    def init(key, of_x):
        leaves, tree = jax.tree.flatten(given_x(of_x))
        lies = _of_leaves(x, of_x)
        blocks = [jax.ShapeDtypeStruct(v.shape[lie == SPLIT :], v.dtype) for v, lie in zip(leaves, lies, strict=True)]
        return on_each(lambda: layer.init(key, jax.tree.unflatten(tree, blocks)), (), params)()

    def forward(of_params, of_x):
        return on_each(layer.forward, (params, x), (y, cache))(of_params, given_x(of_x))

    def backward(of_params, of_cache, dy):
        return on_each(layer.backward, (params, cache, y), (params, x))(of_params, of_cache, dy)

    forward.__module__ = unwrap(layer.forward).__module__
    inside = in_evaluation(layer)
    evaluating = None if inside is None else over_devices(inside, axis, devices, params, x, cache, y)
    return Layer(init, forward, backward, who, evaluating=evaluating, sealed=sealed_by(layer))


def own_key(key: Array, axis: str) -> Array:
    """Another key on each device, for params that are split."""
    return jax.random.fold_in(key, lax.axis_index(axis))


def require_alike(who: str, axis: str, **arrays: Array) -> None:
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


def _of_leaves(lies: PyTree, v: PyTree) -> Iterator[PyTree]:
    """How each leaf of v lies."""
    if isinstance(lies, tuple | list | dict) and v is not None:
        parts = [(lies[k], v[k]) for k in sorted(lies)] if isinstance(lies, dict) else zip(lies, v, strict=True)
        for lie, part in parts:
            yield from _of_leaves(lie, part)
    else:
        yield from [lies] * len(jax.tree.leaves(v))
