"""watch: what goes forward and back through every leaf, in numbers, beside the gradient, in one sweep.

Of a leaf's output y and of its cotangent dy, over the n numbers in them, those that are finite in all but the count:

    mean = 1/n sum y      spread = sqrt(1/n sum (y - mean)^2)      zeros = share of y = 0      largest = max |y|

A network dies in one of two ways, and both are seen where they begin: something is no longer finite, or all of it is
zero, behind which nothing is learnt. `where_it_dies` names the first leaf of the forward whose output is so, and, where
none is, the first of the backward whose cotangent is.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from bpref.apart import sealed
from bpref.compose.parts import Parts
from bpref.cotangents import is_differentiable
from bpref.dtypes import described, widen
from bpref.layer import Layer, require_layer


class Statistics(NamedTuple):
    """Of the floating-point numbers of a tree; each `()`, with an axis for the turns in front inside of `scan`.

    Attributes:
      mean, spread: of those that are finite.
      zeros: the share of zeros in all; 0 of a single number, which may well be 0, as a loss.
      not_finite: how many are NaN or infinite.
      largest: the largest |.| of those that are finite.
      numbers: how many there are in all.
    """

    mean: Array
    spread: Array
    zeros: Array
    not_finite: Array
    largest: Array
    numbers: Array


class Watched(NamedTuple):
    """What `watch` puts in the place of a leaf's dparams.

    Attributes:
      dparams: these.
      output, cotangent: of y, and of dy; `None` where there is no floating-point number, or y is not used.
    """

    dparams: PyTree
    output: Statistics | None
    cotangent: Statistics | None


Order = tuple[int | None, ...]
"""Of a leaf in the forward: the number of the part at every level, and None for that of a turn."""

REPEATING = ("scan", "reversible")
"""What runs its parts several times, their statistics having an axis for the turns."""


class WatchCache(NamedTuple):
    leaf: PyTree
    output: Statistics | None


def watch(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: dparams of a leaf come as `Watched`, beside its statistics.

    `statistics_by_path` names them, and `unwatched` is the gradient.

    Example:
      >>> _, watched, _ = bpref.backpropagate(bpref.map_leaves(bpref.watch, J), params, (X, y))
      >>> dparams = bpref.unwatched(watched)
      >>> bpref.statistics_by_path(J, watched)["0 linear"].output.spread.shape
      ()

    Raises:
      TypeError: `leaf` is no Layer.
    """
    require_layer("watch", "leaf", leaf)
    beside = leaf.begin is not None

    def forward(params, x):
        y, cache = leaf.forward(params, x)
        return y, WatchCache(cache, statistics(y[0] if beside else y))

    def backward(params, cache, dy):
        dparams, dx = leaf.backward(params, cache.leaf, dy)
        return Watched(dparams, cache.output, statistics(dy[0] if beside else dy)), dx

    return sealed("watch", leaf, watch, forward=forward, backward=backward)


def statistics(tree: PyTree) -> Statistics | None:
    """Of all floating-point numbers of a tree together; `None` where there is none."""
    numbers = [jnp.abs(v) if jnp.iscomplexobj(v) else widen(v) for v in jax.tree.leaves(tree) if is_differentiable(v)]
    numbers = [v.reshape(-1) for v in numbers if v.size]
    if not numbers:
        return None
    dtype = jnp.result_type(*numbers)
    count = sum(v.size for v in numbers)

    def total(f):
        return sum(jnp.sum(f(v).astype(dtype)) for v in numbers)

    finite = jnp.maximum(total(jnp.isfinite), 1)
    mean = total(lambda v: jnp.where(jnp.isfinite(v), v, 0)) / finite
    squares = total(lambda v: jnp.where(jnp.isfinite(v), (v - mean.astype(v.dtype)) ** 2, 0))
    zeros = jnp.asarray(total(lambda v: (v == 0) & (count > 1)) / count)
    not_finite = jnp.asarray(sum(jnp.sum(~jnp.isfinite(v)) for v in numbers))
    largest = [jnp.max(jnp.where(jnp.isfinite(v), jnp.abs(v), 0)).astype(dtype) for v in numbers]
    spread, largest = jnp.sqrt(squares / finite), jnp.max(jnp.stack(largest))
    return Statistics(mean, spread, zeros, not_finite, largest, jnp.asarray(count))


