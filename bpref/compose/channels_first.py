"""channels_first: (N, C, *spatial), as PyTorch has images and signals, around layers of (N, *spatial, C).

Forward: y = M* f(M x), where M moves the second axis to the end, and M* the last one to the second place. Each is the
adjoint of the other, since no element changes, so that dx = M* f*(M dy). Nothing is cached beyond what f keeps.

Within one `channels_first` nothing is moved between one layer and the next: put it around all that has channels.
"""

from typing import overload

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpref.compose.laid_out import laid_out
from bpref.compose.parts import ByName, ByNumber, parts_of
from bpref.compose.serial import in_series
from bpref.layer import C, Layer, P, X, Y


@overload
def channels_first(layer: Layer[P, X, Y, C], /) -> Layer[P, X, Y, C]: ...
@overload
def channels_first(a: Layer, b: Layer, /, *more: Layer) -> ByNumber: ...
@overload
def channels_first(**named: Layer) -> ByName: ...
def channels_first(*layers: Layer, **named: Layer) -> Layer:
    """The layer with channels in the second axis of x and of y, not in the last: `(N, C, H, W)` for `(N, H, W, C)`.

    x and y may be pytrees of such arrays; of one `(N, C)` nothing moves, nor of a y `(N,)` or `()`. Params and cache
    are the layer's own, W `(F, *window, C)` as ever. Several layers, or layers with names, are taken one after the
    other, as in `residual`. An image by itself, `(C, H, W)`, goes to `unbatched(channels_first(...))`.

    Example:
      >>> network = bpref.channels_first(bpref.convolution(8), bpref.group_norm(4), bpref.relu(), bpref.max_pool())
      >>> images = jnp.ones((2, 3, 6, 4))
      >>> params = network.init(jax.random.key(0), images)
      >>> network.forward(params, images)[0].shape
      (2, 8, 3, 2)

    Raises:
      ValueError: there is no layer; at the call, an array of x has fewer than 2 axes.
      TypeError: something is no layer.
    """
    if len(layers) != 1 or named:
        return channels_first(in_series(parts_of("channels_first", layers, named)))
    return laid_out("channels_first", layers[0], _to_last, _to_second, _require_channels, channels_first)


def _to_last(tree: PyTree) -> PyTree:
    return _moved(tree, 1, -1)


def _to_second(tree: PyTree) -> PyTree:
    return _moved(tree, -1, 1)


def _moved(tree: PyTree, source: int, destination: int) -> PyTree:
    """Each array of at least 2 axes with this axis moved; shapes alone where shapes are given."""

    def one(v):
        if len(v.shape) < 3:
            return v
        if isinstance(v, jax.ShapeDtypeStruct):
            return jax.eval_shape(one, v)
        return jnp.moveaxis(v, source, destination)

    return jax.tree.map(one, tree)


def _require_channels(x: PyTree) -> PyTree:
    for v in jax.tree.leaves(x):
        if len(v.shape) < 2:
            raise ValueError(f"channels_first: x has shape {v.shape}, expected (N, C, *spatial)")
    return x
