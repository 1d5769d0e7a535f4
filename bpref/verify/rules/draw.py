"""Concrete inputs for a rule's case: sizes for its axes, values for its arrays, numbers for its hyperparameters."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.layer import Layer
from bpref.programs import Typed
from bpref.rule import Boolean, Case, Integer, Interval, Key, Rule, Size, Spec
from bpref.verify.examining.program import COTANGENTS
from bpref.verify.numbers.points import normal
from bpref.verify.oracle import is_differentiable


class Example(NamedTuple):
    """A case with everything filled in: what `check_laws` compares, and what a failure is reproduced from.

    Attributes:
      rule: the rule's name.
      layer: the layer under test.
      reference: `(params, x) -> y`, the naive forward.
      params, x: NumPy arrays.
      dys: cotangents of y, stacked along a new first axis; `None` for what has none.
    """

    rule: str
    layer: Layer
    reference: Callable[[PyTree, PyTree], PyTree]
    params: PyTree
    x: PyTree
    dys: PyTree

    @property
    def dy(self) -> PyTree:
        """The first of the cotangents."""
        return jax.tree.map(lambda v: v[0], self.dys)


def draw(
    rule: Rule,
    case: Case,
    sizes: Mapping[str, int],
    seed: int,
    dtype: DTypeLike = jnp.float64,
    hyper: Mapping[str, object] | None = None,
) -> Example:
    """Random values for a case, rounded to `dtype` first; `hyper` replaces the typical hyperparameters."""
    rng = np.random.default_rng(seed)
    return example_with(rule, case, sizes, _drawn_x(case, sizes, rng, dtype), rng, hyper)


def draw_many(rule: Rule, case: Case, sizes: Mapping[str, int], seeds: Iterable[int]) -> Iterator[Example]:
    """`draw` for each of the seeds; the layer is made, and its shapes are traced, once."""
    first = None
    for seed in seeds:
        if first is None:
            first = draw(rule, case, sizes, seed)
            yield first
            continue
        rng = np.random.default_rng(seed)
        x = _drawn_x(case, sizes, rng, jnp.float64)
        params = _drawn_params(case, sizes, rng, first.params)
        yield first._replace(x=x, params=params, dys=_normal(rng, first.dys))


def _drawn_x(case: Case, sizes: Mapping[str, int], rng: np.random.Generator, dtype: DTypeLike) -> PyTree:
    return jax.tree.map(lambda spec: values(spec, sizes, rng, dtype), case.x, is_leaf=is_spec)


def _normal(rng: np.random.Generator, like: PyTree) -> PyTree:
    return jax.tree.map(lambda v: normal(rng, v.shape, v.dtype), like)


def _drawn_params(case: Case, sizes: Mapping[str, int], rng: np.random.Generator, like: PyTree) -> PyTree:
    """Values for params of the shapes of `like`, where the case does not say which."""
    if case.params is None:
        return _normal(rng, like)
    return jax.tree.map(lambda spec: values(spec, sizes, rng, jnp.float64), case.params, is_leaf=is_spec)


def example_with(
    rule: Rule,
    case: Case,
    sizes: Mapping[str, int],
    x: PyTree,
    rng: np.random.Generator,
    hyper: Mapping[str, object] | None = None,
) -> Example:
    """The example for a given x: random parameters and cotangents of the shapes that the layer says."""
    chosen = hyperparameters(case, sizes) | dict(hyper or {})
    layer = rule.make(**chosen)
    params = _drawn_params(case, sizes, rng, _shapes(_params_of, layer, rule, chosen, x))
    y = _shapes(_y_of, layer, rule, chosen, params, x)
    dys = jax.tree.map(lambda v: normal(rng, (COTANGENTS, *v.shape), v.dtype) if is_differentiable(v) else None, y)

    def reference(params, x):
        """J of narrow inputs is wide, as it is computed; the reference's, computed in their dtype, is widened."""
        y, is_narrow = rule.reference(params, x, **chosen), any(map(_is_narrow, jax.tree.leaves((params, x))))
        like = jax.eval_shape(layer.forward, params, x)[0] if is_narrow else y
        return jax.tree.map(lambda v, w: v.astype(w.dtype) if w.dtype.itemsize > v.dtype.itemsize else v, y, like)

    return Example(rule.name, layer, reference, params, x, dys)


