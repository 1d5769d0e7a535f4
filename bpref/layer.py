"""The one abstraction: a layer is a forward and its hand-derived backward, as pure functions.

    init     (key, x)            -> params
    forward  (params, x)         -> (y, cache)
    backward (params, cache, dy) -> (dparams, dx)

`params`, `x`, `y` and `cache` are pytrees of arrays; `dV` is the derivative of the objective J with respect
to V and has V's tree, shapes and dtypes, with `None` where V is not differentiable (integers, PRNG keys,
running statistics), or where it is zero since nothing that V reaches is used. Combinators take layers and return
a layer, and never look into `dparams`: whatever a leaf puts there, one reverse sweep carries to its place.
`map_leaves` is how a sweep is made to carry something other than the gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Generic, NamedTuple, NoReturn, Optional, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.checks.given import guarded
from bpref.cotangents import Root, require_cotangent, with_zeros
from bpref.dtypes import described

if TYPE_CHECKING:

    class Reals(Array):
        """What layers put out: real numbers, and so no indices. A type checker alone knows it."""

        __index__: None  # pyright: ignore[reportIncompatibleMethodOverride]
else:
    Reals = Array

P = TypeVar("P")
X = TypeVar("X", contravariant=True)
Y = TypeVar("Y", covariant=True)
C = TypeVar("C")

State = dict[str, Array]
"""What a leaf holds and does not train, by name: PRNG keys, running statistics, vectors of an iteration."""


class With(NamedTuple):
    """What a stateful layer is given: a value, the state beside it, and what comes with the data.

    Attributes:
      x: the value; of a cotangent, the value's.
      state: one entry for each part of a composition, `()` where a part has none; a constant for the adjoint.
      data: segments, masks and the like by name, for whatever layer in the composition reads them, and in `shared` the
        arrays that it shares; of a cotangent, these arrays', and `None` for all that is constant.
    """

    x: PyTree
    state: PyTree = ()
    data: PyTree = ()


class Held(NamedTuple):
    """What a leaf's params hold and what is not trained: PRNG keys, running statistics, vectors of an iteration.

    Attributes:
      fields: the names of those fields of params.
      before: `(held) -> held`, both dicts by these names: what a forward uses of the state.
      after: `(held, params, cache) -> held`: the state at the next step, of the params and the cache of this one.
      whole: `(params, data) -> params`: those that `after` is given, with what the leaf reads of the data.
      into: `(x, held) -> x`, of a leaf that reads a PRNG key in its input, and none in its params.
    """

    fields: tuple[str, ...]
    before: Callable[[State], State] = lambda held: held
    after: Callable[[State, PyTree, PyTree], State] = lambda held, params, cache: held
    whole: Callable[[PyTree, PyTree], PyTree] = lambda params, data: params
    into: Callable[[PyTree, State], PyTree] | None = None


class _Layer(NamedTuple, Generic[P, X, Y, C]):
    init: Callable[[Array, PyTree], P]
    forward: Callable[[P, X], tuple[Y, C]]
    backward: Callable[[P, C, PyTree], tuple[PyTree, PyTree]]
    name: str
    parts: tuple["Layer", ...] = ()
    rebuild: Optional[Callable[..., "Layer"]] = None
    names: tuple[str, ...] = ()
    begin: Optional[Callable[[Array, PyTree], tuple[PyTree, PyTree]]] = None
    held: Held | None = None
    evaluating: Optional["Layer"] = None
    reads: tuple[str, ...] = ()
    couples: str = ""
    decoding: Optional[Callable[["Layer", int], "Layer"]] = None
    renews: bool = False
    root: Root | None = None
    opened: Optional[Callable[[P, C, PyTree], tuple[PyTree, PyTree]]] = None
    sealed: str = ""


class Layer(_Layer[P, X, Y, C]):
    """A forward, its backward, and what is needed to build and to rebuild them.

    `Layer[P, X, Y, C]` says of what types params, x, y and the cache are: `Layer[LinearParams, Array, Reals,
    LinearCache]`. What takes indices has `SupportsIndex` for X, which `Reals` are not.

    Attributes:
      init: `(key, x) -> params`; `x` is an array, a `jax.ShapeDtypeStruct`, or a pytree of them.
      forward: `(params, x) -> (y, cache)`; the cache holds what the derivation says must be kept, and no
        parameters: those are given to `backward` again. Raises `TypeError` for params of another tree than `init`
        gives for this x.
      backward: `(params, cache, dy) -> (dparams, dx)`. In dy `None` stands for the cotangent of an output that is not
        used, or of a whole tree of them. Where none is used a leaf's function is not called: dparams are zeros, dx is
        `None`.
      name: what error messages and reports call this layer.
      parts: the layers that a combinator was made of; empty for a leaf.
      rebuild: `(*parts) -> Layer`, the combinator that made it; `None` for a leaf.
      names: what params, a dict, call each part, or `""` for a part whose params are the layer's own; empty where they
        are a tuple in the order of the parts.
      begin: of a layer with state, or that reads data, `(key, x) -> (params, state)`, x the plain input or `With` the
        data beside it; its forward takes `With(x, state, data)` and gives the pair `(y, the next state)`, its backward
        takes `(dy, data)`, the same data, and gives `With(dx, None, those of data)`. Else `None`.
      held: of a leaf, what its params hold that is not trained.
      evaluating: of a leaf, what it is in evaluation, with the same params; `None` where that is itself.
      reads: what it or a part of it reads beside x: names of data, and "state".
      couples: of a leaf that gives an example of the batch something else beside other examples, what it takes of all
        of them, such as "the mean and variance".
      decoding: of a leaf, `(leaf, length) -> Layer`, what it is when its positions, at most `length` of them, come one
        chunk after another; `each_position` of one that mixes none, `None` of one that cannot.
      renews: whether a leaf of it puts in the place of dparams what its params, or some of them, are to be from then
        on, and `None` for the others: `scan` writes them over the old ones then.
      root: of a loss, the square root of its Hessian, a `bpref.cotangents.Root`; `None` where none is known.
      opened: of a leaf with products of matrices inside, its backward with `bpref.cotangents.Product` in the place
        of each dW, and `Total` of each db: what they are made of. `None` of other leaves.
      sealed: of a leaf, why `stateful` and `shared` cannot take its params apart (`bpref.apart`); empty where they can.
    """

    __slots__ = ()

    def __new__(
        cls,
        init: Callable[..., PyTree],
        forward: Callable[..., PyTree],
        backward: Callable[..., PyTree],
        name: str,
        parts: tuple["Layer", ...] = (),
        rebuild: Optional[Callable[..., "Layer"]] = None,
        names: tuple[str, ...] = (),
        begin: Optional[Callable[[Array, PyTree], tuple[PyTree, PyTree]]] = None,
        held: Held | None = None,
        evaluating: Optional["Layer"] = None,
        reads: tuple[str, ...] | None = None,
        couples: str = "",
        decoding: Optional[Callable[["Layer", int], "Layer"]] = None,
        renews: bool = False,
        root: Root | None = None,
        opened: Optional[Callable[[P, C, PyTree], tuple[PyTree, PyTree]]] = None,
        sealed: str = "",
    ) -> "Layer[P, X, Y, C]":
        for what, f in (("init", init), ("forward", forward), ("backward", backward)):
            if not callable(f):
                raise TypeError(f"Layer {name!r}: {what} is {described(f)}, expected a function")
        init, forward, backward = guarded(name, init, forward, backward)
        if not parts:
            backward = where_used(backward, () if held is None else held.fields)
        if reads is None:
            if begin is None:
                require_no_state(name, *parts)
            of_parts = tuple(dict.fromkeys(name for part in parts for name in part.reads))
            reads = ("state",) if begin is not None and not parts else of_parts
        renews = renews or any(part.renews for part in parts)
        own = init, forward, backward, name, parts, rebuild, names, begin, held, evaluating, reads, couples, decoding
        return super().__new__(cls, *own, renews, root, opened, sealed)

    def _replace(self, **fields: object) -> "Layer[P, X, Y, C]":  # pyright: ignore[reportIncompatibleMethodOverride]
        """With these fields; another backward is not opened as this one is."""
        return super()._replace(**({"opened": None} if "backward" in fields else {}) | fields)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError(
            f"{self.name}: a layer is no function; call layer.forward(params, x), which gives (y, cache), or "
            "bpref.as_function(layer)(params, x), which gives y"
        )


def require_layer(who: str, argument: str, layer: object) -> None:
    """Raise `TypeError` unless `layer`, the argument of `who`, is a Layer; a rule's function is none until called."""
    if not isinstance(layer, Layer):
        is_function = isinstance(layer, FunctionType | type)
        came = f"the function {layer.__name__}" if is_function else described(layer)
        raise TypeError(f"{who}: {argument} is {came}, expected a Layer, one that is made, as by linear(64)")


