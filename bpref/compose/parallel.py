"""parallel: layers side by side, each on its own entry of a tuple.

Forward: y_i = f_i(x_i). No layer reads another's input, so the Jacobian is block-diagonal, and so is its
transpose: dx_i is f_i's backward of dy_i.
"""

from bpref.compose.parts import parts_of
from bpref.layer import Layer


def parallel(*layers: Layer, **named: Layer) -> Layer:
    """The product of layers: `(x_1, ..., x_n) -> (y_1, ..., y_n)`.

    Params, cache, x and y have one entry per layer: they are tuples, or dicts where the layers have names.

    Raises:
      ValueError: there is no layer; or, at the call, x, params or dy do not have one entry per layer.
      TypeError: something is no layer; only some have names.
    """
    parts = parts_of("parallel", layers, named)

    sweeps, begin = parts.side_by_side("parallel", lambda x: parts.apart("parallel", x, "x"), parts.together)
    return Layer(*sweeps, "parallel", *parts.rebuilt_by(parallel), begin)
