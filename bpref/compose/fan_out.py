"""fan_out: one input to several layers.

Forward: y_i = f_i(x). Every layer reads the same x, so that J changes with it through each of them:

    delta J = sum_i <dy_i, f_i'(x) delta x>,     dx = sum_i (f_i's backward of dy_i)
"""

import jax

from bpref.compose.parts import added, parts_of
from bpref.layer import Layer


def fan_out(*layers: Layer, **named: Layer) -> Layer:
    """`x -> (f_1(x), ..., f_n(x))`; x may be a pytree.

    Params, cache and y have one entry per layer: they are tuples, or dicts where the layers have names. The cotangent
    of x is the sum of the layers'; what all of them hold constant has `None`.

    Raises:
      ValueError: there is no layer; or, at the call, params or dy do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("fan_out", layers, named)

    def init(key, x):
        keys = jax.random.split(key, len(parts.layers))
        return parts.together(layer.init(k, x) for layer, k in zip(parts.layers, keys, strict=True))

    def forward(params, x):
        params = parts.apart("fan_out", params)
        pairs = [layer.forward(p, x) for layer, p in zip(parts.layers, params, strict=True)]
        return parts.together(y for y, _ in pairs), parts.together(cache for _, cache in pairs)

    def backward(params, caches, dy):
        each = (parts.apart("fan_out", v, what) for v, what in ((params, "params"), (caches, "cache"), (dy, "dy")))
        pairs = [layer.backward(*given) for layer, *given in zip(parts.layers, *each, strict=True)]
        return parts.together(dp for dp, _ in pairs), added(*(dx for _, dx in pairs))

    return Layer(init, forward, backward, "fan_out", *parts.rebuilt_by(fan_out))
