"""Every public name: how it is called, its types, and what its docstring says; grouped by the room that it is from."""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import bpref
from bpref.cli.explain import call
from bpref.rules import RULES
from docs import docstring
from docs.rule_page import path
from docs.search import raw

GROUPS = {
    "layer": ("The layer, and what else is not in a room", ()),
    "combinators": ("Combinators", ("compose",)),
    "transformations": ("Leaf transformations", ("transforms",)),
    "checking": ("Checking", ("verify", "corpus")),
    "models": ("Models", ("models", "train")),
    "compiling": ("Compiling for devices", ("devices",)),
    "arrays": ("Parameters and inputs of the rules", ("formulas", "rules.")),
}
"""A page for each: its title, and the modules of bpref whose names it has."""

CLASS = r"<class '(?:\w+\.)*(\w+)'>"


def pages() -> dict[str, str]:
    """The reference: a page for each group, and one that lists all of them."""
    homes = modules()
    of_group: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in sorted(set(homes) - set(RULES), key=str.lower):
        of_group[_group(name, homes[name])].append(name)
    made = {f"api/{group}": _page(GROUPS[group][0], names) for group, names in of_group.items()}
    return made | {"api/index": _index(of_group)}


def modules() -> dict[str, str]:
    """The module of each public name, as `__init__.pyi` says."""
    stub = ast.parse((Path(bpref.__file__).parent / "__init__.pyi").read_text())
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: str(node.module) for node in imports for alias in node.names}


def _group(name: str, module: str) -> str:
    room = module.split(".")[0]
    if room == "rules" and module != "rules":
        return "arrays"
    return next((group for group, (_, rooms) in GROUPS.items() if room in rooms), "layer")


def link(name: str) -> str | None:
    """Where a name in backticks leads from a page of the reference."""
    name = name.removeprefix("bpref.").partition("(")[0]
    homes = modules()
    if name in RULES:
        return f"../{path(name)}.html"
    return f"{_group(name, homes[name])}.html#{_anchor(name)}" if name in homes else None


def _anchor(name: str) -> str:
    return "bpref-" + name.lower().replace("_", "-")


def _page(title: str, names: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(_entry(name, getattr(bpref, name)) for name in names)]) + "\n"


def _entry(name: str, value: Any) -> str:
    heading = f"({_anchor(name)})=\n## {name}"
    if inspect.isfunction(value):
        called = re.sub(CLASS, r"\1", call(value, inspect.signature(value).return_annotation))
        return f"{heading}\n\n```python\n{called}\n```\n\n{raw(docstring.to_page(value, link))}"
    if inspect.isclass(value):
        shown = "" if value.__doc__ is None or value.__doc__.startswith(f"{name}(") else docstring.to_page(value, link)
        return f"{heading}\n\n```python\n{_declared(value)}\n```" + (f"\n\n{raw(shown)}" if shown else "")
    return (
        f"{heading}\n\n```python\nbpref.{name}: {type(value).__name__.strip('_')}  # {', '.join(map(str, value))}\n```"
    )


def _declared(kind: type) -> str:
    """A class's fields, as its own lines declare them."""
    node = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(node, ast.ClassDef)
    node.body = [part for part in node.body if isinstance(part, ast.AnnAssign)] or [ast.Expr(ast.Constant(...))]
    node.decorator_list = []
    return ast.unparse(node)


def _index(of_group: dict[str, list[str]]) -> str:
    tree = "\n".join(["```{toctree}", ":maxdepth: 2", "", *of_group, "```"])
    return (
        f"# Every public name\n\n{tree}\n\nEach of the {len(RULES)} rules has [a page of its own](../rules/index.md).\n"
    )
