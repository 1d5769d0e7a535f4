"""The figures of rules: one row each, read and written as JSON, shown as Markdown."""

import json
import platform
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.paired import Ratio


class Row(NamedTuple):
    """The figures of one rule, each beside autodiff's.

    Attributes:
      kind, case: where the rule stands, and which of its cases was timed.
      time: hand / autodiff.
      temp, cache: bytes, by hand and by autodiff, of the timed case.
      float64: the largest relative error.
      float32, bfloat16: 99th percentiles in ulps, by hand and by autodiff.
      is_right: whether `bpref verify` finds nothing wrong.
    """

    kind: str
    case: str
    time: Ratio
    temp: tuple[int, int]
    cache: tuple[int, int]
    float64: float
    float32: tuple[float, float]
    bfloat16: tuple[float, float]
    is_right: bool

    @property
    def temp_ratio(self) -> float:
        return ratio_of(self.temp)

    @property
    def cache_ratio(self) -> float:
        return ratio_of(self.cache)


def ratio_of(both: tuple[int, int]) -> float:
    """By hand / by autodiff; 1 where neither keeps anything."""
    hand, autodiff = both
    return hand / autodiff if autodiff else 1.0 if hand == 0 else float("inf")


def error_ratio(both: tuple[float, float]) -> float:
    """By hand / by autodiff, where less than half an ulp is as good as none."""
    hand, autodiff = (max(v, 0.5) for v in both)
    return hand / autodiff


HEADERS = ("rule", "time", "temp", "cache", "float64", "float32 ulps / autodiff's", "bfloat16 ulps / autodiff's")
HEADER = f"| {' | '.join(HEADERS)} |\n{'| --- ' * len(HEADERS)}|"


def line(name: str, row: Row) -> str:
    float32, bfloat16 = (" / ".join(f"{v:.3g}" for v in pair) for pair in (row.float32, row.bfloat16))
    figures = (f"{row.time}", f"{row.temp_ratio:.2f}", f"{row.cache_ratio:.2f}", f"{row.float64:.0e}")
    return f"| {' | '.join([name, *figures, float32, bfloat16])} |" + ("" if row.is_right else " WRONG")


def by_kind(rows: dict[str, Row]) -> str:
    """A line for each kind, and one for all: geometric means (of bytes, medians), and the worst rule by name."""
    kinds = {
        kind: {n: r for n, r in rows.items() if r.kind == kind} for kind in dict.fromkeys(r.kind for r in rows.values())
    }
    lines = ["| rules | time | bytes kept | float64 | float32 error |", "| --- " * 5 + "|"]
    for kind, of in [*kinds.items(), ("all", rows)]:
        figures = (
            _mean_and_worst({n: r.time.median for n, r in of.items()}),
            _median_and_worst({n: r.cache_ratio for n, r in of.items() if any(r.cache)}),
            _worst({n: r.float64 for n, r in of.items()}, "{:.0e}"),
            _mean_and_worst({n: error_ratio(r.float32) for n, r in of.items()}),
        )
        lines.append(f"| {len(of)} {kind} | {' | '.join(figures)} |")
    half = sum(row.cache_ratio <= 0.5 for row in rows.values())
    return "\n".join([*lines, "", f"{half} of {len(rows)} rules keep at most half of what jax.vjp keeps."])


def _mean_and_worst(figures: dict[str, float]) -> str:
    return f"{np.exp(np.log(list(figures.values())).mean()):.2f} (at most {_worst(figures, '{:.2f}')})"


def _median_and_worst(figures: dict[str, float]) -> str:
    """Of ratios that may be 0; nothing where there are none, since neither side keeps anything."""
    return f"{np.median(list(figures.values())):.2f} (at most {_worst(figures, '{:.2f}')})" if figures else ""


def _worst(figures: dict[str, float], form: str) -> str:
    name, value = max(figures.items(), key=lambda item: item[1])
    return f"{form.format(value)}, {name}"


def read(path: Path) -> dict[str, Row]:
    """The rows of an earlier run, if there was one."""
    if not path.exists():
        return {}
    rows = json.loads(path.read_text())["rules"]
    return {
        name: Row(**row | {"time": Ratio(**row["time"])} | {k: tuple(v) for k, v in row.items() if isinstance(v, list)})
        for name, row in rows.items()
    }


def write(path: Path, rows: dict[str, Row]) -> None:
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
    plain = {name: row._asdict() | {"time": row.time._asdict()} for name, row in rows.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rules": plain}, indent=1) + "\n")
