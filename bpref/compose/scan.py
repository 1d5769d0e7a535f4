"""scan: one layer, applied once for every slice of its stacked parameters.

Forward: A[l] = f(P[l], A[l-1]) for l = 1 ... L, where P[l] is the l-th slice of every leaf of params. The
layer's forward is already the body of a `lax.scan`; its backward, from l = L down to 1, is the body of the
reverse one. Traced and compiled once, however large L is.
"""

import jax

from bpref import loops
from bpref.compose.residual import require_same_shapes
from bpref.layer import Layer, require_layer


def scan(layer: Layer, length: int) -> Layer:
    """`length` layers in series, each with its own parameters, stacked along a new first axis.

    Args:
      layer: its output must have its input's shapes.
      length: the number of layers L. Stacked params, caches and dparams have it as their first axis.

    Raises:
      TypeError: `layer` is no Layer.
      ValueError: `length` is not a positive integer; the layer changes its input's shapes.
    """
    require_layer("scan", "layer", layer)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"scan: length is {length!r}, expected a positive integer")

    def init(key, x):
        x = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), x)
        return jax.vmap(lambda k: layer.init(k, x))(jax.random.split(key, length))

    def forward(params, x):
        def body(x, p):
            y, cache = layer.forward(p, x)
            require_same_shapes("scan", layer, x, y)
            return y, cache

        return loops.scan(body, x, params, length)

    def backward(params, caches, dy):
        def body(dy, slices):
            p, cache = slices
            dp, dx = layer.backward(p, cache, dy)
            return dx, dp

        dx, dparams = loops.scan(body, dy, (params, caches), length, reverse=True)
        return dparams, dx

    return Layer(init, forward, backward, "scan", (layer,), lambda part: scan(part, length), ("",))
