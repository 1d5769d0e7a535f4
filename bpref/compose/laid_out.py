"""laid_out: a layer that sees another layout of the same numbers than what stands around it.

Forward: y = Q f(P x), with P and Q that put elements in other places and change none. Where P is a permutation, its
adjoint is what undoes it, and Q here is what undoes P, of another shape:

    dx = P* f* Q* dy,     P* = Q,     Q* = P

f* being the layer's backward. Nothing is cached beyond what f keeps.
"""

from collections.abc import Callable

from jaxtyping import PyTree

from bpref.compose.parts import as_input, at_the_start, begun, given_state, of_value, pull, run, without
from bpref.layer import Layer, require_layer

Moved = Callable[[PyTree], PyTree]
"""Every array of a tree in its other layout, or as it was where it has none."""


def laid_out(
    who: str, layer: Layer, inwards: Moved, outwards: Moved, require_x: Moved, rebuild: Callable[..., Layer]
) -> Layer:
    """The layer, given `inwards(x)`; y is `outwards` of what it gives.

    Args:
      who: what error messages call the combinator.
      layer: any layer.
      inwards, outwards: the two, each of which undoes the other; of arrays, and of what `init` is given.
      require_x: x, if it is one that `inwards` takes.
      rebuild: the combinator, of another layer.
    """
    require_layer(who, "layer", layer)
    is_stateful = layer.begin is not None

    def begin(key, x):
        x, beside = at_the_start(x)
        return begun(layer, key, inwards(require_x(x)), beside)

    def forward(params, x):
        x, beside = without(who, is_stateful, x)
        y, cache, after = run(layer, params, inwards(require_x(x)), beside)
        return given_state(is_stateful, outwards(y), after), cache

    def backward(params, cache, dy):
        dy, data = of_value(is_stateful, dy)
        dparams, dx, of_data = pull(data, layer, params, cache, inwards(dy))
        return dparams, as_input(is_stateful, outwards(dx), of_data)

    def init(key, x):
        return begin(key, x)[0]

    return Layer(init, forward, backward, who, (layer,), rebuild, ("",), begin if is_stateful else None)
