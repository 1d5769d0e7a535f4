"""parallel: layers side by side, each on its own entry of a tuple.

Forward: y_i = f_i(x_i). No layer reads another's input, so the Jacobian is block-diagonal, and so is its
transpose: dx_i is f_i's backward of dy_i.
"""

import jax

from bpref.compose.parts import parts_of
from bpref.layer import Layer


def parallel(*layers: Layer, **named: Layer) -> Layer:
    """The product of layers: `(x_1, ..., x_n) -> (y_1, ..., y_n)`.

    Params, cache, x and y have one entry per layer: they are tuples, or dicts where the layers have names.

    Raises:
      ValueError: there is no layer; or, at the call, x, params or dy do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("parallel", layers, named)

    def init(key, x):
        x = parts.apart("parallel", x, "x")
        keys = jax.random.split(key, len(parts.layers))
        return parts.together(layer.init(k, x_i) for layer, k, x_i in zip(parts.layers, keys, x, strict=True))

    def forward(params, x):
        params, x = parts.apart("parallel", params), parts.apart("parallel", x, "x")
        pairs = [layer.forward(p, x_i) for layer, p, x_i in zip(parts.layers, params, x, strict=True)]
        return parts.together(y for y, _ in pairs), parts.together(cache for _, cache in pairs)

    def backward(params, caches, dy):
        each = (parts.apart("parallel", v, what) for v, what in ((params, "params"), (caches, "cache"), (dy, "dy")))
        pairs = [layer.backward(*given) for layer, *given in zip(parts.layers, *each, strict=True)]
        return parts.together(dp for dp, _ in pairs), parts.together(dx for _, dx in pairs)

    return Layer(init, forward, backward, "parallel", *parts.rebuilt_by(parallel))
