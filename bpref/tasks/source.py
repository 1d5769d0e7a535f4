"""A function's source with all that it needs of bpref, as a file that stands alone."""

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Callable
from types import ModuleType

import jax.typing

from bpref.layer import Layer
from bpref.rule import called_as

OWN = "bpref."


class NotAlone(ValueError):
    """What a function needs has a backward in it, so that its source would give the answer away."""


class Written(dict[str, str]):
    """By name, the source of each definition, those that others need first; `imports` are lines before them."""

    def __init__(self) -> None:
        super().__init__()
        self.imports: set[str] = set()

    def __str__(self) -> str:
        return "\n".join(sorted(self.imports)) + "\n\n\n" + "\n\n\n".join(self.values()) + "\n"


def standing_alone(f: Callable, written: Written | None = None) -> Written:
    """The definition of `f` and of everything of bpref that it names, in turn; all else is imported.

    Raises:
      NotAlone: a layer, with its backward, is among what it needs.
      ValueError: two definitions of one name.
    """
    written = Written() if written is None else written
    _define(f.__name__, f, written)
    return written


def _define(name: str, f: Callable, written: Written) -> None:
    """Write the definition of `f` under the name by which it is known where it is used."""
    called, f = f, inspect.unwrap(f)
    if f is Layer:
        raise NotAlone("it needs a layer, with its backward")
    source = textwrap.dedent(inspect.getsource(f)).rstrip()
    if source.startswith(f"@{called_as.__name__}("):
        source = _with_defaults(source.split("\n", 1)[1], inspect.signature(called))
    for keyword in ("def", "class"):
        source = re.sub(rf"^{keyword} {f.__name__}\b", f"{keyword} {name}", source, count=1, flags=re.M)
    if written.get(name, source) != source:
        raise ValueError(f"two definitions of {name} in one file")
    if name in written:
        return
    written[name] = source
    module = vars(inspect.getmodule(f))
    for used in _names(source):
        if used in module and used != name:
            _need(used, module[used], written, source)
    written[name] = written.pop(name)  # after what it needs


def _with_defaults(source: str, signature: inspect.Signature) -> str:
    """A reference without `called_as`: with the layer's hyperparameters, in its order, and their defaults."""
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    of, body = definition.args, definition.body
    hyper = list(signature.parameters.values())[2:]
    header = [*map(ast.unparse, of.args[:2])]
    for p in hyper:
        if p.kind is p.KEYWORD_ONLY and "*" not in header:
            header.append("*")
        header.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    lines = source.split("\n")
    rest = [p.name for p in hyper if p.name not in {a.arg for a in [*of.args, *of.kwonlyargs]}]
    if rest and of.kwarg and of.kwarg.arg in _names(source):  # they are handed on
        handed_on = ", ".join(f"{name}={name}" for name in rest)
        first = body[ast.get_docstring(definition) is not None]
        lines.insert(first.lineno - 1, f"    {of.kwarg.arg} = dict({handed_on})")
    returns = f" -> {ast.unparse(definition.returns)}" if definition.returns else ""
    lines[: body[0].lineno - 1] = [f"def {definition.name}({', '.join(header)}){returns}:"]
    return "\n".join(lines)


def _need(name: str, value: object, written: Written, source: str) -> None:
    home = getattr(value, "__module__", None)
    own_name = getattr(value, "__name__", name).split(".")[-1]
    if isinstance(value, ModuleType) and value.__name__.startswith(OWN):
        used = dict.fromkeys(re.findall(rf"\b{name}\.(\w+)", source))
        for attribute in used:
            _need(f"{name}_{attribute}", getattr(value, attribute), written, source)
        written.imports.add("import types")
        written[name] = f"{name} = types.SimpleNamespace({', '.join(f'{a}={name}_{a}' for a in used)})"
    elif isinstance(value, ModuleType):
        written.imports.add(f"import {value.__name__}" + f" as {name}" * (name != value.__name__))
    elif isinstance(home, str) and home.startswith(OWN) and (inspect.isfunction(value) or inspect.isclass(value)):
        _define(name, value, written)
    elif (types := next((m for m in (typing, jax.typing) if getattr(m, name, None) is value), None)) is not None:
        written.imports.add(f"from {types.__name__} import {name}")
    elif repr(value).startswith("typing."):
        written.imports.add("import typing")
        written[name] = f"{name} = {value!r}"
    elif callable(value) and isinstance(home, str):
        written.imports.add(f"from {home} import {own_name}" + f" as {name}" * (name != own_name))
    else:
        written[name] = f"{name} = {value!r}"


def _names(source: str) -> list[str]:
    """The global names in a definition, annotations and defaults too, in the order in which they stand."""
    nodes = ast.walk(ast.parse(source))
    return list(
        dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    )
