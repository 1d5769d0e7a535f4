"""The figures of sequences: read and written as JSON, shown as Markdown."""

import json
import platform
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.contest import Outcome
from benchmarks.paired import Ratio

HEADER = "| computation | rival | temp memory | time |\n| --- | --- | --- | --- |"
LENGTHS_HEADER = "| T | temp MB | ms | temp bytes / T | us / T | ns / T^2 |\n| --- | --- | --- | --- | --- | --- |"


class Length(NamedTuple):
    """One point of a series: a length T, the temp bytes and the median seconds by hand."""

    T: int
    temp: int
    seconds: float

    def __str__(self) -> str:
        per_step = (
            f"{self.temp / self.T:,.0f} | {1e6 * self.seconds / self.T:.1f} | {1e9 * self.seconds / self.T**2:.1f}"
        )
        return f"| {self.T} | {self.temp / 1e6:.1f} | {1e3 * self.seconds:.0f} | {per_step} |"


class Figures(NamedTuple):
    """The rows by contest and rival, and the series by name."""

    rows: dict[str, Outcome]
    series: dict[str, list[Length]]


def read(path: Path) -> Figures:
    """What `write` wrote; nothing where there is no file yet."""
    if not path.exists():
        return Figures({}, {})
    content = json.loads(path.read_text())
    rows = {
        name: Outcome(**row | {"time": Ratio(**row["time"]), "temp": tuple(row["temp"])})
        for name, row in content["rows"].items()
    }
    return Figures(rows, {name: [Length(**point) for point in points] for name, points in content["series"].items()})


def write(path: Path, figures: Figures) -> None:
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
    rows = {name: row._asdict() | {"time": row.time._asdict()} for name, row in figures.rows.items()}
    series = {name: [point._asdict() for point in points] for name, points in figures.series.items()}
    path.write_text(json.dumps({"machine": machine, "rows": rows, "series": series}, indent=1) + "\n")


def tables(figures: Figures) -> str:
    """The tables that the benchmark prints."""
    parts = ["\n".join([HEADER, *map(str, figures.rows.values())])]
    for name, points in figures.series.items():
        parts.append("\n".join([f"{name}, by hand, 8 heads of 64:\n", LENGTHS_HEADER, *map(str, points)]))
    return "\n\n".join(parts) + "\n"
