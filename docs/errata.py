"""Errata: derivations that stood in public and were wrong, beside the right ones, and what the checker says of them."""

import ast
import contextlib
import html
import importlib
import inspect
import io
import re
from collections.abc import Collection
from functools import cache
from types import ModuleType

from bpref.corpus import DERIVATIONS, Derivation, Wrong
from docs import mistakes
from docs.prose import to_html
from docs.rule_page import toctree
from docs.search import raw

_THREAD = re.compile(r"([\w.-]+/[\w.-]+)#(\d+)")
_SITE = re.compile(r"\b(?:community\.deeplearning\.ai|stats\.stackexchange\.com|victorzhou\.com|Stack Exchange)\b")


def published(derivation: Derivation) -> list[Wrong]:
    """The mistakes that someone has made in public."""
    return [w for w in derivation.wrong if _THREAD.search(w.source) or _SITE.search(w.source)]


def pages(names: Collection[str] = tuple(DERIVATIONS)) -> dict[str, str]:
    """A page for each of these functions that has errata, and the one that lists them."""
    found = {name: published(DERIVATIONS[name]) for name in names}
    found = {name: wrong for name, wrong in found.items() if wrong}
    rows = "".join(_row(name, w) for name, wrong in found.items() for w in wrong)
    table = raw(mistakes.table(HEAD, rows))
    index = "\n\n".join(["# Errata", ABOUT, table, LIBRARIES, toctree(found)]) + "\n"
    return {f"errata/{name}": page(name) for name in found} | {"errata/index": index}


HEAD = ("of", "what is done wrong", "called", "seen")

ABOUT = """Derivations that people wrote down, in libraries, courses and papers, and that were wrong: found in public
threads. Each page has the right derivation, the wrong one, where it was seen, and what `bpref.check` says of it,
printed while the book is built. Many a library has long mended its own: the thread says so."""

LIBRARIES = """## Libraries as they are

[Published kernels and losses, checked](../guide/audits.md) says what was found in released versions, and of what is
right."""


def _row(name: str, wrong: Wrong) -> str:
    of = f'<a href="{name}.html"><code>{name}</code></a>'
    return mistakes.row(of, to_html(wrong.name), f"<code>{wrong.kind}</code>", linked(wrong.source))


def linked(source: str) -> str:
    """A source in words as HTML; threads of repositories lead there."""
    return _THREAD.sub(r'<a href="https://github.com/\1/issues/\2">\g<0></a>', html.escape(source, quote=False))


def page(name: str) -> str:
    """The errata of one function of the corpus."""
    derivation, module = DERIVATIONS[name], importlib.import_module(f"bpref.corpus.{name}")
    found = [(i, wrong) for i, wrong in enumerate(derivation.wrong) if wrong in published(derivation)]
    blocks = [
        f"# {name}",
        raw(f"<p>{to_html(inspect.getdoc(module) or '')}</p>"),
        _code(right(module)),
        "Each of these is judged by this program, with its number in the place of the last:",
        _code(program(name, found[-1][0])),
        *(_erratum(name, i, wrong) for i, wrong in found),
    ]
    return "\n\n".join(blocks) + "\n"


def program(name: str, i: int) -> str:
    """Checks the i-th wrong derivation of a function."""
    return f"""\
import jax
import numpy as np

import bpref
from bpref.corpus import DERIVATIONS

right = DERIVATIONS["{name}"]
args = right.make_args(np.random.default_rng(0), np.float32)

{name} = jax.custom_vjp(right.forward)
{name}.defvjp(lambda *args: (right.forward(*args), args), right.wrong[{i}].backward)
print(bpref.check({name}, *args, reference=right.forward, key=1729))"""


@cache
def verdict(name: str, i: int) -> str:
    """What that program prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program(name, i), {})
    return printed.getvalue()


def _erratum(name: str, i: int, wrong: Wrong) -> str:
    seen = raw(f"<p>Seen: {linked(wrong.source)}.</p>")
    printed = f"```text\n{verdict(name, i)}```"
    return "\n\n".join([f"## {wrong.name}", seen, f"`right.wrong[{i}]`:", _code(as_written(name, wrong)), printed])


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def right(module: ModuleType) -> str:
    """The forward and the backward as they are written, with what they call in their file."""
    text = inspect.getsource(module)
    body = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name != "make_args"]
    return "\n\n\n".join(ast.get_source_segment(text, node) or "" for node in body)


def as_written(name: str, wrong: Wrong) -> str:
    """The wrong backward as the corpus has it: what is done to the right one, or a function of its own."""
    text = inspect.getsource(importlib.import_module(f"bpref.corpus.{name}"))
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    made = {ast.literal_eval(c.args[0]): c.args[1] for c in calls if ast.unparse(c.func) == "Wrong"}
    backward = made[wrong.name]
    return inspect.cleandoc(ast.get_source_segment(text, backward) or "")