def unwatched(watched: PyTree) -> PyTree:
    """dparams, without the statistics beside them.

    Example:
      >>> _, watched, _ = bpref.backpropagate(bpref.map_leaves(bpref.watch, J), params, (X, y))
      >>> jax.tree.structure(bpref.unwatched(watched)) == jax.tree.structure(params)
      True
    """
    return jax.tree.map(lambda v: v.dparams if _is_watched(v) else v, watched, is_leaf=_is_watched)


def statistics_by_path(layer: Layer, watched: PyTree) -> dict[str, Watched]:
    """What was watched at each leaf, in the order of the forward, by its path and name as in `leaf_paths`.

    Args:
      layer: the network, watched or not.
      watched: the dparams of the backward.

    Example:
      >>> watched = bpref.map_leaves(bpref.watch, J)
      >>> _, statistics, _ = bpref.backpropagate(watched, params, (X, y))
      >>> list(bpref.statistics_by_path(J, statistics))
      ['0 linear', '1 softmax_cross_entropy']

    Raises:
      TypeError, ValueError: `layer` is no Layer, or `watched` not what its leaves, each `watch`, give.
    """
    require_layer("statistics_by_path", "layer", layer)
    return {_called(path, leaf): v for path, leaf, _, v in _each(layer, watched, (), ())}


def where_it_dies(layer: Layer, watched: PyTree) -> str | None:
    """The first leaf at which all is zero or something not finite, in words; `None` where there is none.

    A single number that is zero, as a penalty that nothing has been added to, is no dead layer.

    Outputs are looked at first, in the order of the forward, then cotangents, in that of the backward; inside of `scan`
    turn by turn. It reads numbers, and so cannot be used under jit.

    Args:
      layer, watched: as of `statistics_by_path`.

    Example:
      >>> J = bpref.objective(bpref.serial(bpref.linear(3), bpref.relu()), bpref.softmax_cross_entropy())
      >>> params = jax.tree.map(lambda v: v - 100, J.init(jax.random.key(0), (abs(X), y)))
      >>> _, watched, _ = bpref.backpropagate(bpref.map_leaves(bpref.watch, J), params, (abs(X), y))
      >>> bpref.where_it_dies(J, watched)
      'the output of 0.1 relu is all zeros'

    Raises:
      TypeError, ValueError: as of `statistics_by_path`.
    """
    require_layer("where_it_dies", "layer", layer)
    each = list(_each(layer, watched, (), ()))
    for what, first in (("output", min), ("cotangent", max)):
        found = [at for path, leaf, order, v in each for at in _dead(_called(path, leaf), order, getattr(v, what))]
        if found:
            return f"the {what} of {first(found)[1]}"
    return None


def _dead(name: str, order: Order, s: Statistics | None) -> Iterator[tuple[tuple[int, ...], str]]:
    """Where in the forward a leaf is dead, in each turn for itself, and what is wrong there."""
    if s is None:
        return
    not_finite, zeros, numbers = map(np.asarray, (s.not_finite, s.zeros, s.numbers))
    for turn in np.argwhere((not_finite > 0) | ((zeros == 1) & (numbers > 1))).tolist():
        count, turns = int(not_finite[tuple(turn)]), iter(turn)
        where = f", in turn {', '.join(map(str, turn))}" if turn else ""
        place = tuple(next(turns) if step is None else step for step in order)
        yield place, f"{name} {f'has {count} not finite' if count else 'is all zeros'}{where}"


def _called(path: tuple[str, ...], leaf: Layer) -> str:
    return " ".join(filter(None, (".".join(path), leaf.name)))


def _each(
    layer: Layer, watched: PyTree, path: tuple[str, ...], order: Order
) -> Iterator[tuple[tuple[str, ...], Layer, Order, Watched]]:
    """Every leaf in the order of the forward: its path, itself, where it stands in that order, what was watched."""
    if layer.rebuild is None:
        if not _is_watched(watched):
            raise TypeError(f"watched at {_called(path, layer)} is {described(watched)}, expected a Watched")
        yield path, layer, order, watched
        return
    if layer.name in REPEATING:
        order = (*order, None)
    names = layer.names or tuple(map(str, range(len(layer.parts))))
    entries = Parts(layer.parts, layer.names).apart("watched", watched, "it") if layer.names != ("",) else (watched,)
    for i, (name, part, own) in enumerate(zip(names, layer.parts, entries, strict=True)):
        yield from _each(part, own, (*path, name) if name else path, (*order, i))


def _is_watched(v: object) -> bool:
    return isinstance(v, Watched)
