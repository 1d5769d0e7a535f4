"""Every rule beside two rivals, one row for each rule: time, memory, and error.

    python -m benchmarks.bench_rules [NAME ...] [--kind KIND] [--seconds 0.5] [--json FILE [--keep-errors]]
        [--plot FILE]

The rivals are autodiff of bpref's own forward, and autodiff of the best plain form that a user would write: the rule's
reference, or, where that is deliberately naive, what `plain_forms` has. Timed are forward and backward together, under
jit, in float32, at the sizes that the rule's case gives; the three in one process, in turn: the median of the ratios,
and its quartiles. `temp` is what XLA allocates beside inputs and outputs, `cache` what the forward leaves for the
backward, both in bytes by hand / by the rival. The errors are those of `bpref verify`: relative in float64; in float32
and bfloat16 in ulps (99th percentile) beside autodiff's. Below 1 is better everywhere. A JSON file is added to: rows of
rules that are not named stay as they are, and with `--keep-errors` the errors of those that are.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.paired import beside_each, repetitions
from benchmarks.plain_forms import PLAIN
from benchmarks.rule_figures import HEADER, Beside, Errors, Row, by_kind, line, read, write
from benchmarks.rules_plot import plot
from bpref.devices.works import output_of, sweep_by_autodiff, sweep_by_hand, timed_case, timed_example
from bpref.nearest import require_known
from bpref.rule import Rule
from bpref.rules import KINDS, RULES
from bpref.verify import verify_rule
from bpref.verify.numbers.measure import rounded
from bpref.verify.oracle import bytes_kept, bytes_kept_by_autodiff
from bpref.verify.rules.draw import Example

SEED = 0


def measure(kind: str, rule: Rule, seconds: float, errors: Errors | None) -> Row:
    """Time the three; verify the rule as well where its errors are not given."""
    example = timed_example(rule)
    params, x, dys = jax.tree.map(jnp.asarray, rounded((example.params, example.x, example.dys), jnp.float32))
    dy = jax.tree.map(lambda v: v[0], dys)
    own, plain = output_of(example.layer), plain_form(rule, example)
    forms = sweep_by_hand(example.layer), sweep_by_autodiff(own), sweep_by_autodiff(plain)
    compiled = [jax.jit(f).lower(params, x, dy).compile() for f in forms]
    runs = [lambda run=run: jax.block_until_ready(run(params, x, dy)) for run in compiled]
    rounds = min(repetitions(run, seconds, 200) for run in runs)
    times = beside_each(runs, rounds, warm=3)
    temp, *temps = map(_temp, compiled)
    cache = bytes_kept(lambda params, x: example.layer.forward(params, x)[1], params, x)
    beside_own, beside_plain = (
        Beside(time, (temp, of_rival), (cache, bytes_kept_by_autodiff(f, params, x)))
        for time, of_rival, f in zip(times, temps, (own, plain), strict=True)
    )
    return Row(kind, timed_case(rule).name, beside_own, beside_plain, errors or errors_of(rule))


def plain_form(rule: Rule, example: Example) -> Callable[..., Any]:
    """`(params, x) -> y`, as fast as a user would write it."""
    return PLAIN.get(rule.name) or example.reference


def errors_of(rule: Rule) -> Errors:
    report = verify_rule(rule, SEED)
    float32, bfloat16 = ((float(e.hand.p99), float(e.autodiff.p99)) for e in (report.float32, report.bfloat16))
    return Errors(report.float64, float32, bfloat16, report.ok)


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
    parser.add_argument("--keep-errors", action="store_true", help="do not verify again what the JSON file has")
    arguments = parser.parse_args()
    try:
        asked = chosen(arguments.names, arguments.kind)
    except ValueError as error:
        parser.error(str(error))
    rows = read(arguments.json) if arguments.json else {}
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n\n{HEADER}", flush=True)
    for kind, name in asked:
        kept = rows[name].errors if arguments.keep_errors and name in rows else None
        rows[name] = measure(kind, RULES[name], arguments.seconds, kept)
        print(line(name, rows[name]), flush=True)
        jax.clear_caches()
        if arguments.json:
            write(arguments.json, rows)
    print(f"\n{by_kind(rows)}")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
