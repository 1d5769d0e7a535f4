"""parallel: layers side by side, each on its own entry of a tuple.

Forward: y_i = f_i(x_i). No layer reads another's input, so the Jacobian is block-diagonal, and so is its
transpose: dx_i is f_i's backward of dy_i.
"""

from typing import overload

from bpref.compose.parts import C1, C2, P1, P2, X1, X2, Y1, Y2, ByName, ByNumber, parts_of
from bpref.layer import Layer


@overload
def parallel(
    a: Layer[P1, X1, Y1, C1], b: Layer[P2, X2, Y2, C2], /
) -> Layer[tuple[P1, P2], tuple[X1, X2], tuple[Y1, Y2], tuple[C1, C2]]: ...
@overload
def parallel(*layers: Layer) -> ByNumber: ...
@overload
def parallel(**named: Layer) -> ByName: ...
def parallel(*layers: Layer, **named: Layer) -> Layer:
    """The product of layers: `(x_1, ..., x_n) -> (y_1, ..., y_n)`.

    Params, cache, x and y have one entry per layer: they are tuples, or dicts where the layers have names.

    Example:
      >>> layer = bpref.parallel(bpref.tanh(), bpref.relu())
      >>> layer.forward(((), ()), (jnp.zeros(2), jnp.array([-1.0, 1.0])))[0]
      (Array([0., 0.], dtype=float32), Array([0., 1.], dtype=float32))

    Raises:
      ValueError: there is no layer; or, at the call, x, params or dy do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("parallel", layers, named)

    sweeps, begin = parts.side_by_side("parallel", lambda x: parts.apart("parallel", x, "x"), parts.together)
    return Layer(*sweeps, "parallel", *parts.rebuilt_by(parallel), begin)
