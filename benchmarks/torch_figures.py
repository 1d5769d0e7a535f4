"""What `bench_torch` found of the corpus in the form of PyTorch, as a file and as tables; reads no PyTorch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """Of one function asked about in one way, how many derivations wrong in one way were caught of how many.

    The right derivation has no `kind`, and `found` says how often it was accused.
    """

    function: str
    way: str
    kind: str
    found: int
    of: int


def read(path: Path) -> list[Row]:
    return [Row(*row) for row in json.loads(path.read_text())] if path.exists() else []


def write(path: Path, known: list[Row]) -> None:
    path.write_text("[\n" + ",\n".join(map(json.dumps, known)) + "\n]\n")


def _sum(known: Iterable[Row]) -> str:
    found, of = (sum(v) for v in zip((0, 0), *((r.found, r.of) for r in known), strict=True))
    return f"{found:,} of {of:,}" if of else "not run"


def table(known: list[Row]) -> str:
    """A line for each way of asking, then one for each kind of what is wrong, and how many functions were reached."""
    lines = ["| PyTorch functions | wrong ones caught | right ones accused |", "| --- | --- | --- |"]
    for way in dict.fromkeys(r.way for r in known):
        caught, accused = (_sum(r for r in known if r.way == way and bool(r.kind) == w) for w in (True, False))
        lines.append(f"| {way} | {caught} | {accused} |")
    lines += ["", "| what is wrong | caught |", "| --- | --- |"]
    kinds = sorted({r.kind for r in known} - {""})
    lines += [f"| {kind} | {_sum(r for r in known if r.kind == kind)} |" for kind in kinds]
    right, wrong = (len({r.function for r in known if bool(r.kind) == w}) for w in (False, True))
    return "\n".join([*lines, "", f"Right ones of {right} functions, wrong ones of {wrong}."]) + "\n"
