"""`bpref rules`: the catalogue, each rule with its figures and the source of its formula."""

import json
import os
from importlib.resources import files
from typing import Annotated, TypedDict

import typer
from rich.console import Console
from rich.table import Table

from bpref.cli.errors import blaming_the_input
from bpref.nearest import meant
from bpref.rules import KINDS, RULES


class Errors(TypedDict):
    float64: float
    float32: list[float]


class Rival(TypedDict):
    """By hand and by autodiff: bytes kept, and the ratio of the times."""

    cache: tuple[int, int]
    time: dict[str, float]


class Row(TypedDict):
    """What the benchmark has seen of a rule, beside autodiff of its own forward and of the plain one."""

    errors: Errors
    own: Rival
    plain: Rival


class Figures(TypedDict, total=False):
    machine: dict[str, str]
    rules: dict[str, Row]


FIGURES = "figures.json"
"""Beside the rules; `python -m benchmarks.bench_rules --json bpref/rules/figures.json` measures it again."""


def rules(
    kind: Annotated[str | None, typer.Option(metavar="KIND", help=f"One of {', '.join(KINDS)}.")] = None,
) -> None:
    """List the catalogue: what each rule is found by, its error, memory and time beside two rivals', its source.

    Errors are relative in float64, and in float32 in units of the last place (99th percentile), by hand / by jax.vjp.
    Cache and time are ratios by hand / by autodiff: of the rule's own forward, and of the best plain form. Below 1 is
    better.
    """
    with blaming_the_input():
        if kind is not None:
            kind = meant("kind", kind, KINDS)
    console = Console(width=None if os.isatty(1) else 1000)
    measured = read_figures()
    shown = [(k, name) for k, names in KINDS.items() for name in names if kind in (None, k)]
    console.print(_table(shown, measured.get("rules", {})))
    machine = measured.get("machine")
    where = f"; figures: jax {machine['jax']} on {machine['device']}" if machine else ""
    console.print(
        f"{len(shown)} rules{where}; `bpref explain NAME` shows a derivation, `bpref verify NAME` verifies it"
    )


def read_figures() -> Figures:
    """What the benchmark has last seen of every rule; nothing where it was not run."""
    file = files("bpref.rules") / FIGURES
    return json.loads(file.read_text()) if file.is_file() else {}


def _table(shown: list[tuple[str, str]], figures: dict[str, Row]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in ("rule", "kind", "also"):
        table.add_column(header)
    for header in ("float64", "float32 ulps", "cache / own", "time / own", "cache / plain", "time / plain"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("source")
    for kind, name in shown:
        rule = RULES[name]
        seen = _seen(figures[name]) if name in figures else ("",) * 6
        table.add_row(name, kind, ", ".join(rule.covers), *seen, rule.cite)
    return table


def _seen(row: Row) -> tuple[str, ...]:
    errors = row["errors"]
    ulps = " / ".join(f"{v:.1f}" if v < 1e3 else f"{v:.0e}" for v in errors["float32"])
    return f"{errors['float64']:.0e}", ulps, *_beside(row["own"]), *_beside(row["plain"])


def _beside(rival: Rival) -> tuple[str, str]:
    hand, autodiff = rival["cache"]
    cache = f"{hand / autodiff:.2f}" if autodiff else "1.00" if hand == 0 else "inf"
    return cache, f"{rival['time']['median']:.2f}"
