"""scan: one layer, applied once for every slice of its stacked parameters.

Forward: A[l] = f(P[l], A[l-1]) for l = 1 ... L, where P[l] is the l-th slice of every leaf of params. The
layer's forward is already the body of a `lax.scan`; its backward, from l = L down to 1, is the body of the
reverse one. Traced and compiled once, however large L is. Where the layer puts its params, renewed, in the place of
dparams, each turn writes them over the old ones, so that there is one stack of them and not two.
"""

import jax

from bpref import loops
from bpref.compose.parts import as_input, at_the_start, begun, given_state, of_value, pull, pull_each, run, without
from bpref.compose.residual import require_same_shapes
from bpref.layer import C, Layer, P, X, Y, require_layer


def scan(layer: Layer[P, X, Y, C], length: int) -> Layer[P, X, Y, C]:
    """`length` layers in series, each with its own parameters, stacked along a new first axis.

    Args:
      layer: its output must have its input's shapes.
      length: the number of layers L. Stacked params, caches and dparams have it as their first axis.

    Example:
      >>> bpref.scan(bpref.linear(2), 3).init(jax.random.key(0), X).W.shape
      (3, 2, 2)

    Raises:
      TypeError: `layer` is no Layer.
      ValueError: `length` is not a positive integer; the layer changes its input's shapes.
    """
    require_layer("scan", "layer", layer)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ValueError(f"scan: length is {length!r}, expected a positive integer")

    is_stateful = layer.begin is not None

    def begin(key, x):
        x, beside = at_the_start(jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), x))
        return jax.vmap(lambda k: begun(layer, k, x, beside))(jax.random.split(key, length))

    def forward(params, x):
        x, beside = without("scan", is_stateful, x)

        def body(x, slices):
            p, state = slices
            y, cache, after = run(layer, p, x, beside._replace(state=state))
            require_same_shapes("scan", layer, x, y)
            return y, (cache, after)

        y, (caches, after) = loops.scan(body, x, (params, beside.state), length)
        return given_state(is_stateful, y, after), caches

    def backward(params, caches, dy):
        dy, data = of_value(is_stateful, dy)

        def turn(dy, slices):
            p, cache = slices
            return pull(data, layer, p, cache, dy)

        dparams, dx, of_data = pull_each(turn, dy, (params, caches), length, data, layer.renews)
        return dparams, as_input(is_stateful, dx, of_data)

    return Layer(
        lambda key, x: begin(key, x)[0],
        forward,
        backward,
        "scan",
        (layer,),
        lambda part: scan(part, length),
        ("",),
        begin if is_stateful else None,
    )
