"""What things are called in a report: values (`params.W`, `x[0]`, `args[1]`), functions, places in source."""

import inspect
import os
import re
import sysconfig
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
from jax.extend.source_info_util import SourceInfo
from jax.tree_util import DictKey, GetAttrKey, KeyPath, SequenceKey
from jaxtyping import PyTree

from bpref.programs import is_typed


def path_text(path: KeyPath) -> str:
    """A path into a pytree as a user would write it: `.W`, `[0]`; a dictionary's keys as attributes."""
    return "".join(map(_step, path))


def _step(key: Any) -> str:
    if isinstance(key, GetAttrKey):
        return f".{key.name}"
    if isinstance(key, DictKey):
        return f".{key.key}" if isinstance(key.key, str) and key.key.isidentifier() else f"[{key.key!r}]"
    return f"[{key.idx}]" if isinstance(key, SequenceKey) else f"[{getattr(key, 'key', key)}]"


def leaf_names(root: str, tree: PyTree) -> list[str]:
    """The names of the leaves of `tree`, each beginning with `root`."""
    return [root + path_text(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def names_of_leaves(roots: Iterable[str], args: Iterable[PyTree]) -> list[str]:
    """The names of the leaves of several trees, each beginning with its root."""
    return [name for root, arg in zip(roots, args, strict=True) for name in leaf_names(root, arg)]


def argument_names(fun: Callable, count: int) -> tuple[str, ...]:
    """The parameter names of the first `count` positional arguments; `args[i]` where there is none."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(named[i] if i < len(named) else f"args[{i}]" for i in range(count))


def function_name(fun: object) -> str:
    """What a function is called: its own name, without the module."""
    inner = getattr(fun, "func", fun)
    return str(getattr(inner, "__name__", None) or getattr(inner, "name", None) or type(fun).__name__)


def first_line(error: Exception, otherwise: str = "without a message") -> str:
    """The first line of an error's message that says anything; with the next one, where it announces that."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [otherwise]
    return f"{first} {rest[0]}" if rest and first.endswith(":") else first


def in_short(error: Exception) -> str:
    """An error by its type, and the first line of its message if it has one."""
    kind, line = type(error).__name__, first_line(error, "")
    return f"{kind}: {line}" if line else kind


def describe(v: object) -> str:
    """An array by dtype and shape, anything else by its type."""
    return f"{v.dtype}{list(v.shape)}" if is_typed(v) else f"a {type(v).__name__}"


COMMAND_LINE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "cli") + os.sep

MACHINERY = re.compile(
    "|".join(
        (
            re.escape(os.path.dirname(jax.__file__) + os.sep),
            re.escape(os.path.dirname(__file__) + os.sep),
            re.escape(COMMAND_LINE),
            re.escape(sysconfig.get_path("stdlib") + os.sep) + "(?!(?:site|dist)-packages)",
            "<frozen |<string>",
        )
    )
)
"""Files whose lines say nothing about the user's program: JAX, the standard library, and this checker."""

FRAMEWORKS = re.compile(r".*[\\/](?:site|dist)-packages[\\/](?:flax|equinox|haiku|penzai)[\\/]")
"""Libraries that call the user's modules, and are called by them: their caller says more."""


def place(source: SourceInfo) -> tuple[str, int]:
    """File and line of the call that made an equation, from its `source_info`; `("", 0)` where none is known.

    The innermost frame outside JAX and outside the frameworks; inside a framework only where there is no other. What
    called the command line is not the user's.
    """
    frames = source.traceback.frames if source.traceback is not None else ()
    frames = takewhile(lambda f: not f.file_name.startswith(COMMAND_LINE), frames)
    outside = [(f.file_name, f.line_num) for f in frames if not MACHINERY.match(f.file_name)]
    return next((f for f in outside if not FRAMEWORKS.match(f[0])), outside[0] if outside else ("", 0))


GENERIC = {
    *("apply", "backward", "bwd", "call", "core", "f", "fn", "forward", "fun", "func", "fwd", "impl", "inner", "op"),
    *("run", "wrapped", "wrapper", "<lambda>"),
}
"""Names that many functions have."""


def telling_name(name: str, file: str) -> str:
    """A function's name; one that is private, or that many have, behind that of the module it stands in."""
    if not file or not (name.startswith("_") or name in GENERIC):
        return name
    path = Path(file)
    return f"{path.parent.name if path.stem == '__init__' else path.stem}.{name}"


def place_of(function: object) -> tuple[str, str, int]:
    """Name, file and line of a traced function, from its `debug_info`; empty where unknown."""
    known = re.match(r"(.*) at (.+?):(\d+)$", str(getattr(function, "func_src_info", "")))
    return (known[1], known[2], int(known[3])) if known else (str(getattr(function, "func_name", "")), "", 0)
