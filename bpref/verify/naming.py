"""What values are called in a report: `params.W`, `x[0]`, `args[1]`."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey


def path_text(path: Any) -> str:
    """A path into a pytree as a user would write it: `.W`, `[0]`; a dictionary's keys as attributes."""
    return "".join(map(_step, path))


def _step(key: Any) -> str:
    if isinstance(key, GetAttrKey):
        return f".{key.name}"
    if isinstance(key, DictKey):
        return f".{key.key}" if isinstance(key.key, str) and key.key.isidentifier() else f"[{key.key!r}]"
    return f"[{key.idx}]" if isinstance(key, SequenceKey) else f"[{getattr(key, 'key', key)}]"


def leaf_names(root: str, tree: Any) -> list[str]:
    """The names of the leaves of `tree`, each beginning with `root`."""
    return [root + path_text(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def argument_names(fun: Callable[..., Any], count: int) -> tuple[str, ...]:
    """The parameter names of the first `count` positional arguments; `args[i]` where there is none."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(named[i] if i < len(named) else f"args[{i}]" for i in range(count))


def function_name(fun: Any) -> str:
    """What a function is called: its own name, without the module."""
    inner = getattr(fun, "func", fun)
    return str(getattr(inner, "__name__", None) or getattr(inner, "name", None) or type(fun).__name__)
