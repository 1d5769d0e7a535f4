"""The figures of rules: one row each, read and written as JSON, shown as Markdown."""

import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.paired import Ratio
from bpref.rules import KINDS


class Beside(NamedTuple):
    """By hand beside one rival: the ratio of times, and bytes, by hand and by the rival, of the timed case.

    Attributes:
      time: hand / rival, forward and backward.
      temp: what XLA allocates beside inputs and outputs.
      cache: what the forward leaves for the backward.
    """

    time: Ratio
    temp: tuple[int, int]
    cache: tuple[int, int]

    @property
    def temp_ratio(self) -> float:
        return ratio_of(self.temp)

    @property
    def cache_ratio(self) -> float:
        return ratio_of(self.cache)


class Errors(NamedTuple):
    """What `bpref verify` says of a rule.

    Attributes:
      float64: the largest relative error.
      float32, bfloat16: 99th percentiles in ulps, by hand and by autodiff.
      is_right: whether it finds nothing wrong.
    """

    float64: float
    float32: tuple[float, float]
    bfloat16: tuple[float, float]
    is_right: bool


class Row(NamedTuple):
    """The figures of one rule.

    Attributes:
      kind, case: where the rule stands, and which of its cases was timed.
      own: beside autodiff of bpref's own forward.
      plain: beside autodiff of the best plain form.
      errors: those of `bpref verify`.
    """

    kind: str
    case: str
    own: Beside
    plain: Beside
    errors: Errors


def ratio_of(both: tuple[int, int]) -> float:
    """By hand / by autodiff; 1 where neither keeps anything."""
    hand, autodiff = both
    return hand / autodiff if autodiff else 1.0 if hand == 0 else float("inf")


def error_ratio(both: tuple[float, float]) -> float:
    """By hand / by autodiff, where less than half an ulp is as good as none."""
    hand, autodiff = (max(v, 0.5) for v in both)
    return hand / autodiff


HEADERS = (
    "rule", "time / own forward's", "/ plain form's", "temp / own", "/ plain", "cache / own", "/ plain",
    "float64", "float32 ulps / autodiff's", "bfloat16 ulps / autodiff's",
)  # fmt: skip
HEADER = f"| {' | '.join(HEADERS)} |\n{'| --- ' * len(HEADERS)}|"


def line(name: str, row: Row) -> str:
    own, plain, errors = row.own, row.plain, row.errors
    ulps = (" / ".join(f"{v:.3g}" for v in pair) for pair in (errors.float32, errors.bfloat16))
    bytes_ = (own.temp_ratio, plain.temp_ratio, own.cache_ratio, plain.cache_ratio)
    figures = (f"{own.time}", f"{plain.time}", *(f"{v:.2f}" for v in bytes_), f"{errors.float64:.0e}", *ulps)
    return f"| {' | '.join([name, *figures])} |" + ("" if errors.is_right else " WRONG")


def by_kind(rows: dict[str, Row]) -> str:
    """A line for each kind, and one for all: of time geometric means, of bytes medians, and the worst rule by name."""
    kinds = {
        kind: {n: r for n, r in rows.items() if r.kind == kind} for kind in dict.fromkeys(r.kind for r in rows.values())
    }
    headers = ("rules", "bytes kept / own", "/ plain", "time / own", "/ plain", "float64", "float32 error")
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for kind, of in [*kinds.items(), ("all", rows)]:
        figures = (
            *(_kept_and_worst(of, beside) for beside in RIVALS.values()),
            *(_time_and_worst(of, beside) for beside in RIVALS.values()),
            _worst({n: r.errors.float64 for n, r in of.items()}, "{:.0e}"),
            _mean_and_worst({n: error_ratio(r.errors.float32) for n, r in of.items()}),
        )
        lines.append(f"| {len(of)} {kind} | {' | '.join(figures)} |")
    return "\n".join([*lines, "", counts(rows)])


RIVALS: dict[str, Callable[[Row], Beside]] = {
    "autodiff of bpref's own forward": lambda row: row.own,
    "autodiff of the best plain form": lambda row: row.plain,
}


