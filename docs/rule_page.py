"""The page of a rule: its question, derivation beside its code, shapes, bytes, mistakes, figures, use, source."""

import html
import inspect
import sys
from collections.abc import Iterable, Iterator

from bpref.cli.bibtex import entries
from bpref.cli.explain import call, shapes
from bpref.rule import Rule
from bpref.rules import KINDS, RULES
from bpref.verify.rules.draw import all_of_size, draw
from docs import (
    arguments,
    cases,
    derivation,
    docstring,
    elsewhere,
    error_plot,
    errors,
    figures,
    flow,
    mistakes,
    mutants,
    snippets,
    sources,
)
from docs.prose import to_html
from docs.search import UNSEARCHED, raw

BESIDE_THE_CODE = ("", "Forward", "Differential and adjoint", "Kinks", "Ties", "How")
"""Sections that stand beside the lines of code; all others stand below."""

ALIKE = ("Shapes", "Time and memory", "Run it", "Check yours", "Tried on")
"""Sections whose words are on every page."""

KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


def path(name: str) -> str:
    """The page of a rule, from the root of the site, without its ending."""
    return f"rules/{KIND_OF[name]}/{name}"


def link(name: str) -> str | None:
    """Where a name in backticks leads from a rule's page."""
    name = name.removeprefix("bpref.")
    return f"../../{path(name)}.html" if name in KIND_OF else None


def page(rule: Rule) -> str:
    """The page's Markdown; what is more than text is HTML in it."""
    question, found = derivation.sections(inspect.cleandoc(sys.modules[rule.make.__module__].__doc__ or ""))
    question = question.partition(": ")[2]
    blocks = [
        "---\nhide-toc: true\n---",
        f"# {rule.name}",
        raw(f'<p class="question">{to_html(question, link)}</p>{_also(rule)}'),
        raw(flow.to_svg(flow.of_rule(rule))),
        raw(_beside(rule, found)),
        *(f"{UNSEARCHED if title in ALIKE else ''}## {title}\n\n{body}" for title, body in _below(rule, found) if body),
    ]
    return "\n\n".join(blocks) + "\n"


def toctree(names: Iterable[str]) -> str:
    """The pages below a page, where they are listed on it already."""
    return "\n".join(["```{toctree}", ":hidden:", ":maxdepth: 1", "", *names, "```"])


def _also(rule: Rule) -> str:
    others = f" Also: {', '.join(map(html.escape, rule.covers))}." if rule.covers else ""
    kind = KIND_OF[rule.name]
    return f'<p class="fine">Rule of <a href="index.html">{kind.replace("_", " ")}</a>.{others}</p>'


def _beside(rule: Rule, found: list[derivation.Section]) -> str:
    case = rule.cases[0]
    layer = draw(rule, case, all_of_size(case, 3), seed=0).layer
    code = "\n".join(sources.to_page(source) for source in sources.of_layer(rule.make, layer))
    text = "\n".join(
        (f"<h2>{section.title}</h2>\n" if section.title else "") + derivation.to_page(section, link)
        for section in found
        if section.title in BESIDE_THE_CODE
    )
    return f'<div class="beside"><div>{text}</div>\n<div class="code-of"><h2>In code</h2>{code}</div></div>'


def _below(rule: Rule, found: list[derivation.Section]) -> Iterator[tuple[str, str]]:
    for section in found:
        if section.title not in BESIDE_THE_CODE:
            seen = MEASURED[section.title](rule.name) if section.title in MEASURED else ""
            yield section.title, raw(derivation.to_page(section, link) + "\n" + seen)
    declared = "\n".join(dict.fromkeys(shapes(rule)))
    yield (
        "Shapes",
        declared and f"All else is refused by name, before anything is computed.\n\n```text\n{declared}\n```",
    )
    measured = figures.to_page(rule.name)
    yield "Time and memory", measured and raw(measured)
    yield "How it goes wrong", "\n\n".join(_wrong(rule.name))
    yield "How it is called", f"```python\n{call(rule.make)}\n```\n\n" + raw(docstring.to_page(rule.make, link))
    yield "Run it", f"```python\n{snippets.use(rule)}\n```"
    others = elsewhere.to_page(rule.name) + arguments.to_page(rule.name)
    yield "Equal elsewhere", others and raw(others)
    yield "Check yours", f"{YOURS.replace('NAME', rule.name)}\n\n```python\n{snippets.check(rule)}\n```"
    yield "Tried on", f"{LAWS}\n\n{raw(cases.to_page(rule))}"
    yield "Source", f"{RULES[rule.name].cite}.\n\n```bibtex\n{(chr(10) * 2).join(entries(rule))}\n```"


def _wrong(name: str) -> Iterator[str]:
    if mistaken := mistakes.to_page(name):
        yield f"{UNSEARCHED}{WRONG}\n\n{raw(mistaken)}"
    if changed := mutants.to_page(name):
        yield f"{UNSEARCHED}{CHANGED}\n\n{raw(changed, is_searched=False)}"


def _errors(name: str) -> str:
    pairs = errors.of_all().get(name)
    plot = f'{error_plot.to_svg(name, pairs)}<p class="fine">{ERRORS}</p>' if pairs else ""
    return plot + figures.in_fewer_bits(name)


ERRORS = """Errors of the gradient in float32, the 99th percentile of all its elements, in the first case below with its
real inputs multiplied; what overflows leaves a gap."""

MEASURED = {"What is cached": figures.cached, "Numerical care": _errors}
"""What was measured, by the section of the derivation that it stands in."""

WRONG = "Derivations that people got wrong, and what `bpref.check` calls each of them."

CHANGED = """The backward's own program with one step changed, a few of its mutants, in the first call below, and what
`bpref.check` says of each."""

LAWS = """Every law is tested on these calls, at drawn shapes and values: equal to the naive form and its autodiff in
float64, as precise in float32 and bfloat16, linear in the cotangent, jit, vmap, empty inputs, and sabotage."""

YOURS = """Write `yours`, a `jax.custom_vjp` function with your own derivation, and put it in: each argument is `ok`, or
what is wrong with it is said. The reference is the rule's naive form, differentiated in float64. `bpref exercise NAME`
writes a file to derive it in, where a rule stands by itself."""
