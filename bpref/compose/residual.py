"""residual: y = x + f(x).

Differential: delta y = delta x + delta f(x). The cotangent goes both ways and the two parts add:
dx = dy + (f's backward of dy). Nothing is cached beyond what f keeps: the adjoint of a sum needs no values.
"""

from typing import overload

import jax
from jax import lax

from bpref.compose.parts import (
    ByName,
    ByNumber,
    added,
    as_input,
    given_state,
    of_value,
    parts_of,
    pull,
    run,
    without,
)
from bpref.compose.serial import in_series
from bpref.layer import C, Layer, P, X, Y, require_layer


@overload
def residual(layer: Layer[P, X, Y, C], /) -> Layer[P, X, Y, C]: ...
@overload
def residual(a: Layer, b: Layer, /, *more: Layer) -> ByNumber: ...
@overload
def residual(**named: Layer) -> ByName: ...
def residual(*layers: Layer, **named: Layer) -> Layer:
    """x plus what the layer makes of it; x may be a pytree. Params and cache are the layer's own.

    Several layers, or layers with names, are taken one after the other: `residual(norm=rms_norm(), up=linear(64))` is
    `residual(serial(norm=rms_norm(), up=linear(64)))`.

    Example:
      >>> bpref.residual(bpref.tanh()).forward((), jnp.zeros(2))[0]
      Array([0., 0.], dtype=float32)
      >>> bpref.backpropagate(bpref.residual(bpref.tanh()), (), jnp.zeros(2), jnp.ones(2))[2]
      Array([2., 2.], dtype=float32)

    Raises:
      ValueError: there is no layer; the output does not have x's tree and shapes.
      TypeError: something is no layer.
    """
    if len(layers) != 1 or named:
        return residual(in_series(parts_of("residual", layers, named)))
    (layer,) = layers
    require_layer("residual", "layer", layer)

    is_stateful = layer.begin is not None

    def forward(params, x):
        x, beside = without("residual", is_stateful, x)
        y, cache, after = run(layer, params, x, beside)
        require_same_shapes("residual", layer, x, y)
        return given_state(is_stateful, jax.tree.map(lax.add, x, y), after), cache

    def backward(params, cache, dy):
        dy, data = of_value(is_stateful, dy)
        dparams, dx, of_data = pull(data, layer, params, cache, dy)
        return dparams, as_input(is_stateful, added(dy, dx), of_data)

    return Layer(layer.init, forward, backward, "residual", (layer,), residual, ("",), layer.begin)


def require_same_shapes(who: str, layer: Layer, x, y) -> None:
    """Raise `ValueError` unless y has x's tree, shapes and dtypes."""
    came, expected = (jax.tree.map(lambda v: f"{v.dtype}{list(v.shape)}", tree) for tree in (y, x))
    if came != expected:
        raise ValueError(f"{who}: the output of {layer.name} is {came}, expected that of its input, {expected}")
