"""What a composition is made of: layers by number, or by name.

Params, cache and cotangents have one entry for each part: a tuple where the parts have no names, and else a dict.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
from jax import lax

from bpref.dtypes import described
from bpref.layer import Layer, require_layer

Names = tuple[str, ...]


class Parts(NamedTuple):
    """The layers of a composition in their order, and their names, as many or none."""

    layers: tuple[Layer, ...]
    names: Names = ()

    def rebuilt_by(self, combinator: Callable[..., Layer]) -> tuple[tuple[Layer, ...], Callable[..., Layer], Names]:
        """What a Layer says of its parts: themselves, how others are put in their places, and their names."""
        names = self.names
        return (
            self.layers,
            lambda *new: combinator(**dict(zip(names, new, strict=True))) if names else combinator(*new),
            names,
        )

    def together(self, values: Any) -> Any:
        """One entry for each part."""
        return dict(zip(self.names, values, strict=True)) if self.names else tuple(values)

    def apart(self, who: str, given: Any, what: str = "params") -> tuple[Any, ...]:
        """The entries in the order of the layers; `ValueError` unless there is one for each."""
        if self.names:
            if not isinstance(given, dict) or set(given) != set(self.names):
                came = f"a dict of ({', '.join(map(str, given))})" if isinstance(given, dict) else described(given)
                raise ValueError(f"{who}: {what} is {came}, expected a dict of ({', '.join(self.names)})")
            return tuple(given[name] for name in self.names)
        if not isinstance(given, tuple) or len(given) != len(self.layers):
            came = f"a tuple of {len(given)}" if isinstance(given, tuple) else described(given)
            layers = ", ".join(layer.name for layer in self.layers)
            raise ValueError(
                f"{who}: {what} is {came}, expected a tuple of {len(self.layers)}, one for each of ({layers})"
            )
        return given

    def side_by_side(self, who: str, each: Callable[[Any], Any], joined: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
        """Init, forward and backward of the layers, none of which reads another's output.

        Args:
          who: what error messages call the composition.
          each: of the input, what each layer is given.
          joined: of the layers' dx, the input's.
        """

        def init(key, x):
            keys = jax.random.split(key, len(self.layers))
            return self.together(f.init(k, x_i) for f, k, x_i in zip(self.layers, keys, each(x), strict=True))

        def forward(params, x):
            given = zip(self.layers, self.apart(who, params), each(x), strict=True)
            y, caches = zip(*(f.forward(p, x_i) for f, p, x_i in given), strict=True)
            return self.together(y), self.together(caches)

        def backward(params, caches, dy):
            given = (self.apart(who, v, what) for v, what in ((params, "params"), (caches, "cache"), (dy, "dy")))
            dparams, dx = zip(*(f.backward(*g) for f, *g in zip(self.layers, *given, strict=True)), strict=True)
            return self.together(dparams), joined(dx)

        return init, forward, backward


def parts_of(who: str, layers: tuple[Any, ...], named: dict[str, Any], called: Names = ()) -> Parts:
    """The parts that a combinator was given; `called` is what messages call those without names, not `layer 0`.

    Raises:
      ValueError: there is no layer.
      TypeError: something else is among them; some have names and others none.
    """
    if layers and named:
        raise TypeError(f"{who}: {len(layers)} layers have no name and {len(named)} have one; name all of them or none")
    if not layers and not named:
        raise ValueError(f"{who}: no layer was given, expected at least one")
    for name, layer in named.items() or zip(called or (f"layer {i}" for i in range(len(layers))), layers, strict=True):
        require_layer(who, name, layer)
    return Parts(layers or tuple(named.values()), tuple(named))


def added(*cotangents: Any) -> Any:
    """The sum of cotangents of one value, leaf by leaf: what several layers read has a term from each.

    `None`, the cotangent of what a layer holds constant, adds nothing.
    """
    known = [c for c in cotangents if c is not None]
    if len(known) < 2:
        return known[0] if known else None
    if jax.tree_util.all_leaves(known):
        return reduce(lax.add, known)
    parts, trees = zip(*(jax.tree.flatten(c, is_leaf=lambda v, c=c: v is not c) for c in known), strict=True)
    return jax.tree.unflatten(trees[0], map(added, *parts))
