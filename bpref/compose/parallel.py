"""parallel: layers side by side, each on its own entry of a tuple.

Forward: y_i = f_i(x_i). No layer reads another's input, so the Jacobian is block-diagonal, and so is its
transpose: dx_i is f_i's backward of dy_i.
"""

import jax

from bpref.compose.serial import require_layers, require_one_each
from bpref.layer import Layer


def parallel(*layers: Layer) -> Layer:
    """The product of layers: `(x_1, ..., x_n) -> (y_1, ..., y_n)`.

    Params, cache, x and y are tuples, one entry per layer.

    Raises:
      ValueError: there is no layer; or, at the call, x or params do not have one entry per layer.
    """
    require_layers("parallel", layers)

    def init(key, x):
        require_one_each("parallel", layers, x, "x")
        keys = jax.random.split(key, len(layers))
        return tuple(layer.init(k, x_i) for layer, k, x_i in zip(layers, keys, x, strict=True))

    def forward(params, x):
        require_one_each("parallel", layers, params)
        require_one_each("parallel", layers, x, "x")
        pairs = [layer.forward(p, x_i) for layer, p, x_i in zip(layers, params, x, strict=True)]
        return tuple(y for y, _ in pairs), tuple(cache for _, cache in pairs)

    def backward(params, caches, dy):
        pairs = [layer.backward(*given) for layer, *given in zip(layers, params, caches, dy, strict=True)]
        return tuple(dp for dp, _ in pairs), tuple(dx for _, dx in pairs)

    return Layer(init, forward, backward, "parallel", layers, parallel)
