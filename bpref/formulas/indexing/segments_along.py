"""Segments along another axis than the first: data are turned so that it is the first, and turned back."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.formulas.indexing.along_axis import axis_of
from bpref.formulas.indexing.indices import DataAndIds
from bpref.layer import Layer, no_params


class DataAndIdsAlong(NamedTuple):
    data: Float[Array, "*n"]
    ids: Int[Array, " N"]


def along(layer: Layer, axis: int) -> Layer:
    """The layer of segments along the first axis, along this one; y has the segments in its place."""
    if axis == 0:
        return layer

    def forward(params, x: DataAndIdsAlong):
        axis_of(layer.name, "data", x.data, axis)
        y, cache = layer.forward(params, DataAndIds(jnp.moveaxis(x.data, axis, 0), x.ids))
        return jnp.moveaxis(y, 0, axis), cache

    def backward(params, cache, dy):
        ddata = layer.backward(params, cache, jnp.moveaxis(dy, axis, 0))[1][0]
        return (), (jnp.moveaxis(ddata, 0, axis), None)

    return Layer(no_params, forward, backward, layer.name)
