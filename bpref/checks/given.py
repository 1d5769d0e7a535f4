"""What a layer is given, held to what the layer declares, before anything is computed.

x is held to the annotation of the layer's own forward (`shapes`), params to what the layer's init gives for this x:
the same tree, each array of the same shape, nothing missing and nothing too many. Looked at is each combination of
trees, shapes and dtypes once. Under jit all of it is done while tracing; eagerly it is a few microseconds a call.
"""

from collections.abc import Callable, Hashable
from functools import wraps
from numbers import Number
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bpref.checks.shapes import Axis, Call, axes_of, fields_of, has_its_own_dtype, is_declared_array, normalized, shown
from bpref.dtypes import described, require_array, require_floating

ARRAYS: set[type] = set()
"""The types of the arrays and numbers that came so far: another of one of them need not be looked at."""


class Guarded(NamedTuple):
    """The three functions of a layer, each behind its checks."""

    init: Callable[..., PyTree]
    forward: Callable[..., PyTree]
    backward: Callable[..., PyTree]


RULES = ("bpref.rules.", "bpref.formulas.")
"""Whose init is known to give what the forward takes: of a layer that somebody else wrote, init may be a stand-in."""


def guarded(
    name: str,
    init: Callable[..., PyTree],
    forward: Callable[..., PyTree],
    backward: Callable[..., PyTree],
) -> Guarded:
    """A rule's functions, which raise for what no call of them can mean; any other layer's as they are.

    Args:
      name: what messages call the layer.
      init, forward, backward: the three; the annotation of forward's x is what x is held to.
    """
    if not (getattr(forward, "__module__", None) or "").startswith(RULES):
        return Guarded(init, forward, backward)
    declared = declared_of(forward)
    seen: set[Hashable] = set()
    trees: set[Hashable] = set()
    drawn: list[PyTree] = []
    kept: set[type] = set()

    def look(params, x):
        call = Call(name)
        call.require("x", x, declared)
        drawn[:] = [_drawn(init, x)]
        _Params(call, x).require(params, drawn[0])

    @wraps(init)
    def guarded_init(key, x):
        _require_arrays(name, x=x)
        x = normalized(name, x, declared)
        Call(name).require("x", x, declared)
        return init(key, x)

    @wraps(forward)
    def guarded_forward(params, x):
        leaves, tree = jax.tree.flatten((params, x))
        if not ARRAYS.issuperset(map(type, leaves)):
            _require_arrays(name, params=params, x=x)
        x = normalized(name, x, declared)
        looks = tree, *((getattr(v, "shape", ()), getattr(v, "dtype", None)) for v in leaves)
        if looks not in seen:
            look(params, x)
            seen.add(looks)
            trees.add(jax.tree.structure(params))
        y, cache = forward(params, x)
        kept.add(type(cache))
        return y, cache

    @wraps(backward)
    def guarded_backward(params, cache, dy):
        if drawn and jax.tree.structure(params) not in trees:
            _Params(Call(name), None).require_tree("", params, drawn[0])
        try:
            return backward(params, cache, dy)
        except Exception as error:
            if kept and type(cache) not in kept:
                types = " or ".join(sorted(t.__name__ for t in kept))
                raise TypeError(f"{name}: cache is {described(cache)}, expected {types}, as forward gives") from error
            raise

    return Guarded(guarded_init, guarded_forward, guarded_backward)


def declared_of(forward: Callable[..., PyTree]) -> object:
    """What a forward declares of its second argument, x."""
    code = getattr(forward, "__code__", None)
    return forward.__annotations__.get(code.co_varnames[1], object) if code and code.co_argcount > 1 else object


def _drawn(init: Callable[..., PyTree], x: PyTree) -> PyTree:
    """What init gives for x, nothing being computed; it raises what it has to say of x besides its shape."""
    x = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)), x)
    # The function itself and no new one that calls it: JAX remembers the shapes that a function gives.
    return jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), x)


