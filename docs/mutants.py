"""What the checker says of each rule's backward with one step changed: asked once, and shown on the rule's page.

`python -m docs.mutants [RULE ...]` asks, and writes docs/mutants.json. The steps are those of the backward's program in
the rule's first case, at small sizes; a few are changed, in as many lines, and those that compute something else shown.
"""

import html
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

import bpref
from bpref.rule import Rule
from bpref.verify.mutating.changes import Change
from bpref.verify.mutating.mutants import Mutant, all_mutants
from bpref.verify.report import BY_GRAVITY, IMPRECISE, OK, WRONG
from bpref.verify.rules.draw import Example, axes_of, draw_many, sized
from docs import by_rule
from docs.mistakes import row, table

FILE = Path(__file__).parent / "mutants.json"

MOST = 4
"""Mutants of a rule; twice as many changes are tried."""

SIZES = (3, 4, 2, 5)
"""Of the axes that a case leaves open, in turn."""

POINTS = 5
"""Where a mutant must compute something else than the backward does."""


class Asked(NamedTuple):
    """A mutant, and the verdict on it.

    Attributes:
      change: what was done to the step.
      line: the line of code that the step came from; shown as long as it stands there.
      where, kind, said: of the first finding, where there is one: the argument, its kind, what was seen.
    """

    change: str
    line: str
    where: str
    kind: str
    said: str


def asked(rule: Rule) -> list[Asked]:
    """A few mutants of a rule's backward, each with what `bpref.check` says of it."""
    case = rule.cases[0]
    with jax.enable_x64(True):
        sizes = sized(case, dict(zip(axes_of(case), cycle(SIZES), strict=False)))
        examples = list(draw_many(rule, case, sizes, range(POINTS)))
        points = [_arguments(example) for example in examples]
    layer = examples[0].layer
    found = all_mutants(layer.backward, *points[0], points=points, chosen=_from_every_line)
    chosen = [mutant for mutant in found if not mutant.equivalent][:MOST]
    return [_verdict(examples, mutant) for mutant in chosen]


def _arguments(example: Example) -> tuple[PyTree, PyTree, PyTree]:
    """What a backward is called with, of an example."""
    _, cache = example.layer.forward(example.params, example.x)
    return jax.tree.map(np.asarray, (example.params, cache, jax.tree.map(lambda dy: dy[0], example.dys)))


def _from_every_line(changes: list[Change]) -> list[Change]:
    """The first change of each line of code, then the second of each, and so on, until there are enough."""
    by_line = defaultdict(list)
    for change in changes:
        by_line[_place(change.name)].append(change)
    turns = (change for turn in zip_longest(*by_line.values()) for change in turn if change)
    return list(islice(turns, 2 * MOST))


def _verdict(examples: Sequence[Example], mutant: Mutant) -> Asked:
    """Of the first example in which the mutant is wrong: at one value of an index it may be right, or unknown.

    One that is never wrong may have another subgradient at a kink, which is said of it.
    """
    layer = examples[0].layer._replace(backward=mutant.backward)
    what, verdict = (mutant.name.rpartition(" (")[0], _code(_place(mutant.name))), OK
    kinks = []
    for example in examples:
        params, x = jax.tree.map(_narrow, (example.params, example.x))
        report = bpref.check(layer, params, x, reference=example.reference, key=1729)
        if report.verdict in (WRONG, IMPRECISE):
            finding = report.findings[0]
            return Asked(*what, finding.where, finding.kind, finding.detail.partition("\n")[0])
        verdict = min(verdict, report.verdict, key=BY_GRAVITY.index)
        kinks += [Asked(*what, f.where, f.kind, f.detail) for f in report.findings if f.kind == "kink"]
    return kinks[0] if kinks and verdict == OK else Asked(*what, "", verdict, "")


def _narrow(v: np.ndarray) -> np.ndarray:
    return np.asarray(v, {np.float64: np.float32, np.complex128: np.complex64}.get(v.dtype.type, v.dtype))


def _place(name: str) -> str:
    return name.rpartition(" (")[2].rstrip(")")


def _code(place: str) -> str:
    """The line that `file.py:12` names, of the one file of bpref with that name; empty if there is none, or several."""
    name, _, number = place.partition(":")
    files = list(Path(bpref.__file__).parent.rglob(name)) if name.endswith(".py") else []
    return files[0].read_text(encoding="utf-8").splitlines()[int(number) - 1].strip() if len(files) == 1 else ""


@cache
def of_all() -> dict[str, list[Asked]]:
    """What was asked, by rule."""
    return {name: [Asked(*one) for one in found] for name, found in by_rule.read(FILE).items()}


@cache
def _lines() -> frozenset[str]:
    """Every line of code that there is."""
    files = Path(bpref.__file__).parent.rglob("*.py")
    return frozenset(line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines())


def to_page(name: str) -> str:
    """The mutants of a rule as a table."""
    rows = "".join(row(*_cells(one)) for one in of_all().get(name, ()))
    return table(("one step changed", "in the line", "wrong in", "called", "what is said"), rows) if rows else ""


def _cells(one: Asked) -> tuple[str, ...]:
    change, line, where, kind, said = (html.escape(text, quote=False) for text in one)
    return (
        change,
        f"<code>{line}</code>" if one.line in _lines() - {""} else "",
        where and f"<code>{where}</code>",
        f"<code>{kind}</code>",
        said,
    )


if __name__ == "__main__":
    sys.exit(by_rule.main(FILE, asked, "python -m docs.mutants", "Ask the checker about mutants."))