def require_no_state(who: str, *parts: Layer) -> None:
    """Raise `TypeError` if a part of `who`, which gives its parts x alone, looks beside x."""
    for part in parts:
        if part.begin is not None:
            raise TypeError(
                f"{who}: {part.name} in it is stateful, or shares arrays, and {who} gives its parts x alone; "
                "expected layers without, or serial and its like around them"
            )


def where_used(backward: Callable[..., PyTree], untrained: Sequence[str]) -> Callable[..., PyTree]:
    """The backward of a leaf, not called where no output of it is used: then no cotangent is anything but zero."""

    @wraps(backward)
    def pull(params, cache, dy):
        if dy is not None and jax.tree.leaves(dy):
            return backward(params, cache, dy)
        dparams = with_zeros(None, params)
        return (dparams._replace(**dict.fromkeys(untrained)) if untrained else dparams), None

    return pull


def no_params(key: Array, x: PyTree) -> tuple[()]:
    """The `init` of every layer without parameters."""
    return ()


def each_position(leaf: Layer, length: int) -> Layer:
    """The `decoding` of a leaf that takes each position, T of x `(B, T, d)`, for itself: the leaf as it is.

    Example:
      >>> leaf = bpref.tanh()
      >>> bpref.each_position(leaf, 16) is leaf
      True
    """
    return leaf


