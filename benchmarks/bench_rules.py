"""Every rule beside `jax.vjp` of its reference: time, memory, and error, one row for each rule.

    python -m benchmarks.bench_rules [NAME ...] [--kind KIND] [--seconds 0.5] [--json FILE] [--plot FILE]

Timed are forward and backward together, under jit, in float32, at the sizes that the rule's case gives; hand and
autodiff in one process, in turn: the median of their ratios, and its quartiles. `temp` is what XLA allocates beside
inputs and outputs, `cache` what the forward leaves for the backward, both in bytes by hand / by autodiff. The errors
are those of `bpref verify`: relative in float64; in float32 and bfloat16 in ulps (99th percentile) beside autodiff's.
Below 1 is better everywhere. A JSON file is added to: rows of rules that are not named stay as they are.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.paired import Ratio, paired, repetitions
from bpref.nearest import require_known
from bpref.rule import Case, Rule
from bpref.rules import KINDS, RULES
from bpref.verify import verify_rule
from bpref.verify.draw import draw
from bpref.verify.examine import rounded
from bpref.verify.oracle import as_cotangent, bytes_kept, bytes_kept_by_autodiff, with_cotangents

SEED = 0


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


def timed_case(rule: Rule) -> Case:
    """The case that says with which sizes it is timed."""
    return next(case for case in rule.cases if case.timed)


def measure(kind: str, rule: Rule, seconds: float) -> Row:
    case = timed_case(rule)
    example = draw(rule, case, case.timed, SEED)
    params, x, dys = jax.tree.map(jnp.asarray, rounded((example.params, example.x, example.dys), jnp.float32))
    dy = jax.tree.map(lambda v: v[0], dys)

    def by_hand(params, x, dy):
        y, cache = example.layer.forward(params, x)
        return y, example.layer.backward(params, cache, dy)

    def by_autodiff(params, x, dy):
        y, cotangents = with_cotangents(example.reference, params, x)
        return y, cotangents(as_cotangent(dy, y))

    hand, autodiff = (jax.jit(f).lower(params, x, dy).compile() for f in (by_hand, by_autodiff))
    cache = bytes_kept(lambda params, x: example.layer.forward(params, x)[1], params, x)
    report = verify_rule(rule, SEED)
    return Row(
        kind,
        case.name,
        _timed(lambda: hand(params, x, dy), lambda: autodiff(params, x, dy), seconds),
        (_temp(hand), _temp(autodiff)),
        (cache, bytes_kept_by_autodiff(example.reference, params, x)),
        report.float64,
        (float(report.float32.hand.p99), float(report.float32.autodiff.p99)),
        (float(report.bfloat16.hand.p99), float(report.bfloat16.autodiff.p99)),
        report.ok,
    )


def _timed(hand: Callable[[], Any], autodiff: Callable[[], Any], seconds: float) -> Ratio:
    def finished(run):
        return lambda: jax.block_until_ready(run())

    return paired(finished(hand), finished(autodiff), repetitions(autodiff, seconds))


def _temp(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes)


HEADER = "| rule | time | temp | cache | float64 | float32 ulps / autodiff's | bfloat16 ulps / autodiff's |"


def line(name: str, row: Row) -> str:
    float32, bfloat16 = (" / ".join(f"{v:.3g}" for v in pair) for pair in (row.float32, row.bfloat16))
    figures = (f"{row.time}", f"{row.temp_ratio:.2f}", f"{row.cache_ratio:.2f}", f"{row.float64:.0e}")
    return f"| {' | '.join([name, *figures, float32, bfloat16])} |" + ("" if row.is_right else " WRONG")


def summary(rows: dict[str, Row]) -> str:
    """What the figures of all rules come to."""
    medians = np.array([row.time.median for row in rows.values()])
    slow = [name for name, row in rows.items() if row.time.median > 1.10]
    half = sum(row.cache_ratio <= 0.5 for row in rows.values())
    larger = [name for name, row in rows.items() if row.cache_ratio > 1]
    return (
        f"{len(rows)} rules: time {np.exp(np.log(medians).mean()):.2f} (geometric mean), above 1.10: "
        f"{', '.join(slow) or 'none'}; at most half the cache: {half}, a larger one: {', '.join(larger) or 'none'}"
    )


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


def chosen(names: Iterable[str], kind: str | None) -> list[tuple[str, str]]:
    """Pairs (kind, name) of the rules that are asked for; all of them if none is."""
    names = list(names)
    for name in names:
        require_known("rule", name, RULES)
    wanted = set(names or RULES)
    return [(k, name) for k, of in KINDS.items() for name in of if name in wanted and kind in (None, k)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the rules; all of them if none is named")
    parser.add_argument("--kind", choices=KINDS, help="rules of one kind alone")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each rule is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    arguments = parser.parse_args()
    try:
        asked = chosen(arguments.names, arguments.kind)
    except ValueError as error:
        parser.error(str(error))
    rows = read(arguments.json) if arguments.json else {}
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n\n{HEADER}\n{'| --- ' * 7}|", flush=True)
    for kind, name in asked:
        rows[name] = measure(kind, RULES[name], arguments.seconds)
        print(line(name, rows[name]), flush=True)
        jax.clear_caches()
        if arguments.json:
            write(arguments.json, rows)
    print(f"\n{summary(rows)}", file=sys.stderr)
    if arguments.plot:
        from benchmarks.rules_plot import plot

        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
