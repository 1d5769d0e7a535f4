"""cache_choices: what can be done with the caches of a composition, part by part; `fit_memory` says why."""

import math
from bisect import bisect_right
from functools import partial
from operator import itemgetter
from typing import NamedTuple, TypeVar

import jax
from jaxtyping import PyTree

from bpref.compose.flops import flops
from bpref.compose.offload import offload
from bpref.compose.parts import Parts, run
from bpref.compose.remat import remat
from bpref.compose.segments import Span, segments
from bpref.compose.shared import no_state
from bpref.layer import Layer, With

MOST = 200
"""How many series are grown on; of more, so many are taken evenly, in the order of the bytes that they keep."""


O = TypeVar("O", bound=tuple)


class Choice(NamedTuple):
    """What becomes of the cache of one layer.

    Attributes:
      path: where it is in the network, and its name, as in `leaf_paths`.
      how: "keep", "recompute" or "offload".
      bytes: what it keeps on the device until its backward; of a scan, of all turns.
      cost: the flops that this takes in addition.
    """

    path: str
    how: str
    bytes: int
    cost: float


class Option(NamedTuple):
    """A series of choices: what it keeps, what it takes at most, and costs; whether all is as it was; its layers."""

    kept: int
    peak: int
    cost: float
    as_is: bool
    layers: tuple[Layer, ...]
    choices: tuple[Choice, ...]
    runs: tuple[Span, ...] = ()


class Given(NamedTuple):
    """What a layer is given in the forward, as specifications."""

    params: PyTree
    x: PyTree
    beside: With


Member = tuple[str, Layer, Given]
"""One of the layers of a series: its name, itself, and what it is given."""


class Terms(NamedTuple):
    """Flops in the time of a byte, `None` where nothing is offloaded; the bytes that there are; whether in a loop."""

    rate: float | None
    most: float
    in_loop: bool = False


def _shapes(layer: Layer, given: Given) -> tuple[PyTree, int]:
    """A layer's output, and the bytes of its cache."""
    y, cache, _ = jax.eval_shape(partial(run, layer), *given)
    return y, _bytes(cache)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(v.shape) * v.dtype.itemsize for v in jax.tree.leaves(tree))


def _rebuilt(layer: Layer, o: Option, *before: Layer) -> Layer:
    """The composition, of an option's layers."""
    assert layer.rebuild is not None
    return layer.rebuild(*before, *o.layers)


def _called(path: tuple[str, ...], layer: Layer) -> str:
    return " ".join(filter(None, (".".join(path), layer.name)))


def options_of(layer: Layer, given: Given, path: tuple[str, ...], terms: Terms) -> list[Option]:
    """What can be done with a layer within so many bytes, none of which another is better than in all respects."""
    called, (_, cache) = _called(path, layer), _shapes(layer, given)

    def whole(how, new, kept, peak, cost=0.0):
        return Option(kept, peak, cost, new is layer, (new,), (Choice(called, how, kept, cost),))

    if layer.parts and layer.name == "remat":
        return _best([whole("recompute", layer, cache, cache + _shapes(layer.parts[0], given)[1])], terms.most)
    if layer.parts and layer.name == "offload":
        return _best([whole("offload", layer, 0, cache)], terms.most)
    if layer.parts and layer.name in _INSIDE:
        options = _INSIDE[layer.name](layer, given, path, terms)
    else:
        options = [whole("keep", layer, cache, cache)]
    for same in [o for o in options if o.as_is]:
        again = remat(layer, apart=not terms.in_loop)
        x = _shapes(again, given)[1]
        if x < same.kept:
            options.append(whole("recompute", again, x, x + same.peak, flops(partial(run, layer), *given)))
        if terms.rate is not None and terms.in_loop and cache:
            options.append(whole("offload", offload(layer), 0, same.peak, 2 * cache * terms.rate))
    return _best(options, terms.most)


