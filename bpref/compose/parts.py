"""What a composition is made of: layers by number, or by name.

Params, cache and cotangents have one entry for each part: a tuple where the parts have no names, and else a dict.
"""

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref import loops
from bpref.cotangents import has_none, with_zeros
from bpref.dtypes import cast, described, is_array, wide_dtype, widen
from bpref.layer import Layer, With, require_layer

A = TypeVar("A")
B = TypeVar("B")
P1 = TypeVar("P1")
P2 = TypeVar("P2")
P3 = TypeVar("P3")
C1 = TypeVar("C1")
C2 = TypeVar("C2")
C3 = TypeVar("C3")
X1 = TypeVar("X1")
X2 = TypeVar("X2")
Y1 = TypeVar("Y1")
Y2 = TypeVar("Y2")
"""What a combinator's signature says of its parts' types."""

ByName = Layer[dict[str, PyTree], PyTree, PyTree, dict[str, PyTree]]
ByNumber = Layer[tuple[PyTree, ...], PyTree, PyTree, tuple[PyTree, ...]]
"""Compositions of as many layers as their signature does not tell apart."""

Names = tuple[str, ...]
Begin = Callable[[Array, PyTree], tuple[PyTree, PyTree]]
Sweeps = tuple[Callable[..., PyTree], Callable[..., PyTree], Callable[..., PyTree]]
Turn = Callable[[PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]
"""Of a loop backwards: `(dy, slice) -> (dparams, dx, data's)`."""


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

    def together(self, values: Iterable[PyTree]) -> PyTree:
        """One entry for each part."""
        return dict(zip(self.names, values, strict=True)) if self.names else tuple(values)

    def apart(self, who: str, given: PyTree, what: str = "params") -> tuple[PyTree, ...]:
        """The entries in the order of the layers; `ValueError` unless there is one for each.

        A cotangent that is `None` as a whole is `None` for each.
        """
        if given is None and what == "dy":
            return (None,) * len(self.layers)
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

    @property
    def is_stateful(self) -> bool:
        return any(layer.begin is not None for layer in self.layers)

    def stateful(self, begin: Begin) -> tuple[Callable[[Array, PyTree], PyTree], Begin | None]:
        """Init and, where a part has state, begin, of a `begin` that gives params and state."""
        return lambda key, x: begin(key, x)[0], begin if self.is_stateful else None

    def given(self, who: str, x: PyTree) -> tuple[PyTree, list[With]]:
        """The value of an input, and what each part has beside it."""
        x, beside = without(who, self.is_stateful, x)
        states = self.apart(who, beside.state, "state") if self.is_stateful else ((),) * len(self.layers)
        return x, [beside._replace(state=state) for state in states]

    def side_by_side(
        self, who: str, each: Callable[[PyTree], PyTree], joined: Callable[[PyTree], PyTree]
    ) -> tuple[Sweeps, Begin | None]:
        """Init, forward and backward, and begin, of the layers, none of which reads another's output.

        Args:
          who: what error messages call the composition.
          each: of the input, what each layer is given.
          joined: of the layers' dx, the input's.
        """

        def begin_all(key, x):
            x, beside = at_the_start(x)
            keys = jax.random.split(key, len(self.layers))
            started = [begun(f, k, x_i, beside) for f, k, x_i in zip(self.layers, keys, each(x), strict=True)]
            return tuple(map(self.together, zip(*started, strict=True)))

        def forward(params, x):
            x, beside = self.given(who, x)
            y, caches, states = zip(*map(run, self.layers, self.apart(who, params), each(x), beside), strict=True)
            return given_state(self.is_stateful, self.together(y), self.together(states)), self.together(caches)

        def backward(params, caches, dy):
            dy, data = of_value(self.is_stateful, dy)
            given = (self.apart(who, v, what) for v, what in ((params, "params"), (caches, "cache"), (dy, "dy")))
            dparams, dx, of_data = zip(*map(partial(pull, data), self.layers, *given), strict=True)
            return self.together(dparams), as_input(self.is_stateful, joined(dx), added(*of_data))

        init, begin = self.stateful(begin_all)
        return (init, forward, backward), begin


def without(who: str, is_stateful: bool, x: PyTree) -> tuple[PyTree, With]:
    """An input's value and what stands beside it: nothing for a layer that has no state."""
    if not is_stateful:
        return x, With(None)
    if not isinstance(x, With):
        raise TypeError(f"{who}: x is {described(x)}, expected bpref.With(x, state), since a layer in it has state")
    return x.x, x


def at_the_start(x: PyTree) -> tuple[PyTree, With]:
    """An input's value, where there is no state yet, and the data beside it."""
    return (x.x, x) if isinstance(x, With) else (x, With(None))


def begun(layer: Layer, key: Array, x: PyTree, beside: With) -> tuple[PyTree, PyTree]:
    """The params of a part and its state, `()` where it has none."""
    return (layer.init(key, x), ()) if layer.begin is None else layer.begin(key, beside._replace(x=x))


def run(layer: Layer, params: PyTree, x: PyTree, beside: With) -> tuple[PyTree, PyTree, PyTree]:
    """The output of a part, its cache, and its next state."""
    if layer.begin is None:
        return *layer.forward(params, x), ()
    (y, state), cache = layer.forward(params, beside._replace(x=x))
    return y, cache, state


def pull(data: PyTree, layer: Layer, params: PyTree, cache: PyTree, dy: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """The cotangents of a part's params, of its input and of the data; its state has none."""
    if layer.begin is None:
        return *layer.backward(params, cache, dy), None
    dparams, dx = layer.backward(params, cache, (dy, data))
    return (dparams, None, None) if dx is None else (dparams, dx.x, dx.data)


def pull_each(
    turn: Turn, dy: PyTree, slices: PyTree, length: int, data: PyTree, renews: bool = False
) -> tuple[PyTree, PyTree, PyTree]:
    """A loop backwards: a turn's dx is the next one's dy, what it gives for the data is added up.

    The sum is in at least float32, and rounded once. Slices are pairs of params and the rest; of a layer that renews
    its params they are written over.
    """

    def add(carry, one):
        dy, total = carry
        dparams, dx, of_data = turn(dy, one)
        return (with_zeros(dx, dy), added(total, jax.tree.map(widen, of_data))), dparams

    one = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), slices)
    dy, each = _carried(turn, dy, one) if data or has_none(dy) else (dy, None)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, wide_dtype(v.dtype)), each)
    loop = (
        _in_place if renews and is_like(jax.eval_shape(turn, dy, one)[0], one[0]) else partial(loops.scan, reverse=True)
    )
    (dx, total), dparams = loop(add, (dy, zeros), slices, length)
    return dparams, dx, jax.tree.map(lambda d, v: cast(d, v.dtype), total, each)


