"""serial: one layer after the other.

Forward: A[l] = f[l](A[l-1]) for l = 1 ... L. By the chain rule the cotangent goes through the layers in
reverse, and each one is given the cotangent of its output: dA[l-1] = f[l]'s backward of dA[l].
"""

import jax

from bpref.compose.parts import parts_of
from bpref.layer import Layer


def serial(*layers: Layer, **named: Layer) -> Layer:
    """The composition of layers, the first one applied first: `serial(linear(64), tanh())`.

    Its params and its cache have one entry per layer: they are tuples; or, of `serial(hidden=linear(64), act=tanh())`,
    dicts by these names.

    Raises:
      ValueError: there is no layer; or, at the call, params do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("serial", layers, named)

    def init(key, x):
        params = []
        for layer, layer_key in zip(parts.layers, jax.random.split(key, len(parts.layers)), strict=True):
            params.append(layer.init(layer_key, x))
            x = jax.eval_shape(layer.forward, params[-1], x)[0]
        return parts.together(params)

    def forward(params, x):
        caches = []
        for layer, p in zip(parts.layers, parts.apart("serial", params), strict=True):
            x, cache = layer.forward(p, x)
            caches.append(cache)
        return x, parts.together(caches)

    def backward(params, caches, dy):
        dparams = []
        given = zip(parts.layers, parts.apart("serial", params), parts.apart("serial", caches, "cache"), strict=True)
        for layer, p, cache in reversed(list(given)):
            dp, dy = layer.backward(p, cache, dy)
            dparams.append(dp)
        return parts.together(reversed(dparams)), dy

    return Layer(init, forward, backward, "serial", *parts.rebuilt_by(serial))