class _Params:
    """Params beside what init gives for this x."""

    def __init__(self, call: Call, x: PyTree) -> None:
        self.call = call
        self.because = f"as init gives for x {x.shape}" if hasattr(x, "shape") else "as init gives for this x"

    def require(self, params: PyTree, drawn: PyTree) -> None:
        self.require_tree("", params, drawn)
        self._require_arrays("", params, drawn, object)

    def require_tree(self, name: str, v: PyTree, drawn: PyTree) -> None:
        """Raise `TypeError` unless `v` has the tree of `drawn`, to the types of its tuples."""
        parts, came = _parts(drawn), _parts(v)
        same = (v is None) == (drawn is None) and (parts is None) == (came is None)
        if not same or (parts is not None and (type(v) is not type(drawn) or list(parts) != list(came or {}))):
            raise TypeError(_message(self.call.who, name, v, drawn))
        for field, part in (parts or {}).items():
            self.require_tree(_joined(name, field), (came or {})[field], part)

    def _require_arrays(self, name: str, v: PyTree, drawn: PyTree, form: object) -> None:
        parts = _parts(drawn)
        if parts is not None:
            forms = fields_of(type(drawn)) or {}
            for field, part in parts.items():
                self._require_arrays(_joined(name, field), (_parts(v) or {})[field], part, forms.get(field, object))
        elif drawn is not None and not jnp.issubdtype(drawn.dtype, jax.dtypes.prng_key):
            self._require_array(name, v, drawn, form)

    def _require_array(self, name: str, v: PyTree, drawn: PyTree, form: object) -> None:
        who = self.call.who
        require_array(who, name, v)
        if v.shape != drawn.shape:
            forms = [axes_of(dims) for dims in _dims(form) if dims]
            symbols = next((f"{shown(axes)} = " for axes in forms if _are_as_many(axes, drawn)), "")
            raise ValueError(f"{who}: {name} has shape {v.shape}, expected {symbols}{drawn.shape}, {self.because}")
        for dims in _dims(form) if "." not in name else ():  # an inner layer's symbols are its own
            self.call.require_one_size(name, v, axes_of(dims))
        if jnp.issubdtype(drawn.dtype, jnp.floating):
            require_floating(who, name, v)
            if not has_its_own_dtype(form):
                self.call.require_one_dtype(name, v)
        elif v.dtype != drawn.dtype:
            raise TypeError(f"{who}: {name} has dtype {v.dtype}, expected {drawn.dtype}")


def _dims(form: object) -> list[str]:
    """The shapes that an annotation names."""
    return [f.dim_str for f in getattr(form, "__args__", (form,)) if is_declared_array(f)]


def _are_as_many(axes: tuple[Axis, ...], v: PyTree) -> bool:
    return len(axes) == v.ndim or any(axis.many for axis in axes)


def _joined(name: str, field: object) -> str:
    return f"{name}.{field}" if name else str(field)


def _message(who: str, name: str, v: PyTree, drawn: PyTree) -> str:
    parts, came = _parts(drawn), described(v)
    if parts is None:
        wanted = "None" if drawn is None else "an array"
    elif hasattr(drawn, "_fields"):
        wanted = type(drawn).__name__
    elif isinstance(drawn, dict):
        wanted = f"a dict of {', '.join(map(repr, parts))}"
        came += f" of {', '.join(map(repr, v))}" if isinstance(v, dict) else ""
    else:
        wanted = f"a {type(drawn).__name__} of {len(parts)}" if parts else "()"
        came += f" of {len(v)}" if type(v) is type(drawn) else ""
    return f"{who}: {name or 'params'} is {came}, expected {wanted}, as init gives for this x"


def _parts(v: PyTree) -> dict | None:
    """The parts of a tuple, list or dict by name; `None` for what has none."""
    if isinstance(v, dict):
        return v
    if isinstance(v, tuple | list):
        return dict(zip(getattr(v, "_fields", range(len(v))), v, strict=True))
    return None


def _require_arrays(who: str, **trees: PyTree) -> None:
    """Raise `TypeError` if a leaf is neither an array nor a number."""
    for root, tree in trees.items():
        for path, v in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if not isinstance(v, Number):
                require_array(who, root + jax.tree_util.keystr(path), v)
                ARRAYS.add(type(v))