def is_like(dparams: PyTree, params: PyTree) -> bool:
    """Whether all in dparams that is not `None` has the place, shape and dtype of something in params."""
    try:
        parts = _where(dparams, params)
        same = jax.tree.map(lambda d, p: is_array(p) and (d.shape, d.dtype) == (p.shape, p.dtype), dparams, parts)
    except ValueError:
        return False
    return all(jax.tree.leaves(same))


def _where(dparams: PyTree, params: PyTree) -> PyTree:
    """Params, `None` where dparams are."""
    return jax.tree.map(lambda d, p: None if d is None else p, dparams, params, is_leaf=lambda d: d is None)


def _in_place(add: Callable[..., PyTree], start: PyTree, slices: PyTree, length: int) -> tuple[PyTree, PyTree]:
    """`loops.scan` backwards, in which dparams are written over params, turn by turn.

    What a turn reads comes with the carry, out of the stack into which the turn before has written: XLA then needs no
    copy of it, as it does where a slice could be read again after its place is written.
    """
    params, rest = slices

    def entry(stack, i):
        return jax.tree.map(lambda v: lax.dynamic_index_in_dim(v, i, 0, keepdims=False), stack)

    def filled(own, kept):
        return jax.tree.map(lambda d, p: p if d is None else d, own, kept, is_leaf=lambda d: d is None)

    def write(carry, one):
        (carry, stack, own), (i, rest) = carry, one
        carry, dparams = add(carry, (filled(own, entry(params, i)), rest))
        stack = jax.tree.map(lambda v, d: lax.dynamic_update_index_in_dim(v, d, i, 0), stack, dparams)
        return (carry, stack, entry(stack, jnp.maximum(i - 1, 0))), None

    one = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), slices)
    stack = _where(jax.eval_shape(add, start, one)[1], params)
    (carry, stack, _), _ = loops.scan(
        write, (start, stack, entry(stack, length - 1)), (jnp.arange(length), rest), length, reverse=True
    )
    return carry, stack


def _carried(turn: Turn, dy: PyTree, one: PyTree) -> tuple[PyTree, PyTree]:
    """dy, zeros in it where it is `None` at first and not after some turns; and what a turn gives for the data."""
    while True:
        _, dx, of_data = jax.eval_shape(turn, dy, one)
        filled = with_zeros(dy, with_zeros(dx, dy))
        if jax.tree.structure(filled) == jax.tree.structure(dy):
            return dy, of_data
        dy = filled


def given_state(is_stateful: bool, y: PyTree, state: PyTree) -> PyTree:
    """An output, and beside it the next state of a layer that has one."""
    return (y, state) if is_stateful else y


def of_value(is_stateful: bool, dy: PyTree) -> tuple[PyTree, PyTree]:
    """The cotangent of an output's value, and the data that the forward was given."""
    return dy if is_stateful else (dy, None)


def as_input(is_stateful: bool, dx: PyTree, of_data: PyTree = None) -> PyTree:
    """The cotangent of an input, given its value's and its data's."""
    return With(dx, None, of_data) if is_stateful else dx


def parts_of(who: str, layers: tuple[Layer, ...], named: dict[str, Layer], called: Names = ()) -> Parts:
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


def added(*cotangents: PyTree) -> PyTree:
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
