"""shared: one array at several places of a network, as tied embeddings and universal transformers have it.

Forward: y = f(P, W, x), in which every place reads the one W. J changes with W through each of them:

    delta J = sum_i <dW at place i, delta W>,     dW = sum_i dW at place i

W belongs to a leaf of its own, whose output is W. It goes beside x to the places, as data does, and their cotangents of
it come back beside dx, added up on the way. When the sweep has left the network the sum is complete, and that leaf's
backward runs, once: a leaf transformation that puts something else than a gradient in the place of dparams is exact.

Cached: nothing of W. It is given to the backward again, as params are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import jax
from jax import Array
from jaxtyping import PyTree

from bpref.apart import require_parts, taken_apart
from bpref.compose.parts import Parts, added, as_input, at_the_start, begun, given_state, of_value, pull, run, without
from bpref.cotangents import is_differentiable, with_zeros
from bpref.layer import C, Layer, With, X, Y, each_position, leaf_paths, leaves, map_leaves, require_layer
from bpref.naming import name_of


def shared(network: Layer[PyTree, X, Y, C], *places: str | Sequence[str]) -> Layer[dict[str, PyTree], X, Y, C]:
    """The network with one array wherever its params had several.

    `shared(gpt, ("embed.W", "head.W"))` ties the head to the embedding, and `shared(gpt, "blocks")`, of blocks that are
    `scan(block, 8)`, takes one block eight times. Params are `{"shared": ..., "network": ...}`: the shared arrays by
    the first of their paths, and the network's params, `None` where they are shared. They are drawn as the network's.
    `map_leaves` comes after: the network's own leaves must have gradients as dparams.

    Args:
      network: any layer or composition.
      *places: paths that mean the same arrays, or one path, whose arrays are the same in every turn of a scan. They
        are as in `leaf_paths`, with the array's own path after it; one of a leaf or a composition means all in it
        that is trained. Where none is given, all of the network.

    Example:
      >>> network = bpref.shared(bpref.serial(blocks=bpref.scan(bpref.linear(2), 8)), "blocks")
      >>> network.init(jax.random.key(0), X)["shared"]["blocks.W"].shape
      (2, 2)

    Raises:
      TypeError: `network` is no Layer, or places are no paths; a leaf of it is transformed already.
      ValueError: a path is unknown, or shared twice; the shapes or dtypes at the paths do not agree.
    """
    require_layer("shared", "network", network)
    require_parts("shared", network)
    sources = _sources(network, places or ("",))
    every = iter([".".join(path) for path, _ in leaves(network)])
    reading = map_leaves(lambda leaf: _reader(next(every), leaf, sources), network)
    owner = Layer(
        lambda key, x: _drawn(network, sources, key, x),
        lambda params, x: (params, ()),
        lambda params, cache, dy: (dy, ()),
        ", ".join(dict.fromkeys(sources.values())) or "all",
        decoding=each_position,
    )
    return _sharing(owner, reading, frozenset(sources.values()))


def _sharing(owner: Layer, network: Layer, own: frozenset[str]) -> Layer:
    parts = Parts((owner, network), ("shared", "network"))
    outside = tuple(name for name in network.reads if name not in own)
    is_stateful = bool(outside)

    def given(data, of_owner):
        """The data of the network: those of the whole, and what is shared."""
        values, cache = owner.forward(of_owner, ())
        twice = set(values) & set(data or ())
        if twice:
            raise ValueError(f"shared: {', '.join(sorted(twice))} is shared twice, or a name of the data")
        return {**(data or {}), **values}, values, cache

    def begin(key, x):
        of_owner = owner.init(key, x)
        x, beside = at_the_start(x)
        data = jax.eval_shape(lambda p: given(None, p)[0], of_owner)
        of_network, state = begun(network, key, x, beside._replace(data={**(beside.data or {}), **data}))
        return parts.together((of_owner, of_network)), parts.together(((), state))

    def forward(params, x):
        of_owner, of_network = parts.apart("shared", params)
        x, beside = without("shared", is_stateful, x)
        state = parts.apart("shared", beside.state, "state")[1] if is_stateful else no_state(network)
        y, cache, after = run(network, of_network, x, With(None, state, given(beside.data, of_owner)[0]))
        return given_state(is_stateful, y, parts.together(((), after))), cache

    def backward(params, cache, dy):
        of_owner, of_network = parts.apart("shared", params)
        dy, outer = of_value(is_stateful, dy)
        data, values, of_values = given(outer, of_owner)
        dnetwork, dx, of_data = pull(data, network, of_network, cache, dy)
        of_data = of_data or {}
        dvalues = with_zeros({k: of_data.get(k) for k in values}, values)
        downer, _ = owner.backward(of_owner, of_values, dvalues)
        others = {k: d for k, d in of_data.items() if k not in values}
        return parts.together((downer, dnetwork)), as_input(
            is_stateful, dx, others if jax.tree.leaves(others) else None
        )

    return Layer(
        lambda key, x: begin(key, x)[0],
        forward,
        backward,
        "shared",
        parts.layers,
        lambda owner, network: _sharing(owner, network, own),
        parts.names,
        begin if is_stateful else None,
        reads=outside,
    )


def no_state(layer: Layer) -> PyTree:
    """The state of a layer that looks at nothing beside x but shared arrays."""
    if layer.begin is None or not layer.parts:
        return ()
    if layer.names == ("",):
        return no_state(layer.parts[0])
    return Parts(layer.parts, layer.names).together(map(no_state, layer.parts))


def _reader(path: str, leaf: Layer, sources: dict[str, str]) -> Layer:
    """The leaf, what is shared of its params beside x and not in them; itself where nothing is."""
    reads = tuple(source for place, source in sources.items() if _overlap(path, place))
    if not reads:
        return leaf

    def source_of(name):
        return _source_of(_joined(path, name), sources)

    def emptied(params):
        names = {name for name, _ in _trained(leaf, params) if source_of(name) is not None}
        return _replaced(params, lambda name, v: None if name in names else v)

    def filled(params, data):
        return _replaced(params, lambda name, v: data.get(source_of(name)) if v is None else v)

    def begin(key, x):
        x, beside = at_the_start(x)
        params, state = begun(leaf, key, x, beside)
        return emptied(params), state

    def forward(params, x):
        y, cache, after = run(leaf, filled(params, x.data), x.x, x)
        return (y, after), cache

    def backward(params, cache, dy):
        dy, data = dy
        whole = filled(params, data)
        dparams, dx, of_data = pull(data, leaf, whole, cache, dy)
        of_shared = dict.fromkeys(data)
        for name, d in _named(dparams):
            source = source_of(name)
            if source in of_shared and d is not None:
                of_shared[source] = added(of_shared[source], d)
        own = _replaced(dparams, lambda name, d: None if source_of(name) in data else d)
        return own, With(dx, None, added(of_data, of_shared))

    held = None if leaf.held is None else leaf.held._replace(whole=filled)
    of_decoding = leaf.decoding

    def again(leaf):
        return _reader(path, leaf, sources)

    decoding = of_decoding and (lambda _, length: again(of_decoding(leaf, length)))
    reads += leaf.reads
    return taken_apart(leaf, begin, forward, backward, again, held=held, reads=reads, decoding=decoding)


@jax.tree_util.register_dataclass
@dataclass
class _Drawn:
    """A leaf's params, and the ranks of its arrays where it draws them: `scan` puts axes in front."""

    params: PyTree
    ranks: tuple[int, ...] = field(metadata={"static": True})


