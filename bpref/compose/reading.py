"""reading: a layer that takes more than x, in a composition that hands on x alone.

Segments of packed sequences, masks and the like come with the data, and go to every layer that reads them, however
deep it lies in `scan` and `remat`: a composition is given `With(x, state, data)`, data a dict, and the layers that read
none of it do not see it. Forward: y = f(make(x, data)). Data is a constant for the adjoint: dx is that of the first
entry of what make gives.
"""

from collections.abc import Callable

from jaxtyping import PyTree

from bpref.compose.parts import as_input, at_the_start, begun, pull, run, without
from bpref.layer import Layer, require_layer


def reading(layer: Layer, make: Callable[..., tuple[PyTree, ...]], *names: str) -> Layer:
    """The layer, given `make(x, NAME=data[NAME], ...)` where a composition has x: a named tuple that begins with x.

    `reading(multi_head_attention(8, causal=True), Sequences, "segments")` looks into its own sequences alone, packed as
    `With(x, state, {"segments": ids})` says.

    Args:
      layer: what takes such a tuple.
      make: the class of the tuple, or a function that makes one.
      names: what is read of the data.

    Example:
      >>> weighted = bpref.reading(bpref.fan_in("product"), lambda x, scale: (x, scale), "scale")
      >>> (value, _), _ = weighted.forward((), bpref.With(jnp.ones(2), (), {"scale": jnp.array([2.0, 3.0])}))
      >>> value
      Array([2., 3.], dtype=float32)

    Raises:
      TypeError: `layer` is no Layer, `make` no function; at the call, x is no `With`.
      ValueError: no name is given; at the call, the data have none of that name.
    """
    require_layer("reading", "layer", layer)
    if not callable(make):
        raise TypeError(f"reading: make is {make!r}, expected a function of x and ({', '.join(names)})")
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"reading: names are {names}, expected at least one name of what comes with the data")

    def made(x, data):
        absent = [name for name in names if name not in data]
        if absent:
            came = ", ".join(map(str, data)) or "nothing"
            raise ValueError(f"reading {layer.name}: data have ({came}), expected ({', '.join(names)})")
        return make(x, **{name: data[name] for name in names})

    def begin(key, x):
        x, beside = at_the_start(x)
        return begun(layer, key, made(x, beside.data), beside)

    def forward(params, x):
        x, beside = without(f"reading {layer.name}", True, x)
        y, cache, after = run(layer, params, made(x, beside.data), beside)
        return (y, after), cache

    def backward(params, cache, dy):
        dy, data = dy
        dparams, dx, of_data = pull(data, layer, params, cache, dy)
        return dparams, as_input(True, dx[0], of_data)

    return Layer(
        lambda key, x: begin(key, x)[0],
        forward,
        backward,
        "reading",
        (layer,),
        lambda part: reading(part, make, *names),
        ("",),
        begin,
        reads=(*names, *layer.reads),
    )
