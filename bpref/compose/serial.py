"""serial: one layer after the other.

Forward: A[l] = f[l](A[l-1]) for l = 1 ... L. By the chain rule the cotangent goes through the layers in
reverse, and each one is given the cotangent of its output: dA[l-1] = f[l]'s backward of dA[l].
"""

import jax

from bpref.layer import Layer


def serial(*layers: Layer) -> Layer:
    """The composition of layers, the first one applied first.

    Its params and its cache are tuples, one entry per layer.

    Raises:
      ValueError: there is no layer; or, at the call, there are not as many params as layers.
    """
    require_layers("serial", layers)

    def init(key, x):
        params = []
        for layer, layer_key in zip(layers, jax.random.split(key, len(layers)), strict=True):
            params.append(layer.init(layer_key, x))
            x = jax.eval_shape(layer.forward, params[-1], x)[0]
        return tuple(params)

    def forward(params, x):
        require_one_each("serial", layers, params)
        caches = []
        for layer, p in zip(layers, params, strict=True):
            x, cache = layer.forward(p, x)
            caches.append(cache)
        return x, tuple(caches)

    def backward(params, caches, dy):
        dparams = []
        for layer, p, cache in zip(reversed(layers), reversed(params), reversed(caches), strict=True):
            dp, dy = layer.backward(p, cache, dy)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy

    return Layer(init, forward, backward, "serial", layers, serial)


def require_layers(who: str, layers: tuple[Layer, ...]) -> None:
    """Raise `ValueError` when there is no layer, `TypeError` when something else is among them."""
    if not layers:
        raise ValueError(f"{who}: no layer was given, expected at least one")
    for layer in layers:
        if not isinstance(layer, Layer):
            what = getattr(layer, "__name__", type(layer).__name__)
            raise TypeError(
                f"{who}: {what} is no Layer; give layers one by one, each made, as in {who}(linear(64), tanh())"
            )


def require_one_each(who: str, layers: tuple[Layer, ...], given: tuple, what: str = "params") -> None:
    """Raise `ValueError` unless there is one entry for each layer."""
    if not isinstance(given, tuple) or len(given) != len(layers):
        came = f"a tuple of {len(given)}" if isinstance(given, tuple) else type(given).__name__
        names = ", ".join(layer.name for layer in layers)
        raise ValueError(f"{who}: {what} is {came}, expected a tuple of {len(layers)}, one for each of ({names})")