def _ranked(leaf: Layer) -> Layer:
    """The leaf, whose init says of what rank its arrays are."""

    def ranked(params):
        return _Drawn(params, tuple(v.ndim for v in jax.tree.leaves(params)))

    def begin(key, x):
        x, beside = at_the_start(x)
        params, state = begun(leaf, key, x, beside)
        return ranked(params), state

    return leaf._replace(
        init=lambda key, x: ranked(leaf.init(key, x)),
        forward=lambda params, x: leaf.forward(params.params, x),
        begin=None if leaf.begin is None else begin,
    )


def _drawn(network: Layer, sources: dict[str, str], key: Array, x: PyTree) -> dict[str, Array]:
    """The shared arrays as the network's init draws them, those of the first turn of a scan."""
    x, beside = at_the_start(x)
    params, _ = begun(map_leaves(_ranked, network), key, x, beside)
    arrays = {}
    drawn = jax.tree.leaves(params, is_leaf=lambda v: isinstance(v, _Drawn))
    for (path, leaf), own in zip(leaves(network), drawn, strict=True):
        ranks = iter(own.ranks)
        first = jax.tree.map(lambda v, ranks=ranks: v[(0,) * (v.ndim - next(ranks))], own.params)
        arrays |= {_joined(".".join(path), name): v for name, v in _trained(leaf, first)}
    values = {}
    for place in sources:
        names = [name for name in arrays if _moved(name, place, "") is not None]
        if not names:
            raise ValueError(f"shared: {place!r} is no path of arrays that are trained; there are {', '.join(arrays)}")
        for name in names:
            source = _source_of(name, sources)
            if source not in arrays:
                raise ValueError(f"shared: there is no {source}, which {name} is to be the same as")
            ours, theirs = (f"{v.dtype}{list(v.shape)}" for v in (arrays[name], arrays[source]))
            if ours != theirs:
                raise ValueError(f"shared: {name} is {ours}, {source} is {theirs}; expected the same")
            values[source] = arrays[source]
    return values