def _best(options: list[O], most: float) -> list[O]:
    """Those of (kept, peak, cost, as_is, ...) within the bytes that no other is better than, about `MOST` at most."""
    front: list[O] = []
    stairs: list[tuple[int, float]] = []  # of those that keep no more: bytes at a time, the least cost within these
    for o in sorted((o for o in options if o[1] <= most), key=itemgetter(0, 1, 2)):
        peak, cost = o[1:3]
        at = bisect_right(stairs, (peak, math.inf))
        if at and stairs[at - 1][1] <= cost:
            continue
        front.append(o)
        beyond = next((j for j in range(at, len(stairs)) if stairs[j][1] < cost), len(stairs))
        stairs[at:beyond] = [(peak, cost)]
    chosen = front[:: -(-len(front) // MOST) or 1]
    ends = [min(front, key=itemgetter(k)) for k in (1, 2) if front]
    same = [o for o in options if o[3] and o[1] <= most]
    return chosen + [o for i, o in enumerate(ends + same) if not any(o is c for c in chosen + (ends + same)[:i])]


def _then(s: Option, o: Option, start: int) -> Option:
    """The series, and behind it that of the layers from number `start` on."""
    runs = (*s.runs, *((start, start + len(o.layers)) for _ in o.layers[1:2]))
    kept, peak, cost = s.kept + o.kept, max(s.peak, s.kept + o.peak), s.cost + o.cost
    return Option(kept, peak, cost, s.as_is and o.as_is, s.layers + o.layers, s.choices + o.choices, runs)


def _in_series(path: tuple[str, ...], parts: list[Member], terms: Terms, runs: bool) -> list[Option]:
    """Of layers one after the other, given as (name, layer, what it is given); `runs` of them made again or not."""
    works = [flops(partial(run, layer), *given) for _, layer, given in parts]
    ends, same = [[Option(0, 0, 0, True, (), ())]], []
    for j, (name, layer, given) in enumerate(parts):
        own = options_of(layer, given, (*path, name), terms)
        same.append(next((o for o in own if o.as_is), None))
        new = [(j, o) for o in own] + (_runs(path, parts[: j + 1], same, works, terms) if runs else [])
        grown = [
            (s.kept + o.kept, max(s.peak, s.kept + o.peak), s.cost + o.cost, s.as_is and o.as_is, s, o, i)
            for i, o in new
            for s in ends[i]
        ]
        ends.append([_then(s, o, i) for *_, s, o, i in _best(grown, terms.most)])
    return ends[-1]


def _runs(
    path: tuple[str, ...], parts: list[Member], same: list[Option | None], works: list[int], terms: Terms
) -> list[tuple[int, Option]]:
    """All runs of at least two layers, made again, that end with the last of the parts, by the number of the first."""
    found, kept, peak, work, state = [], 0, 0, 0, 0
    for i in reversed(range(len(parts))):
        name, layer, given = parts[i]
        if (own := same[i]) is None:
            break
        kept, peak, work = own.kept + kept, max(own.peak, own.kept + peak), works[i] + work
        state += _bytes(given.beside.state) if layer.begin is not None else 0
        x = _bytes(given.x) + state
        if i < len(parts) - 1 and x < kept and x + peak <= terms.most:
            last = _called((*path, parts[-1][0]), parts[-1][1])
            choice = Choice(f"{_called((*path, name), layer)} to {last}", "recompute", x, work)
            layers = tuple(layer for _, layer, _ in parts[i:])
            found.append((i, Option(x, x + peak, work, False, layers, (choice,))))
    return found


def _serial(layer: Layer, given: Given, path: tuple[str, ...], terms: Terms) -> list[Option]:
    parts, x = Parts(layer.parts, layer.names), given.x
    _, beside = parts.given("serial", given.beside._replace(x=x) if parts.is_stateful else x)

    def each():
        x = given.x
        names = parts.names or map(str, range(len(parts.layers)))
        for name, part, p, own in zip(names, parts.layers, parts.apart("serial", given.params), beside, strict=True):
            yield name, part, Given(p, x, own._replace(x=None))
            x, _ = _shapes(part, Given(p, x, own._replace(x=None)))

    found = _in_series(path, list(each()), terms, runs=True)
    return [
        o._replace(
            layers=(
                segments(Parts(o.layers, parts.names), o.runs, not terms.in_loop) if o.runs else _rebuilt(layer, o),
            ),
            runs=(),
        )
        for o in found
    ]


def _objective(layer: Layer, given: Given, path: tuple[str, ...], terms: Terms) -> list[Option]:
    parts = Parts(layer.parts, layer.names)
    (X, y), (of_X, of_y) = parts.given("objective", given.beside._replace(x=given.x) if parts.is_stateful else given.x)
    p, q = parts.apart("objective", given.params)
    first = Given(p, X, of_X._replace(x=None))
    y_hat, _ = _shapes(layer.parts[0], first)
    second = Given(q, (y_hat, *y) if type(y) is tuple and len(y) > 1 else (y_hat, y), of_y._replace(x=None))
    names = parts.names or ("0", "1")
    found = _in_series(path, list(zip(names, parts.layers, (first, second), strict=True)), terms, runs=False)
    return [o._replace(layers=(_rebuilt(layer, o),)) for o in found]


def _shared(layer: Layer, given: Given, path: tuple[str, ...], terms: Terms) -> list[Option]:
    owner, network = layer.parts
    values, own = (given.params[name] for name in layer.names)
    state = given.beside.state["network"] if layer.begin is not None else no_state(network)
    beside = With(None, state, {**(given.beside.data or {}), **values})
    inside = options_of(network, Given(own, given.x, beside), (*path, "network"), terms)
    return [o._replace(layers=(_rebuilt(layer, o, owner),)) for o in inside]


def _around(layer: Layer, given: Given, path: tuple[str, ...], terms: Terms) -> list[Option]:
    """Of what stands around one layer, which is given x as it is or in another layout: what that is, a run tells."""
    inner, seen = layer.parts[0], []

    def forward(params, x):
        seen.append(jax.eval_shape(lambda x: x, x))
        return inner.forward(params, x)

    assert layer.rebuild is not None
    _shapes(layer.rebuild(inner._replace(forward=forward)), given)
    x = seen[0].x if inner.begin is not None else seen[0]
    inside = options_of(inner, given._replace(x=x), path, terms)
    return [o._replace(layers=(_rebuilt(layer, o),)) for o in inside]


def _scan(layer: Layer, given: Given, path: tuple[str, ...], terms: Terms) -> list[Option]:
    stacked = given.params, given.beside.state
    lengths = {v.shape[0] for v in jax.tree.leaves(stacked)}
    if not lengths:  # of nothing with params it cannot be told
        return [
            Option((c := _shapes(layer, given)[1]), c, 0, True, (layer,), (Choice(_called(path, layer), "keep", c, 0),))
        ]
    (L,) = lengths
    p, state = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), stacked)
    turn = Given(p, given.x, given.beside._replace(state=state))

    def of_all(o):
        choices = tuple(c._replace(bytes=L * c.bytes, cost=L * c.cost) for c in o.choices)
        kept = L * o.kept
        return Option(kept, kept - o.kept + o.peak, L * o.cost, o.as_is, (_rebuilt(layer, o),), choices)

    return [of_all(o) for o in options_of(layer.parts[0], turn, path, terms._replace(in_loop=True))]


_INSIDE = {
    **{"serial": _serial, "objective": _objective, "shared": _shared, "scan": _scan},
    **dict.fromkeys(("residual", "channels_first", "unbatched"), _around),
}
"""The compositions that are looked into."""
