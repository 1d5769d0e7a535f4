"""A rule's forward and backward as they stand in its file, line by line, each with the names that it assigns."""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import bpref
from bpref.layer import Layer

ROOT = Path(bpref.__file__).parents[1]


class Source(NamedTuple):
    """Some lines of a file: its path in the repository, the number of the first, and the text."""

    file: str
    first: int
    text: str


def of_layer(make: Callable[..., Any], layer: Layer) -> list[Source]:
    """The lines that are a rule's forward and backward; where another file shares them, the rule's own part first."""
    found = [of_function(inspect.unwrap(f)) for f in (layer.forward, layer.backward)]
    own = of_function(make)
    elsewhere = [source for source in found if source.file != own.file]
    return ([without_docstring(own)] if elsewhere else []) + list(dict.fromkeys(found))


def of_function(f: Callable[..., Any]) -> Source:
    lines, first = inspect.getsourcelines(f)
    margin = len(lines[0]) - len(lines[0].lstrip())
    text = "".join(line[margin:] if line.strip() else line for line in lines)
    return Source(str(Path(inspect.getsourcefile(f) or "").relative_to(ROOT)), first, text.rstrip("\n"))


def without_docstring(source: Source) -> Source:
    tree = ast.parse(source.text).body[0]
    if not isinstance(tree, ast.FunctionDef) or ast.get_docstring(tree) is None:
        return source
    lines, text = source.text.splitlines(), tree.body[0]
    return source._replace(text="\n".join(lines[: text.lineno - 1] + lines[text.end_lineno :]).replace(":\n\n", ":\n"))


def to_page(source: Source) -> str:
    """The lines highlighted; a line that assigns `dx` has it among its `data-names`."""
    names = dict(assigned(source.text))
    coloured = highlight(source.text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True)).splitlines()
    lines = [
        f'<span class="line" data-names="{" ".join(names.get(n, ()))}">{line or " "}</span>'
        for n, line in enumerate(coloured, start=1)
    ]
    return (
        f'<figure class="code"><figcaption>{source.file}, line {source.first}</figcaption>'
        f'<div class="highlight"><pre>{"".join(lines)}</pre></div></figure>'
    )


def assigned(text: str) -> Iterator[tuple[int, set[str]]]:
    """The lines of an assignment, and the names on its left side; a line of a `return` gives the names that it has."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Return):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            named = {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                yield line, named
