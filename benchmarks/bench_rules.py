"""Every rule beside `jax.vjp` of its reference: time, memory, and error, one row for each rule.

    python -m benchmarks.bench_rules [NAME ...] [--kind KIND] [--seconds 0.5] [--json FILE] [--plot FILE]

Timed are forward and backward together, under jit, in float32, at the sizes that the rule's case gives; hand and
autodiff in one process, in turn: the median of their ratios, and its quartiles. `temp` is what XLA allocates beside
inputs and outputs, `cache` what the forward leaves for the backward, both in bytes by hand / by autodiff. The errors
are those of `bpref verify`: relative in float64; in float32 and bfloat16 in ulps (99th percentile) beside autodiff's.
Below 1 is better everywhere. A JSON file is added to: rows of rules that are not named stay as they are.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.paired import Ratio, paired, repetitions
from benchmarks.rule_figures import HEADER, Row, by_kind, line, read, write
from benchmarks.rules_plot import plot
from bpref.nearest import require_known
from bpref.rule import Case, Rule
from bpref.rules import KINDS, RULES
from bpref.verify import verify_rule
from bpref.verify.draw import draw
from bpref.verify.examine import rounded
from bpref.verify.oracle import as_cotangent, bytes_kept, bytes_kept_by_autodiff, with_cotangents

SEED = 0


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
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n\n{HEADER}", flush=True)
    for kind, name in asked:
        rows[name] = measure(kind, RULES[name], arguments.seconds)
        print(line(name, rows[name]), flush=True)
        jax.clear_caches()
        if arguments.json:
            write(arguments.json, rows)
    print(f"\n{by_kind(rows)}")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
