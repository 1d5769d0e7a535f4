"""remat: keep the input, make the rest again.

The cache of f is a function of (params, x), and params are given to the backward anyway: so keep x alone, and
run f's forward once more when its cache is needed. Memory falls from f's cache to the size of x, for one
more forward.

Outside a loop XLA sees both forwards in one program and merges them, so that nothing is saved; inside `scan`
the two are in different loops, and it pays.
"""

from typing import Any, NamedTuple

from bpref.layer import Layer, P, X, Y, require_layer


class RematCache(NamedTuple):
    x: Any


def remat(layer: Layer[P, X, Y, Any]) -> Layer[P, X, Y, RematCache]:
    """The same function with `cache := x`; the backward runs the forward again. `TypeError` for what is no Layer."""
    require_layer("remat", "layer", layer)

    def forward(params, x):
        kept = x if layer.begin is None else x._replace(data=None)  # the backward is given the data again
        return layer.forward(params, x)[0], RematCache(kept)

    def backward(params, cache, dy):
        x = cache.x if layer.begin is None else cache.x._replace(data=dy[1])
        return layer.backward(params, layer.forward(params, x)[1], dy)

    return Layer(layer.init, forward, backward, "remat", (layer,), remat, ("",), layer.begin)