def counts(rows: dict[str, Row]) -> str:
    """How many rules keep little, and which are slow, in sentences."""
    own = {name: row.own for name, row in rows.items()}
    half = sum(beside.cache_ratio <= 0.5 for beside in own.values())
    named = ", ".join(f"`{n}` {own[n].time.median:.2f} ({SLOW_SINCE.get(n, 'not looked into')})" for n in slow(rows))
    return (
        f"{half} of {len(rows)} rules keep at most half of what autodiff of their own forward keeps. "
        f"Above {SLOW} of its time: {named or 'none'}."
    )


SLOW = 1.1
SLOW_SINCE = {
    "soft_cap": "its slope has all digits near the cap, by an exponential and a division; autodiff squares the tanh of "
    "the forward",
    "column_parallel_linear": "with all blocks on one device their products are added up along a first axis, which XLA "
    "on a CPU does slowly, and autodiff makes one product; on a mesh each device makes its own",
    "soft_dtw": "it makes the exponentials again, and keeps an eighth",
}
"""Why, as the compiled program shows it."""


def slow(rows: dict[str, Row]) -> list[str]:
    """The rules that take more than `SLOW` of the time of autodiff of their own forward, the slowest first."""
    times = {name: row.own.time.median for name, row in rows.items()}
    return sorted((name for name, time in times.items() if time > SLOW), key=lambda name: -times[name])


def short(rows: dict[str, Row]) -> str:
    """One line for each rival: bytes kept, temp memory, and time, over all rules."""
    headers = (
        f"{len(rows)} rules, by hand beside",
        "bytes kept, median",
        "temp memory, median",
        "time, geometric mean",
    )
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for name, beside in RIVALS.items():
        temp = np.median([beside(row).temp_ratio for row in rows.values()])
        lines.append(f"| {name} | {_kept_and_worst(rows, beside)} | {temp:.2f} | {_time_and_worst(rows, beside)} |")
    return "\n".join(lines) + "\n"


def kept(rows: Iterable[Row], beside: Callable[[Row], Beside]) -> float:
    """The median of the bytes kept, where either side keeps any."""
    return float(np.median([beside(r).cache_ratio for r in rows if any(beside(r).cache)]))


def _kept_and_worst(rows: dict[str, Row], beside: Callable[[Row], Beside]) -> str:
    """Nothing where neither side keeps anything."""
    ratios = {n: beside(r).cache_ratio for n, r in rows.items() if any(beside(r).cache)}
    return f"{kept(rows.values(), beside):.2f} (at most {_worst(ratios, '{:.2f}')})" if ratios else ""


def _time_and_worst(rows: dict[str, Row], beside: Callable[[Row], Beside]) -> str:
    return _mean_and_worst({n: beside(r).time.median for n, r in rows.items()})


def _mean_and_worst(figures: dict[str, float]) -> str:
    return f"{np.exp(np.log(list(figures.values())).mean()):.2f} (at most {_worst(figures, '{:.2f}')})"


def _worst(figures: dict[str, float], form: str) -> str:
    name, value = max(figures.items(), key=lambda item: item[1])
    return f"{form.format(value)}, {name}"


def read(path: Path) -> dict[str, Row]:
    """The rows of an earlier run, if there was one."""
    if not path.exists():
        return {}
    return {name: _row(row) for name, row in json.loads(path.read_text())["rules"].items()}


def _row(row: dict) -> Row:
    own, plain = (
        Beside(Ratio(**row[rival]["time"]), tuple(row[rival]["temp"]), tuple(row[rival]["cache"]))
        for rival in ("own", "plain")
    )
    errors: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row["errors"].items()}
    return Row(row["kind"], row["case"], own, plain, Errors(**errors))


def write(path: Path, rows: dict[str, Row]) -> None:
    """The rows, kind by kind."""
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
    in_order = [name for names in KINDS.values() for name in names]
    plain = {name: _as_dict(rows[name]) for name in sorted(rows, key=in_order.index)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rules": plain}, indent=1) + "\n")


def _as_dict(v: object) -> object:
    """Named tuples as dicts, all the way down."""
    fields = getattr(v, "_asdict", None)
    return {k: _as_dict(w) for k, w in fields().items()} if fields else v