def _shapes(f: Callable, layer: Layer, rule: Rule, chosen: Mapping[str, object], *inputs: PyTree) -> PyTree:
    """The shapes of `f(layer, *inputs)`, traced once for inputs of one form: a case is drawn many times."""
    leaves, tree = jax.tree.flatten(inputs)
    try:
        form = f, rule.make, frozenset(chosen.items()), tree, tuple((v.shape, v.dtype) for v in leaves)
        known = _KNOWN.get(form)
    except TypeError:  # a hyperparameter that has no hash
        form = known = None
    if known is None:
        with jax.enable_x64(True):
            known = jax.eval_shape(partial(f, layer), *inputs)
        if form is not None:
            _KNOWN[form] = known
    return known


_KNOWN: dict[Hashable, PyTree] = {}


def _params_of(layer: Layer, x: PyTree) -> PyTree:
    return layer.init(jax.random.key(0), x)


def _y_of(layer: Layer, params: PyTree, x: PyTree) -> PyTree:
    return layer.forward(params, x)[0]


def _is_narrow(v: Typed) -> bool:
    return jnp.issubdtype(v.dtype, jnp.floating) and jnp.finfo(v.dtype).bits < 32


def is_spec(v: object) -> bool:
    return isinstance(v, Spec)


def axes_of(case: Case) -> list[str]:
    """The named axes of a case, those of its arrays and those that are hyperparameters, in order."""
    of_arrays = [name for spec in jax.tree.leaves((case.x, case.params), is_leaf=is_spec) for name in spec.axes.split()]
    of_sizes = [v.axis for v in case.hyper.values() if isinstance(v, Size)]
    return list(dict.fromkeys(of_arrays + of_sizes))


def hyperparameters(case: Case, sizes: Mapping[str, int]) -> dict[str, object]:
    """What `make` is called with: sizes looked up, intervals at their typical value."""

    def value(v):
        if isinstance(v, Size):
            return sizes[v.axis]
        return v.typical if isinstance(v, Interval) else v

    return {name: value(v) for name, v in case.hyper.items()}


def sized(case: Case, sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` as far as the case allows them: some axes have one size only, others a smallest."""
    return {name: case.fixed.get(name, max(n, case.least.get(name, 0))) for name, n in sizes.items()}


def all_of_size(case: Case, n: int) -> dict[str, int]:
    """Every axis of length n, as far as the case allows it."""
    return sized(case, dict.fromkeys(axes_of(case), n))


def values(spec: Spec, sizes: Mapping[str, int], rng: np.random.Generator, dtype: DTypeLike) -> np.ndarray:
    """A random array for one specification, its special points first."""
    shape = tuple(sizes[name] for name in spec.axes.split())
    if isinstance(spec, Key):
        return rng.integers(2**32, size=(*shape, 2), dtype=np.uint32)
    if isinstance(spec, Boolean):
        return rng.random(shape) < 0.5
    if isinstance(spec, Integer):
        high = sizes[spec.high] if isinstance(spec.high, str) else spec.high
        v = rng.integers(spec.low, max(high, spec.low + 1), shape).astype(np.int32)
    else:
        v = rng.uniform(spec.low, spec.high, shape)
        if spec.is_complex:
            v = v + 1j * rng.uniform(spec.low, spec.high, shape)
        if spec.simplex:
            v = np.exp(v) / np.exp(v).sum(-1, keepdims=True)
    points = np.asarray(spec.points, v.dtype)[: v.size]
    v.reshape(-1)[: points.size] = points
    if isinstance(spec, Integer):
        return v
    return rounded_to(v if spec.domain is None else spec.domain(v), dtype)


def rounded_to(v: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Real numbers in `dtype`; complex ones stay what they are."""
    return v if np.iscomplexobj(v) else v.astype(dtype)