def map_leaves(f: Callable[[Layer], Layer], layer: Layer) -> Layer:
    """Rebuild `layer` with every leaf replaced by `f(leaf)`, the combinators as they were.

    `f` is called in the order of `leaf_paths`.

    Example:
      >>> network = bpref.serial(bpref.linear(3), bpref.tanh())
      >>> bpref.leaf_paths(bpref.map_leaves(bpref.remat, network))
      ['0 linear', '1 tanh']

    Raises:
      TypeError: `layer` is no Layer, `f` no function, or what it returns for a leaf no Layer.
    """
    require_layer("map_leaves", "layer", layer)
    if not callable(f):
        raise TypeError(f"map_leaves: f is {described(f)}, expected a function of a leaf that returns a Layer")
    if layer.rebuild is None:
        leaf = f(layer)
        require_layer("map_leaves", f"what f returned for the leaf {layer.name}", leaf)
        return leaf
    mapped = {i: map_leaves(f, layer.parts[i]) for i in _in_order(layer)}
    return layer.rebuild(*(mapped[i] for i in range(len(layer.parts))))


def in_evaluation(layer: Layer) -> Layer | None:
    """What a layer is in evaluation, leaf by leaf; `None` where that is itself."""
    if not any(leaf.evaluating for _, leaf in leaves(layer)):
        return None
    return map_leaves(lambda leaf: leaf.evaluating or leaf, layer)


