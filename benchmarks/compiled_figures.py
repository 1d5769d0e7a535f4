"""What `bpref compile` has seen of the catalogue and the models, for a TPU and a GPU, in Markdown.

bpref compile --for tpu-v5e --json benchmarks/results/compiled_tpu_v5e.json
bpref compile --for h100 --json benchmarks/results/compiled_h100.json
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.compiled_reasons import REASONS

RESULTS = Path(__file__).parent / "results"
FILES = {"TPU v5e": RESULTS / "compiled_tpu_v5e.json", "H100": RESULTS / "compiled_h100.json"}
"""By device, as the tables call it."""

FIELDS = {"temp": "temp memory", "accessed": "bytes accessed", "cycles": "cycles"}

SLIGHT = 1.02
"""A ratio up to this is as good as 1."""
TINY = 64 * 1024
"""So many bytes more are as good as none: a thousandth of what a chip keeps beside its memory."""


class Pair(NamedTuple):
    """A figure by hand and by autodiff of the same forward."""

    hand: int
    autodiff: int

    @property
    def ratio(self) -> float:
        return self.hand / self.autodiff if self.autodiff else 1.0 if self.hand == 0 else float("inf")

    @property
    def is_worse(self) -> bool:
        return self.ratio > SLIGHT and self.hand - self.autodiff > TINY


Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By device and name, the rows that the command has written."""


def read(files: Mapping[str, Path] = FILES) -> Figures:
    return {device: json.loads(file.read_text())["rows"] for device, file in files.items()}


def pair(row: Mapping[str, Any], field: str) -> Pair | None:
    """Nothing where the compiler does not say, or where one of both does not fit."""
    sides = [row[side] for side in ("hand", "autodiff")]
    hand, autodiff = (None if isinstance(side, str) else side[field] for side in sides)
    return None if hand is None or autodiff is None else Pair(hand, autodiff)


def mean(rows: Mapping[str, Mapping[str, Any]], field: str) -> str:
    """The geometric mean where both need any, and the largest; nothing where the compiler says nothing."""
    ratios = {name: p.ratio for name, row in rows.items() if (p := pair(row, field)) and p.hand and p.autodiff}
    if not ratios:
        return ""
    worst = max(ratios, key=lambda name: ratios[name])
    of = "" if len(ratios) == len(rows) else f" of {len(ratios)}"
    return f"{np.exp(np.mean(np.log(list(ratios.values())))):.2f}{of} (at most {ratios[worst]:.2f}, {worst})"


def table(headers: list[str], lines: list[list[str]]) -> str:
    return "\n".join(
        [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|", *(f"| {' | '.join(c)} |" for c in lines)]
    )


def of_rules(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: row for name, row in rows.items() if row["kind"] != "model"}


def short(figures: Figures) -> str:
    """A line for each device: geometric means over the rules, and gpt's memory."""
    headers = [
        "compiled for",
        *(f"rules: {called}" for called in FIELDS.values()),
        "gpt: temp memory, by hand / autodiff",
    ]
    lines = []
    for device, rows in figures.items():
        gpt = pair(rows["gpt"], "temp") if "gpt" in rows else None
        memory = f"{gpt.hand / 1e6:.0f} / {gpt.autodiff / 1e6:.0f} MB" if gpt else ""
        lines.append([device, *(mean(of_rules(rows), field) for field in FIELDS), memory])
    return table(headers, lines)


def by_kind(figures: Figures) -> str:
    """A line for each kind of rule, and for each device its figures."""
    kinds = list(dict.fromkeys(row["kind"] for rows in figures.values() for row in of_rules(rows).values()))
    columns = [(device, field) for device in figures for field in FIELDS if mean(figures[device], field)]
    lines = []
    for kind in [*kinds, "all"]:
        of_kind = {
            device: {name: row for name, row in of_rules(rows).items() if kind in (row["kind"], "all")}
            for device, rows in figures.items()
        }
        lines.append([kind, *(mean(of_kind[device], field) for device, field in columns)])
    return table(["rules", *(f"{device}: {FIELDS[field]}" for device, field in columns)], lines)


def models(figures: Figures) -> str:
    names = list(dict.fromkeys(n for rows in figures.values() for n, row in rows.items() if row["kind"] == "model"))
    return _rows(figures, names)


def rules(figures: Figures) -> str:
    return _rows(figures, list(dict.fromkeys(n for rows in figures.values() for n in of_rules(rows))))


def _rows(figures: Figures, names: list[str]) -> str:
    """By hand / by autodiff, in MB, and the ratio."""
    columns = [(device, field) for device in figures for field in FIELDS if mean(figures[device], field)]
    headers = [f"{device}: {FIELDS[field]}{'' if field == 'cycles' else ', MB'}" for device, field in columns]
    lines = []
    for name in names:
        of_name = [figures[device].get(name) for device, _ in columns]
        cells = [_cell(row, field) for row, (_, field) in zip(of_name, columns, strict=True)]
        lines.append([name, *cells])
    return table(["", *headers], lines)


def _cell(row: Mapping[str, Any] | None, field: str) -> str:
    both = pair(row, field) if row else None
    if both is None:
        return ""
    if field == "cycles":
        return f"{both.ratio:.2f}"
    ratio = "" if both.ratio in (1, float("inf")) else f": {both.ratio:.2f}"
    return f"{both.hand / 1e6:,.2f} / {both.autodiff / 1e6:,.2f}{ratio}"


def worse(figures: Figures) -> dict[str, list[str]]:
    """What takes more by hand, by rule or model, and how much more on which device."""
    found: dict[str, list[str]] = {}
    for device, rows in figures.items():
        for name, row in rows.items():
            for field in ("temp", "accessed"):
                both = pair(row, field)
                if both and both.is_worse:
                    found.setdefault(name, []).append(f"{device}, {FIELDS[field]}, MB: {_cell(row, field)}")
    return found


def reasons(figures: Figures) -> str:
    """Each of these, and why."""
    lines = [[name, "; ".join(where), REASONS[name]] for name, where in worse(figures).items()]
    return table(["", "by hand / by autodiff, ratio", "why"], lines)
