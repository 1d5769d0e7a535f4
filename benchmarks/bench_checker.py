"""Gradient checkers side by side: what each detects, what it accuses unjustly, and how long it takes.

    python -m benchmarks.bench_checker [--seeds 20] [--mutant-seeds 2] [--quick] [--json FILE] [--markdown]

Asked are `bpref.check`, `jax.test_util.check_grads`, `chex.assert_numerical_grads` and, where PyTorch is installed,
`torch.autograd.gradcheck` in its slow and its fast mode: about the wrong derivations of the corpus, each of which
should be rejected; about the right ones, each of which should be accepted; and about mutants of the right ones, in
which one step of the program is changed. The arguments are drawn afresh for every seed. float64 is run with x64
switched on, float32 and bfloat16 without. Left out are functions that JAX does not have in bfloat16, derivations whose
only error is to return the dtype that is asked about, and, for PyTorch, all but float64, which is what `gradcheck` is
made for, and derivations that PyTorch mends by itself.

A detection is any rejection, a false alarm any rejection of a right derivation. The kind is right where some argument
shows the expected one and none another that contradicts it (`names_the_kind` in checker_scores.py); what is said of
`in every argument` is stricter. Times are ratios bpref / check_grads, float32, taken in turn: cold with new function
objects and empty caches, warm with the same function as before and other values.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.checker_scores import Count, accepted, count, detected, diagnoses, repeated
from benchmarks.checker_times import Ratio, geometric_mean, largest, times
from benchmarks.checker_trials import absent, on_mutants, on_right, on_wrong
from benchmarks.checkers import BPREF, CHECK_GRADS, FLOATS, IN_JAX, Checker, installed
from bpref.corpus import DERIVATIONS

MUTATED_IN = ("float32", "float64")
QUICK_NAMES = ("dense", "gather", "softmax", "huber")


class Plan(NamedTuple):
    """How much is measured: functions, seeds, right derivations for bpref, mutants' seeds, pairs of timings."""

    names: tuple[str, ...]
    seeds: int
    controls: int
    mutant_seeds: int
    pairs_cold: int
    pairs_warm: int


class Results(NamedTuple):
    """All counts: by checker and dtype; of the diagnoses by what is asked; and the ratios of time."""

    detected: dict[str, dict[str, Count]]
    accepted: dict[str, dict[str, Count]]
    diagnoses: dict[str, Count]
    mutants: dict[str, dict[str, Count]]
    times: dict[str, dict[str, Ratio]]
    absent: dict[str, str]