def _sources(network: Layer, places: Sequence[str | Sequence[str]]) -> dict[str, str]:
    """For each path that is shared, the first of those that mean the same."""
    groups = [(group,) if isinstance(group, str) else tuple(group) for group in places]
    if not all(isinstance(place, str) for group in groups for place in group):
        raise TypeError(f"shared: places are {places}, expected paths, or tuples of paths that mean the same arrays")
    every = [place for group in groups for place in group]
    for i, place in enumerate(every):
        for other in every[:i]:
            if _overlap(place, other):
                both = "" if place == other else f", as {other!r} is"
                raise ValueError(f"shared: {place!r} is shared twice{both}")
    paths = [".".join(path) for path, _ in leaves(network)]
    for place in every:
        if not any(_overlap(place, path) for path in paths):
            raise ValueError(f"shared: {place!r} is no path; the leaves are {', '.join(leaf_paths(network))}")
    return {place: group[0] for group in groups for place in group}


def _source_of(name: str, sources: dict[str, str]) -> str | None:
    """Where the array of this path is that it shares; `None` where it shares none."""
    return next((s for place, source in sources.items() if (s := _moved(name, place, source)) is not None), None)


def _moved(path: str, start: str, to: str) -> str | None:
    """The path with another start; `None` if it does not start so."""
    if start and path != start and not path.startswith(f"{start}."):
        return None
    return _joined(to, path[len(start) :].removeprefix("."))


def _overlap(a: str, b: str) -> bool:
    """Whether one path is the other's, or leads to it."""
    return _moved(a, b, "") is not None or _moved(b, a, "") is not None


def _joined(path: str, name: str) -> str:
    return ".".join(filter(None, (path, name)))


def _named(tree: PyTree) -> Iterator[tuple[str, Array | None]]:
    """The arrays of a tree, and what is `None` in it, by their paths."""
    for path, v in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda v: v is None)[0]:
        yield name_of(path), v


def _replaced(tree: PyTree, new: Callable[[str, Array | None], PyTree]) -> PyTree:
    """The tree of what `new` gives for each path and array."""
    structure = jax.tree.structure(tree, is_leaf=lambda v: v is None)
    return jax.tree.unflatten(structure, [new(name, v) for name, v in _named(tree)])


def _trained(leaf: Layer, params: PyTree) -> Iterator[tuple[str, Array]]:
    """The arrays of a leaf's params that have a cotangent."""
    held = leaf.held.fields if leaf.held else ()
    for name, v in _named(params):
        if v is not None and is_differentiable(v) and name.split(".")[0] not in held:
            yield name, v
