"""Showing a report: with colour and columns on a terminal, as plain text when piped; as JSON; as an exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Protocol

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bpref.cli import writing
from bpref.verify.audit import AuditReport, SiteReport
from bpref.verify.report import CANNOT_TELL, IMPRECISE, NOT_RUN, OK, WRONG, Report
from bpref.verify.searching.search import SearchReport

STYLES = {OK: "green", WRONG: "bold red", IMPRECISE: "yellow", CANNOT_TELL: "magenta", NOT_RUN: "magenta"}
EXIT_CODES = {OK: 0, WRONG: 1, IMPRECISE: 1, CANNOT_TELL: 3, NOT_RUN: 3}
STDOUT = "-"

AnyReport = Report | AuditReport | SearchReport


def require_writable(json_file: str | None) -> None:
    """Raise `UsageError` unless the JSON can be written there."""
    if json_file not in (None, STDOUT):
        writing.require_writable("--json", Path(json_file))


def deliver(report: AnyReport, json_file: str | None) -> int:
    """Write the report's JSON (to `-`: in place of what is shown), show it, and return the exit code."""
    if json_file == STDOUT:
        print(report.to_json())
    else:
        if json_file is not None:
            writing.write("--json", Path(json_file), report.to_json() + "\n")
        show(report)
    return EXIT_CODES[verdict_of(report)]


class HasJson(Protocol):
    def to_json(self) -> str: ...


def deliver_text(report: HasJson, json_file: str | None) -> None:
    """Write a report's `to_json()` as `deliver` does, and print it where stdout is not for the JSON."""
    if json_file == STDOUT:
        print(report.to_json())
        return
    if json_file is not None:
        writing.write("--json", Path(json_file), report.to_json() + "\n")
    print(report)


def verdict_of(report: AnyReport) -> str:
    """Of a search, that of the case that failed; without one, ok or, where nothing was decided, cannot tell."""
    if not isinstance(report, SearchReport):
        return report.verdict
    return report.report.verdict if report.report else OK if report.ok else CANNOT_TELL


def show(report: AnyReport) -> None:
    """Print it, with columns and colour where there is a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        print(report)
        return
    for part in _parts(report):
        console.print(part, soft_wrap=isinstance(part, Text))


@contextmanager
def stdout_for_json(json_file: str | None) -> Iterator[None]:
    """What the user's code prints goes to stderr where stdout is for the JSON."""
    with redirect_stdout(sys.stderr) if json_file == STDOUT else nullcontext():
        yield


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner while something takes long, where there is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _parts(report: AnyReport) -> Iterator[RenderableType]:
    match report:
        case Report():
            yield _heading(report.name, f"{report.oracle}   key {report.key}")
            yield _verdicts(report)
            yield from (Text(f"  note: {note}", "dim") for note in report.notes)
        case SearchReport():
            heading, *after = str(report._replace(report=None, snippet="")).splitlines()
            if report.report is None:
                yield Text(heading)
                yield from map(Text, after)
                return
            tried = f"{report.tried} cases, {report.refused} refused, {report.undecided} undecided"
            yield _heading(report.name, f"{tried}   key {report.key}", Text("FAILS", STYLES[WRONG]))
            yield from _parts(report.report)
            yield Text(f"\n{report.snippet}")
        case AuditReport():
            rules = f"{len(report.sites)} custom rule{'s' * (len(report.sites) != 1)}"
            yield _heading(report.name, f"{rules}   key {report.key}")
            for site in report.sites:
                yield from _of_site(site)


def _of_site(site: SiteReport) -> Iterator[RenderableType]:
    yield Text.assemble(f"  {site.name} ({site.kind})   ", _word(site.verdict))
    if site.place:
        yield Text(f"    {site.place}", "dim")
    if site.detail:
        yield Text(f"    {site.detail}")
    wrong = next((r for r in site.reports if r.verdict == site.verdict and not r.ok), None)
    if wrong:
        yield Padding(_verdicts(wrong), (0, 0, 0, 2))


def _heading(name: str, about: str, outcome: Text | None = None) -> Text:
    middle = [outcome, "   "] if outcome else []
    return Text.assemble((name, "bold"), "   ", *middle, (about, "dim"))


def _verdicts(report: Report) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 3, 0, 0), pad_edge=True)
    for column in ("", "where", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("detail", overflow="fold")
    for v in report.verdicts:
        table.add_row("", v.where, _word(v.verdict), Text(v.detail))
    return table


def _word(verdict: str) -> Text:
    return Text(verdict if verdict == OK else verdict.upper(), STYLES[verdict])
