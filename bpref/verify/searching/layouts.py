"""What a search tries: shapes, dtypes and hyperparameters, few of them, and many values for each."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from bpref.verify.numbers.points import by_zipfs_law
from bpref.verify.searching.specs import ArraySpec, parse_spec, parse_templates

Generator = np.random.Generator

PRIMES = (3, 5, 2, 7, 4, 11, 6, 13, 8, 17)
"""The sizes of the first layout: all different, small, most of them odd."""

SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17, 19, 32, 33)

MOST_ELEMENTS = 5000


class Option(NamedTuple):
    """A value that is not drawn from a shape: one of several."""

    values: tuple[object, ...]


class Strategy(NamedTuple):
    """A value that a Hypothesis strategy draws."""

    strategy: Any


class Template(NamedTuple):
    """The arguments of a search: leaves that are a `ArraySpec`, an `Option`, a `Strategy` or fixed, and their tree."""

    leaves: tuple[object, ...]
    tree: Hashable


class Layout(NamedTuple):
    """Everything about a case but its values; hashable.

    Attributes:
      sizes: of each named axis.
      dtypes: for each set of alternatives, the one that is taken.
      options: for each leaf that is an `Option`, which of its values.
      ones: the `(leaf, axis)` that are broadcast.
    """

    sizes: tuple[tuple[str, int], ...]
    dtypes: tuple[tuple[tuple[str, ...], str], ...] = ()
    options: tuple[tuple[int, int], ...] = ()
    ones: frozenset[tuple[int, int]] = frozenset()


class Drawn(NamedTuple):
    """The values of a case: for each leaf the name of a pattern, the seed of the numbers, and what strategies gave."""

    patterns: tuple[str, ...]
    seed: int
    given: tuple[object, ...] = ()


def as_template(specs: PyTree) -> Template:
    """`specs` as `search` takes them, parsed.

    Raises:
      ValueError: a string that is no specification; an empty set or list to choose from.
      TypeError: `specs` is no tuple, list or string.
    """
    if isinstance(specs, str):
        specs = tuple(s if isinstance(s, ArraySpec) else Option((s,)) for s in parse_templates(specs))
    if not isinstance(specs, tuple | list):
        raise TypeError(f"search: specs is a {type(specs).__name__}, expected a tuple, one entry for each argument")
    flat, tree = jax.tree.flatten(tuple(specs), is_leaf=_is_leaf)
    leaves = tuple(map(_leaf, flat))
    _require_bounds_to_be_axes(leaves)
    return Template(leaves, tree)


def _require_bounds_to_be_axes(leaves: tuple[object, ...]) -> None:
    """Raise `ValueError` if integers are to be below a size that no array has."""
    specs = [
        s for leaf in leaves for s in (leaf.values if isinstance(leaf, Option) else (leaf,)) if isinstance(s, ArraySpec)
    ]
    sizes = dict.fromkeys(axis.name for s in specs for axis in s.axes if axis.name)
    for s in specs:
        if s.below is not None and s.below.name and s.below.name not in sizes:
            known = f"the sizes are {', '.join(sizes)}" if sizes else "there are no named sizes"
            raise ValueError(f"search: {s.text!r}: {s.below.name} is the size of no axis; {known}")


def _is_leaf(v: object) -> bool:
    return isinstance(v, list | set | frozenset | ArraySpec | Option)


def _leaf(v: object) -> object:
    if isinstance(v, str):
        return parse_spec(v)
    if isinstance(v, list | set | frozenset):
        values = tuple(v) if isinstance(v, list) else tuple(sorted(v, key=repr))
        if not values:
            raise ValueError("search: a set or list to choose from is empty")
        return Option(tuple(parse_spec(o) if isinstance(o, str) and "[" in o else o for o in values))
    return Strategy(v) if hasattr(v, "example") and hasattr(v, "flatmap") else v


def spec_of(leaf: object, i: int, layout: Layout) -> object:
    """The leaf as it is in a layout: a `ArraySpec`, or a value."""
    return leaf.values[dict(layout.options)[i]] if isinstance(leaf, Option) else leaf


def layouts(template: Template, rng: Generator) -> Iterator[Layout]:
    """Different layouts, the plainest first: square, of size 1 and 0, turned round, then random; it may not end."""
    seen = set()
    for layout in _proposed(template, rng):
        if layout not in seen and is_possible(template, layout):
            seen.add(layout)
            yield layout


def _proposed(template: Template, rng: Generator) -> Iterator[Layout]:
    specs = [o for leaf in template.leaves for o in (leaf.values if isinstance(leaf, Option) else (leaf,))]
    specs = [spec for spec in specs if isinstance(spec, ArraySpec)]
    names = list(dict.fromkeys(name for spec in specs for name in spec.names))
    dtypes = list(dict.fromkeys(spec.dtypes for spec in specs))
    options = {i: leaf.values for i, leaf in enumerate(template.leaves) if isinstance(leaf, Option)}
    ones = [
        (i, axis)
        for i, leaf in enumerate(template.leaves)
        for spec in (leaf.values if isinstance(leaf, Option) else (leaf,))
        if isinstance(spec, ArraySpec)
        for axis, a in enumerate(spec.axes)
        if a.may_be_one
    ]

    def layout(sizes, dtype=0, option=0, broadcast=()):
        return Layout(
            tuple(zip(names, map(int, sizes), strict=True)),
            tuple((d, d[dtype % len(d)]) for d in dtypes),
            tuple((i, option // (k + 1) % len(values)) for k, (i, values) in enumerate(options.items())),
            frozenset(broadcast),
        )

    plain = [PRIMES[i % len(PRIMES)] for i in range(len(names))]
    yield layout(plain)
    yield from (layout(plain, dtype=i) for i in range(1, max(map(len, dtypes), default=1)))
    every = [range(len(values)) for values in options.values()]
    for choice in list(product(*every))[1:20]:
        yield layout(plain)._replace(options=tuple(zip(options, choice, strict=True)))
    yield from (layout(plain, broadcast=[one]) for one in ones)
    for i, _ in enumerate(names):
        yield layout([1 if j == i else n for j, n in enumerate(plain)])
    yield layout([2] * len(names))
    yield layout([3] * len(names))
    yield layout(sorted(plain))
    yield layout(sorted(plain, reverse=True))
    for i, _ in enumerate(names):
        yield layout([0 if j == i else n for j, n in enumerate(plain)])
    yield layout([1] * len(names))
    for _ in range(1000 if names else 20):
        broadcast = [one for one in ones if rng.random() < 0.3]
        yield layout(rng.choice(SIZES, len(names)), int(rng.integers(100)), int(rng.integers(10**6)), broadcast)


def is_possible(template: Template, layout: Layout) -> bool:
    """Whether all sizes are there, none is negative, none is large, and every index has something to name."""
    specs = [
        (spec, i) for i, leaf in enumerate(template.leaves) if isinstance(spec := spec_of(leaf, i, layout), ArraySpec)
    ]
    shapes = [_shape(spec, i, layout) for spec, i in specs]
    if any(n < 0 for shape in shapes for n in shape) or sum(int(np.prod(shape)) for shape in shapes) > MOST_ELEMENTS:
        return False
    indexes = [_below(spec, shapes, layout) for (spec, _), shape in zip(specs, shapes, strict=True) if np.prod(shape)]
    return all(below > 0 for below in indexes)


def _below(spec: ArraySpec, shapes: Sequence[tuple[int, ...]], layout: Layout) -> int:
    """What the integers of an array are less than: its own bound, or the smallest size in sight; 2 if there is none."""
    if spec.below is not None:
        return spec.below.size(dict(layout.sizes))
    if not all(jnp.issubdtype(jnp.dtype(d), jnp.integer) for d in spec.dtypes):
        return 2
    return min((n for shape in shapes for n in shape), default=2)


def _shape(spec: ArraySpec, i: int, layout: Layout) -> tuple[int, ...]:
    return spec.shape(dict(layout.sizes), {axis for leaf, axis in layout.ones if leaf == i and axis < len(spec.axes)})


def arguments(template: Template, layout: Layout, drawn: Drawn) -> tuple:
    """The arguments of a case; the same for the same layout and draw."""
    dtypes, given = dict(layout.dtypes), iter(drawn.given)
    leaves = [spec_of(leaf, i, layout) for i, leaf in enumerate(template.leaves)]
    shapes = {i: _shape(spec, i, layout) for i, spec in enumerate(leaves) if isinstance(spec, ArraySpec)}

    def fill(i, spec):
        if isinstance(spec, Strategy):
            return next(given)
        if not isinstance(spec, ArraySpec):
            return spec
        below = _below(spec, list(shapes.values()), layout)
        rng = np.random.default_rng([drawn.seed, i])
        return _values(drawn.patterns[i], rng, shapes[i], jnp.dtype(dtypes[spec.dtypes]), max(below, 1))

    return jax.tree.unflatten(template.tree, [fill(i, spec) for i, spec in enumerate(leaves)])


def _values(pattern: str, rng: Generator, shape: tuple[int, ...], dtype: np.dtype, below: int) -> np.ndarray:
    if dtype == np.bool_:
        return INTEGERS[pattern](rng, shape, 2).astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return INTEGERS[pattern](rng, shape, below).astype(dtype)
    v = FLOATS[pattern](rng, shape, jnp.finfo(dtype))
    if jnp.issubdtype(dtype, jnp.complexfloating):
        v = v + 1j * FLOATS[pattern](rng, shape, jnp.finfo(dtype))
    with np.errstate(all="ignore"):
        return v.astype(dtype)


def patterns_of(template: Template, layout: Layout) -> list[list[str]]:
    """For each leaf, the patterns that its values may follow, the plainest first; a single one where there is none."""
    dtypes = dict(layout.dtypes)

    def of(spec):
        if not isinstance(spec, ArraySpec):
            return [""]
        return list(FLOATS if jnp.issubdtype(jnp.dtype(dtypes[spec.dtypes]), jnp.inexact) else INTEGERS)

    return [of(spec_of(leaf, i, layout)) for i, leaf in enumerate(template.leaves)]


def _ordinary(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.round(rng.normal(size=shape), 2)


def _half_zero(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.5, 0.0, _ordinary(rng, shape))


def _flat_rows(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Along the last axis almost constant: a variance near 0."""
    return _ordinary(rng, (*shape[:-1], 1) if shape else ()) + 1e-6 * rng.normal(size=shape)


