"""What a layer is given, refused before anything is computed: params of another tree, arrays not of JAX.

Looked at is the tree alone, once for every tree that comes: shapes and dtypes, and where `None` may stand, are each
layer's own to check. Under jit all of it is done while tracing; eagerly it is a few microseconds a call.
"""

from collections.abc import Callable
from functools import wraps
from numbers import Number
from typing import Any, NamedTuple

import jax

from bpref.dtypes import described, require_array

ARRAYS: set[type] = set()
"""The types of the arrays and numbers that came so far: another of one of them need not be looked at."""


class Guarded(NamedTuple):
    """The three functions of a layer, each behind its checks."""

    init: Callable[..., Any]
    forward: Callable[..., Any]
    backward: Callable[..., Any]


RULES = ("bpref.rules.", "bpref.formulas.")
"""Whose init is known to give what the forward takes: of a layer that somebody else wrote, init may be a stand-in."""


def guarded(name: str, init: Callable[..., Any], forward: Callable[..., Any], backward: Callable[..., Any]) -> Guarded:
    """A rule's functions, which raise `TypeError` for what no call of them can mean; any other layer's as they are.

    The forward refuses params of another tree than `init` gives for its x, and what is no array in them; the backward
    params of another tree than the forward's, and, where it fails, a cache of another type.
    """
    if not getattr(forward, "__module__", "").startswith(RULES):
        return Guarded(init, forward, backward)
    seen: set[Any] = set()
    expected: list[Any] = []
    kept: set[type] = set()

    @wraps(init)
    def guarded_init(key, x):
        _require_arrays(name, x=x)
        return init(key, x)

    @wraps(forward)
    def guarded_forward(params, x):
        leaves, tree = jax.tree.flatten((params, x))
        if not ARRAYS.issuperset(map(type, leaves)):
            _require_arrays(name, params=params, x=x)
        if tree not in seen:
            expected[:] = _drawn(init, x) or expected
            for drawn in expected:
                require_tree(name, params, drawn)
            seen.add(tree)
        try:
            y, cache = forward(params, x)
        except (AttributeError, TypeError, ValueError) as error:
            if any(word in str(error) for word in ("None", "tuple")) and not str(error).startswith(name):
                for drawn in expected:
                    require_tree(name, params, drawn, complete=error)
            raise
        kept.add(type(cache))
        return y, cache

    @wraps(backward)
    def guarded_backward(params, cache, dy):
        for drawn in expected:
            require_tree(name, params, drawn)
        try:
            return backward(params, cache, dy)
        except Exception as error:
            if kept and type(cache) not in kept:
                types = " or ".join(sorted(t.__name__ for t in kept))
                raise TypeError(f"{name}: cache is {described(cache)}, expected {types}, as forward gives") from error
            raise

    return Guarded(guarded_init, guarded_forward, guarded_backward)


def require_tree(who: str, v: Any, expected: Any, name: str = "", complete: Exception | None = None) -> None:
    """Raise `TypeError` unless `v` has the tree of `expected`, what init gives.

    Either may have `None` for a part that the other has, and a plain tuple may stand for a named one, as long as that
    works: not if `complete` is an error that comes of it.
    """
    if v is None or expected is None:
        if v is not expected and (complete is not None or not name):
            raise TypeError(_message(who, name, v, expected)) from complete
        return
    if not _fits(v, expected, strictly=complete is not None):
        raise TypeError(_message(who, name, v, expected)) from complete
    parts, came = (_parts(node) or {} for node in (expected, v))
    for (field, part), own in zip(parts.items(), came.values(), strict=True):
        require_tree(who, own, part, f"{name}.{field}" if name else str(field), complete)


def _fits(v: Any, expected: Any, strictly: bool) -> bool:
    parts, came = _parts(expected), _parts(v)
    if parts is None or came is None:
        return parts is came
    if isinstance(v, tuple) and isinstance(expected, tuple):
        are_named = hasattr(v, "_fields") and hasattr(expected, "_fields")
        return list(came) == list(parts) if are_named or strictly else len(came) == len(parts)
    return type(v) is type(expected) and list(came) == list(parts)


def _message(who: str, name: str, v: Any, expected: Any) -> str:
    parts, came = _parts(expected), described(v)
    if parts is None:
        wanted = "None" if expected is None else "an array"
    elif hasattr(expected, "_fields"):
        wanted = type(expected).__name__
    elif isinstance(expected, dict):
        wanted = f"a dict of {', '.join(map(repr, parts))}"
        came += f" of {', '.join(map(repr, v))}" if isinstance(v, dict) else ""
    else:
        wanted = f"a {type(expected).__name__} of {len(parts)}" if parts else "()"
        came += f" of {len(v)}" if type(v) is type(expected) else ""
    return f"{who}: {name or 'params'} is {came}, expected {wanted}, as init gives for this x"


def _parts(v: Any) -> dict[Any, Any] | None:
    """The parts of a tuple, list or dict by name; `None` for what has none."""
    if isinstance(v, dict):
        return v
    if isinstance(v, tuple | list):
        return dict(zip(getattr(v, "_fields", range(len(v))), v, strict=True))
    return None


def _drawn(init: Callable[..., Any], x: Any) -> list[Any]:
    """What init gives for x; nothing where it gives nothing for this one."""
    try:
        x = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), x)
        # The function itself and no new one that calls it: JAX remembers the shapes that a function gives.
        return [jax.eval_shape(init, jax.eval_shape(jax.random.key, 0), x)]
    except Exception:  # x is at fault, and the forward says how; or a caller's own init cannot be traced
        return []


def _require_arrays(who: str, **trees: Any) -> None:
    """Raise `TypeError` if a leaf is an array of another library, or one of params neither an array nor a number."""
    for root, tree in trees.items():
        for path, v in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if hasattr(v, "dtype") or (root == "params" and not isinstance(v, Number)):
                require_array(who, root + jax.tree_util.keystr(path), v)
                ARRAYS.add(type(v))