def leaf_paths(layer: Layer) -> list[str]:
    """Where each leaf's parameters stand in those of the whole, and its name, in the order that they have in the tree.

    `1.0 linear` by numbers; `blocks.attention linear` where `serial` and its like were given names.

    Example:
      >>> bpref.leaf_paths(bpref.serial(hidden=bpref.linear(3), act=bpref.tanh()))
      ['act tanh', 'hidden linear']
    """
    require_layer("leaf_paths", "layer", layer)
    return [" ".join(filter(None, (".".join(path), leaf.name))) for path, leaf in leaves(layer)]


def leaves(layer: Layer) -> Iterator[tuple[tuple[str, ...], Layer]]:
    """Each leaf and its path, in the order of their parameters."""
    if layer.rebuild is None:
        yield (), layer
        return
    for i in _in_order(layer):
        name = layer.names[i] if layer.names else str(i)
        for path, leaf in leaves(layer.parts[i]):
            yield (name, *path) if name else path, leaf


def _in_order(layer: Layer) -> Sequence[int]:
    """The parts by number as JAX orders their parameters: a dict's by name."""
    numbers = range(len(layer.parts))
    return sorted(numbers, key=layer.names.__getitem__) if layer.names else numbers


def backpropagate(layer: Layer, params: PyTree, x: PyTree, dy: PyTree = None) -> tuple[PyTree, PyTree, PyTree]:
    """One forward and one backward sweep: `(y, dparams, dx)`.

    Args:
      layer: any layer or composition.
      params: its parameters.
      x: its input; of a stateful layer `With(x, state)`, and what it gives is the pair `(y, the next state)`.
      dy: the cotangent of `y`, of y alone where there is a state; left out, y must be a scalar and `dy` is 1. Of
        several outputs, those that are not used may have `None`, and no work is done for them.

    Example:
      >>> y, _, dx = bpref.backpropagate(bpref.tanh(), (), jnp.zeros(2), jnp.ones(2))
      >>> dx
      Array([1., 1.], dtype=float32)

    Raises:
      ValueError: `dy` is left out and the output is not one scalar; `dy` has another tree or other shapes than `y`.
      TypeError: `layer` is no Layer; `dy` is no array, or of another dtype, where `y` is differentiable.
    """
    require_layer("backpropagate", "layer", layer)
    y, cache = layer.forward(params, x)
    if layer.begin is not None:
        dparams, dx = layer.backward(params, cache, (as_cotangent(layer.name, dy, y[0]), x.data))
        return y, dparams, dx
    dparams, dx = layer.backward(params, cache, as_cotangent(layer.name, dy, y))
    return y, dparams, dx


def as_cotangent(who: str, dy: PyTree, y: PyTree) -> PyTree:
    """`dy`; where it is left out, 1 for a scalar y."""
    if dy is None:
        if jax.tree.structure(y).num_leaves != 1 or jnp.shape(jax.tree.leaves(y)[0]) != ():
            shapes = jax.tree.map(jnp.shape, y)
            raise ValueError(f"{who}: dy is needed, since the output is not a scalar but {shapes}")
        return jax.tree.map(jnp.ones_like, y)
    require_cotangent(who, dy, y)
    return dy


def begin(layer: Layer, key: Array, x: PyTree) -> tuple[PyTree, PyTree]:
    """The params and the state that training begins with; the state of a layer without one is `()`.

    Args:
      layer: any layer or composition.
      key: a PRNG key.
      x: the input, arrays or their specifications; `With` the data beside it where a layer reads some.

    Example:
      >>> network = bpref.serial(bpref.linear(3), bpref.stateful(bpref.dropout(0.5)))
      >>> params, state = bpref.begin(network, jax.random.key(0), X)
      >>> params[0].W.shape
      (3, 2)

    Raises:
      TypeError: `layer` is no Layer.
    """
    require_layer("begin", "layer", layer)
    return (layer.init(key, x), ()) if layer.begin is None else layer.begin(key, x)
