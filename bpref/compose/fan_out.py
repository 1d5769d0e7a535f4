"""fan_out: one input to several layers.

Forward: y_i = f_i(x). Every layer reads the same x, so that J changes with it through each of them:

    delta J = sum_i <dy_i, f_i'(x) delta x>,     dx = sum_i (f_i's backward of dy_i)
"""

from typing import overload

from bpref.compose.parts import C1, C2, P1, P2, Y1, Y2, ByName, ByNumber, added, parts_of
from bpref.layer import Layer, X


@overload
def fan_out(
    a: Layer[P1, X, Y1, C1], b: Layer[P2, X, Y2, C2], /
) -> Layer[tuple[P1, P2], X, tuple[Y1, Y2], tuple[C1, C2]]: ...
@overload
def fan_out(*layers: Layer) -> ByNumber: ...
@overload
def fan_out(**named: Layer) -> ByName: ...
def fan_out(*layers: Layer, **named: Layer) -> Layer:
    """`x -> (f_1(x), ..., f_n(x))`; x may be a pytree.

    Params, cache and y have one entry per layer: they are tuples, or dicts where the layers have names. The cotangent
    of x is the sum of the layers'; what all of them hold constant has `None`.

    Example:
      >>> layer = bpref.fan_out(bpref.tanh(), bpref.identity())
      >>> bpref.backpropagate(layer, ((), ()), jnp.zeros(2), (jnp.ones(2), jnp.ones(2)))[2]
      Array([2., 2.], dtype=float32)

    Raises:
      ValueError: there is no layer; or, at the call, params or dy do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("fan_out", layers, named)

    sweeps, begin = parts.side_by_side("fan_out", lambda x: [x] * len(parts.layers), lambda dx: added(*dx))
    return Layer(*sweeps, "fan_out", *parts.rebuilt_by(fan_out), begin)
