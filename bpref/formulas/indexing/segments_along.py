"""Segments along another axis than the first, the same ones in each line or each line's own.

Data are turned so that the axis is the first, and turned back. Where each line has ids of its own, what lies before the
axis are lines, each of which is by itself what the layer is of.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.formulas.indexing.along_axis import axis_of
from bpref.formulas.indexing.indices import DataAndIds
from bpref.layer import Layer, no_params


class DataAndIdsAlong(NamedTuple):
    data: Float[Array, "*n"]
    ids: Int[Array, "*m"]


def along(layer: Layer, axis: int) -> Layer:
    """The layer of segments along the first axis, along this one; y has the segments in its place.

    Ids `(N,)` are those of every line; ids of the shape of data up to this axis, `(*lines, N)`, are each line's own.
    The cache of the layer has a field `segments`, of the shape of the ids.
    """
    if axis == 0:
        return layer

    def forward(params, x: DataAndIdsAlong):
        data, ids = x
        k = axis_of(layer.name, "data", data, axis)
        if ids.ndim > 1:
            _require_lines(layer.name, data, ids, k)
            return _of_each_line(layer.forward, k)(params, DataAndIds(data, ids))
        y, cache = layer.forward(params, DataAndIds(jnp.moveaxis(data, axis, 0), ids))
        return jnp.moveaxis(y, 0, axis), cache

    def backward(params, cache, dy):
        lines = cache.segments.ndim - 1
        if lines:
            return _of_each_line(layer.backward, lines)(params, cache, dy)
        ddata = layer.backward(params, cache, jnp.moveaxis(dy, axis, 0))[1][0]
        return (), (jnp.moveaxis(ddata, 0, axis), None)

    return Layer(no_params, forward, backward, layer.name)


def _of_each_line(f: Callable, lines: int) -> Callable:
    """`f` of each line for itself, the lines in so many axes."""
    for _ in range(lines):
        f = jax.vmap(f)
    return f


def _require_lines(who: str, data: Array, ids: Array, axis: int) -> None:
    own = data.shape[: axis + 1]
    if ids.shape != own:
        expected = f"(N,) = ({own[-1]},)" + (f" or (*lines, N) = {own}" if axis else "")
        raise ValueError(f"{who}: ids has shape {ids.shape}, expected {expected} by data {data.shape}")
