"""Sabotage: a right backward made wrong in one leaf. A checker that passes any of these is broken."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpref.layer import Layer
from bpref.verify.draw import Example
from bpref.verify.examine import Swept, name_of

SPOIL: dict[str, Callable[[Any], Any]] = {
    "scaled by 1.001": lambda v: v * 1.001,
    "zeroed": jnp.zeros_like,
    "negated": lambda v: -v,
    "transposed": lambda v: jnp.swapaxes(v, -1, -2) if v.ndim > 1 and v.shape[-1] == v.shape[-2] else v,
    "summed over its first axis": lambda v: _summed(v, 0),
    "summed over its last axis": lambda v: _summed(v, -1),
}
"""What is done to one leaf's cotangent, by name; the leaf as it is where the spoiling has no meaning for it."""


class Sabotage(NamedTuple):
    """An example whose layer is wrong in one leaf, in one way."""

    where: str
    how: str
    example: Example


def sabotages(example: Example) -> Iterator[Sabotage]:
    """Every way to spoil one leaf of the backward that changes its value."""
    params, x, dy = example.params, example.x, jax.tree.map(lambda v: v[0], example.dys)
    with jax.enable_x64(True):
        right = example.layer.backward(params, example.layer.forward(params, x)[1], dy)
        changed = [
            (name_of(path), how)
            for path, v in jax.tree_util.tree_flatten_with_path(Swept(None, *right))[0]
            for how, spoil in SPOIL.items()
            if not np.allclose(spoil(v), v, rtol=1e-4, atol=0.0)
        ]
    for where, how in changed:
        yield Sabotage(where, how, example._replace(layer=_spoiled(example.layer, where, SPOIL[how])))


def _spoiled(layer: Layer, where: str, spoil: Callable[[Any], Any]) -> Layer:
    """The layer with `spoil` applied to the cotangent of that name."""

    def backward(params, cache, dy):
        swept = Swept(None, *layer.backward(params, cache, dy))
        swept = jax.tree_util.tree_map_with_path(lambda path, v: spoil(v) if name_of(path) == where else v, swept)
        return swept.params, swept.x

    return layer._replace(backward=backward)


def _summed(v: Any, axis: int) -> Any:
    return jnp.broadcast_to(jnp.sum(v, axis, keepdims=True), v.shape) if v.ndim else v
