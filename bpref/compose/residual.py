"""residual: y = x + f(x).

Differential: delta y = delta x + delta f(x). The cotangent goes both ways and the two parts add:
dx = dy + (f's backward of dy). Nothing is cached beyond what f keeps: the adjoint of a sum needs no values.
"""

import jax

from bpref.layer import Layer, require_layer


def residual(layer: Layer) -> Layer:
    """x plus the layer's output; x may be a pytree. Params and cache are the layer's own.

    Raises:
      TypeError: it is no Layer.
      ValueError: the layer's output does not have x's tree and shapes.
    """
    require_layer("residual", "layer", layer)

    def forward(params, x):
        y, cache = layer.forward(params, x)
        require_same_shapes("residual", layer, x, y)
        return jax.tree.map(lambda a, b: a + b, x, y), cache

    def backward(params, cache, dy):
        dparams, dx = layer.backward(params, cache, dy)
        return dparams, jax.tree.map(lambda a, b: a + b, dy, dx)

    return Layer(layer.init, forward, backward, "residual", (layer,), residual)


def require_same_shapes(who: str, layer: Layer, x, y) -> None:
    """Raise `ValueError` unless y has x's tree, shapes and dtypes."""
    came, expected = (jax.tree.map(lambda v: f"{v.dtype}{list(v.shape)}", tree) for tree in (y, x))
    if came != expected:
        raise ValueError(f"{who}: the output of {layer.name} is {came}, expected that of its input, {expected}")