def _one_hot(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Along the last axis one 1, and zeros."""
    v = np.zeros(shape)
    if v.size and shape:
        np.put_along_axis(v, rng.integers(0, shape[-1], (*shape[:-1], 1)), 1.0, -1)
    return v


def _outliers(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Along the last axis a few channels that are a hundred times larger, as activations of a large network have."""
    return _ordinary(rng, shape) * np.where(rng.random(shape[-1:]) < 0.2, 100.0, 1.0)


def _equal_rows(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Along the first axis almost constant: examples that hardly differ."""
    return _ordinary(rng, (1, *shape[1:]) if shape else ()) + 1e-6 * rng.normal(size=shape)


FLOATS: Mapping[str, Callable[[Generator, tuple[int, ...], np.finfo], np.ndarray]] = {
    "ordinary": lambda rng, shape, info: _ordinary(rng, shape),
    "between 0 and 1": lambda rng, shape, info: np.round(rng.uniform(0.05, 0.95, shape), 2),
    "ties": lambda rng, shape, info: rng.choice([0.5, 2.0, -1.0], shape),
    "zeros": lambda rng, shape, info: np.zeros(shape),
    "half zero": lambda rng, shape, info: _half_zero(rng, shape),
    "all equal": lambda rng, shape, info: np.full(shape, 0.75),
    "flat rows": lambda rng, shape, info: _flat_rows(rng, shape),
    "nearly equal rows": lambda rng, shape, info: _equal_rows(rng, shape),
    "outlier channels": lambda rng, shape, info: _outliers(rng, shape),
    "sorted": lambda rng, shape, info: np.sort(_ordinary(rng, shape), axis=-1) if shape else _ordinary(rng, shape),
    "one-hot": lambda rng, shape, info: _one_hot(rng, shape),
    "large": lambda rng, shape, info: 30 * _ordinary(rng, shape),
    "huge": lambda rng, shape, info: float(info.max) ** 0.5 * rng.normal(size=shape),
    "small": lambda rng, shape, info: 1e-4 * _ordinary(rng, shape),
    "subnormal": lambda rng, shape, info: float(info.tiny) / 4 * rng.normal(size=shape),
    "of all sizes": lambda rng, shape, info: _ordinary(rng, shape) * 10.0 ** rng.uniform(-4, 4, shape),
    "negative": lambda rng, shape, info: -np.abs(_ordinary(rng, shape)) - 0.01,
}
"""Floating-point values by pattern, the plainest first."""

INTEGERS: Mapping[str, Callable[[Generator, tuple[int, ...], int], np.ndarray]] = {
    "ordinary": lambda rng, shape, below: rng.integers(0, below, shape),
    "repeated": lambda rng, shape, below: rng.choice(rng.integers(0, below, 2), shape),
    "by Zipf's law": by_zipfs_law,
    "by Zipf's law, in order": lambda rng, shape, below: np.sort(by_zipfs_law(rng, shape, below).ravel()).reshape(
        shape
    ),
    "the first": lambda rng, shape, below: np.zeros(shape, int),
    "the last": lambda rng, shape, below: np.full(shape, below - 1),
    "in turn": lambda rng, shape, below: np.arange(int(np.prod(shape))).reshape(shape) % below,
}
"""Integers from 0 to below a bound, by pattern."""