def measure(plan: Plan, checkers: tuple[Checker, ...]) -> Results:
    missing = {dtype: absent(dtype) for dtype in FLOATS}
    names = {dtype: [n for n in plan.names if n not in missing[dtype]] for dtype in FLOATS}
    by_bpref, others = checkers[:1], checkers[1:]
    seeds = range(plan.seeds)
    controls = range(max(plan.seeds, -(-plan.controls // sum(map(len, names.values())))))
    wrong, right, mutated = [], [], []
    for dtype in FLOATS:
        wrong += _timed(f"wrong derivations, {dtype}", on_wrong(checkers, dtype, seeds, names[dtype]))
    for dtype in FLOATS:
        right += _timed(f"right derivations, {dtype}", on_right(by_bpref, dtype, controls, names[dtype]))
        right += _timed(f"right derivations, {dtype}, others", on_right(others, dtype, seeds, names[dtype]))
    timed = dict(_timed("times", times(plan.names, plan.pairs_cold, plan.pairs_warm)))
    for dtype in MUTATED_IN:
        mutated += _timed(f"mutants, {dtype}", on_mutants(IN_JAX[:2], dtype, range(plan.mutant_seeds), names[dtype]))

    def table(trials, is_good):
        return {
            c.name: {
                dtype: count((t for t in trials if (t.checker, t.dtype) == (c.name, dtype)), is_good)
                for dtype in FLOATS
            }
            for c in checkers
        }

    return Results(
        table(wrong, detected),
        table(right, accepted),
        diagnoses(wrong),
        table(mutated, detected),
        timed,
        missing["bfloat16"],
    )


def _timed(what: str, trials: Any) -> list[Any]:
    start = time.perf_counter()
    found = list(trials)
    jax.clear_caches()
    print(f"{what}: {len(found):,} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def tables(r: Results) -> str:
    """Both tables in Markdown."""
    heads = [f"{what}, {dtype}" for what in ("detected", "false alarms") for dtype in FLOATS]
    lines = [_row(["checker", *heads]), _row(["---"] * (1 + len(heads)))]
    for name, of in r.detected.items():
        alarms = [f"{c.of - c.good:,} of {c.of:,}" if c.of else "" for c in r.accepted[name].values()]
        lines.append(_row([name, *map(str, of.values()), *alarms]))
    lines += ["", _row(["", BPREF, CHECK_GRADS]), _row(["---"] * 3)]
    lines += [_row([what, str(c), ""]) for what, c in r.diagnoses.items()]
    for dtype in MUTATED_IN:
        lines.append(_row([f"mutants detected, {dtype}", *(str(r.mutants[n][dtype]) for n in (BPREF, CHECK_GRADS))]))
    for which, ratios in r.times.items():
        name, most = largest(ratios)
        text = f"{geometric_mean(ratios):.2f} (at most {most.median:.2f}, {name})"
        lines.append(_row([f"time of a {which} check, geometric mean of {len(ratios)} functions", text, "1"]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def failures(r: Results) -> str:
    """By name: everything that `bpref.check` got wrong, what is not measured, and every ratio of time."""
    parts = {f"missed by {BPREF}": [line for c in r.detected[BPREF].values() for line in c.bad]}
    parts[f"right, and accused by {BPREF}"] = [line for c in r.accepted[BPREF].values() for line in c.bad]
    parts |= {f"not so: {what}": repeated(c.bad) for what, c in r.diagnoses.items()}
    parts[f"mutants missed by {BPREF}"] = [line for c in r.mutants[BPREF].values() for line in c.bad]
    parts["not in bfloat16"] = [f"{name}: {reason}" for name, reason in r.absent.items()]
    for which, ratios in r.times.items():
        parts[f"time, {which}: bpref / check_grads, median (quartiles); seconds of each"] = [
            f"{name}: {ratio}; {ratio.hand_seconds:.4f}, {ratio.other_seconds:.4f}" for name, ratio in ratios.items()
        ]
    return "\n\n".join(
        "\n".join([f"{title}: {len(lines)}", *(f"  {v}" for v in lines)]) for title, lines in parts.items()
    )


def to_json(r: Results, plan: Plan, seconds: float) -> str:
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
    return json.dumps({"machine": machine, "plan": plan._asdict(), "seconds": seconds, **_plain(r)}, indent=1)


def _plain(v: Any) -> Any:
    if hasattr(v, "_asdict"):
        return _plain(v._asdict())
    return {name: _plain(value) for name, value in v.items()} if isinstance(v, dict) else v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how often each wrong derivation is tried")
    parser.add_argument("--mutant-seeds", type=int, default=2, help="how often each mutant is tried")
    parser.add_argument("--quick", action="store_true", help="2 seeds, a few functions: whether it runs at all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", action="store_true", help="print the tables alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    checkers, left_out = installed()
    plan = Plan(tuple(DERIVATIONS), arguments.seeds, 10_000, arguments.mutant_seeds, 3, 30)
    if arguments.quick:
        plan = Plan(QUICK_NAMES, 2, 0, 1, 1, 5)
    start = time.perf_counter()
    results = measure(plan, checkers)
    seconds = time.perf_counter() - start
    if left_out:
        print(left_out, file=sys.stderr)
    if not arguments.markdown:
        print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {seconds:.0f} s\n")
    print(tables(results))
    if not arguments.markdown:
        print(f"\n{failures(results)}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(to_json(results, plan, seconds) + "\n")


if __name__ == "__main__":
    main()
