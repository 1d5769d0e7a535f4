"""residual: y = x + f(x).

Differential: delta y = delta x + delta f(x). The cotangent goes both ways and the two parts add:
dx = dy + (f's backward of dy). Nothing is cached beyond what f keeps: the adjoint of a sum needs no values.
"""

import jax
from jax import lax

from bpref.compose.parts import added
from bpref.compose.serial import serial
from bpref.layer import Layer, require_layer


def residual(*layers: Layer, **named: Layer) -> Layer:
    """x plus what the layer makes of it; x may be a pytree. Params and cache are the layer's own.

    Several layers, or layers with names, are taken one after the other: `residual(norm=rms_norm(), up=linear(64))` is
    `residual(serial(norm=rms_norm(), up=linear(64)))`.

    Raises:
      ValueError: there is no layer; the output does not have x's tree and shapes.
      TypeError: something is no layer.
    """
    if len(layers) != 1 or named:
        return residual(serial(*layers, **named))
    (layer,) = layers
    require_layer("residual", "layer", layer)

    def forward(params, x):
        y, cache = layer.forward(params, x)
        require_same_shapes("residual", layer, x, y)
        return jax.tree.map(lax.add, x, y), cache

    def backward(params, cache, dy):
        dparams, dx = layer.backward(params, cache, dy)
        return dparams, added(dy, dx)

    return Layer(layer.init, forward, backward, "residual", (layer,), residual, ("",))


def require_same_shapes(who: str, layer: Layer, x, y) -> None:
    """Raise `ValueError` unless y has x's tree, shapes and dtypes."""
    came, expected = (jax.tree.map(lambda v: f"{v.dtype}{list(v.shape)}", tree) for tree in (y, x))
    if came != expected:
        raise ValueError(f"{who}: the output of {layer.name} is {came}, expected that of its input, {expected}")
