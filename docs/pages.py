"""All pages of the book, each as its name and its Markdown."""

import inspect
import sys
from collections.abc import Collection, Mapping, Sequence

from bpref.corpus import DERIVATIONS
from bpref.nearest import meant
from bpref.rules import KINDS, RULES, other_names
from docs import api, derivation, errata, guide, mistakes, rule_page, seed
from docs.rule_page import path, toctree
from docs.search import raw


def written(rules: Collection[str] | None = None) -> dict[str, str]:
    """Every page; of the rules' only those named, if any are."""
    named = chosen(rules)
    kinds = {kind: [name for name in names if name in named] for kind, names in KINDS.items()}
    of_rules = {path(name): rule_page.page(RULES[name]) for name in named}
    home = HOME.format(count=len(RULES), tree=toctree(CHAPTERS))
    wrong = [f for f in DERIVATIONS if rules is None or any(f in mistakes.functions_of(name) for name in named)]
    of_others = seed.pages() | errata.pages(wrong) | guide.pages() | api.pages()
    return of_rules | catalogue(kinds) | of_others | {"index": home}


def chosen(rules: Collection[str] | None) -> list[str]:
    """The rules that are named, by any of their names; all, if none is."""
    named = {meant("rule", name, RULES, other_names()) for name in rules} if rules else set(RULES)
    return [name for name in RULES if name in named]


def catalogue(kinds: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The page of each kind that has rules, and the one that lists all of them."""
    kinds = {kind: names for kind, names in kinds.items() if names}
    return {f"rules/{kind}/index": _kind(kind, names) for kind, names in kinds.items()} | {"rules/index": _all(kinds)}


def question(name: str) -> str:
    """What a rule is about: the first line of its derivation."""
    module = sys.modules[RULES[name].make.__module__]
    return derivation.sections(inspect.cleandoc(module.__doc__ or ""))[0].partition(": ")[2]


def _kind(kind: str, names: Sequence[str]) -> str:
    return f"# {_title(kind)}\n\n{_listed(names, '')}\n\n{toctree(names)}\n"


def _all(kinds: Mapping[str, Sequence[str]]) -> str:
    parts = [f"## {_title(kind)}\n\n{_listed(names, f'{kind}/')}" for kind, names in kinds.items()]
    return "\n\n".join([f"# The rules\n\n{CATALOGUE}", *parts, toctree([f"{kind}/index" for kind in kinds])]) + "\n"


def _title(kind: str) -> str:
    return kind.replace("_", " ").capitalize()


def _listed(names: Sequence[str], folder: str) -> str:
    return raw(f'<dl class="catalogue">{"".join(_entry(name, f"{folder}{name}.html") for name in names)}</dl>')


def _entry(name: str, target: str) -> str:
    also = f' <span class="fine">{", ".join(RULES[name].covers)}</span>' if RULES[name].covers else ""
    return f'<dt><a href="{target}"><code>{name}</code></a>{also}</dt><dd>{derivation.to_html(question(name))}</dd>'


CHAPTERS = ["seed/index", "seed/zh", "rules/index", "errata/index", "guide/index", "api/index"]

CATALOGUE = """Each of these pages is one file of the library: its docstring is the derivation, the lines beside it are
the code, and both are held to the same laws by tests."""

HOME = """# Back-propagation, derived by hand

{count} layers and losses, each with its backward pass derived on paper, written down as code, and verified against
automatic differentiation: forward, differential, adjoint, what has to be kept, what it costs, and how people get it
wrong.

- [Chapter one](seed/index.md) derives the network that all began with, equation by equation, with numbers that can be
  followed with a pencil, and a network that answers when a weight is changed. [中文](seed/zh.md)
- [The rules](rules/index.md): from `linear` to attention, CTC and the singular value decomposition.
- [Errata](errata/index.md): derivations that stood in public and were wrong, and what the checker says of them.
- [The guide](guide/index.md): check a gradient of your own, train, compile for a TPU without one.
- [Every public name](api/index.md).

{tree}
"""
