"""Gradient checkers side by side: what each detects, what it accuses unjustly, and how long it takes.

    python -m benchmarks.bench_checker [--seeds 20] [--mutant-seeds 2] [--quick] [--part PART] [--json FILE]

All of it takes most of an hour. `--part` measures one of wrong, right, mutants and times, and takes the others from
the JSON file as an earlier run left them there; the tables are of both.

Asked are `bpref.check`, `jax.test_util.check_grads`, `chex.assert_numerical_grads` and, where PyTorch is installed,
`torch.autograd.gradcheck` in its slow and its fast mode: about the wrong derivations of the corpus, each of which
should be rejected; about the right ones, each of which should be accepted; and about mutants of the right ones, in
which one step of the program is changed. The arguments are drawn afresh for every seed. float64 is run with x64
switched on, float32 and bfloat16 without. Left out are functions that JAX does not have in bfloat16, derivations whose
only error is to return the dtype that is asked about, and, for PyTorch, all but float64, which is what `gradcheck` is
made for, and derivations that PyTorch mends by itself.

A detection is any rejection, a false alarm any rejection of a right derivation. The kind is right where some argument
shows the expected one and none another that contradicts it (`names_the_kind` in checker_scores.py); what is said of
`in every argument` is stricter. Times are ratios bpref / check_grads, float32, taken in turn, of warm checks: the same
function as before and other values. What a suite's cold checks take is measured by `bench_suite`.
"""

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.checker_scores import Count, accepted, count, detected, diagnoses, repeated
from benchmarks.checker_times import Ratio, geometric_mean, largest, times
from benchmarks.checker_trials import Trial, absent, on_mutants, on_right, on_wrong
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
    pairs: int


class Results(NamedTuple):
    """All counts: by checker and dtype; of the diagnoses by what is asked; and the ratios of time."""

    absent: dict[str, str]
    detected: dict[str, dict[str, Count]]
    diagnoses: dict[str, Count]
    accepted: dict[str, dict[str, Count]]
    mutants: dict[str, dict[str, Count]]
    times: dict[str, dict[str, Ratio]]


NOTHING = Results({}, {}, {}, {}, {}, {})


class Bench:
    """What is measured of some checkers, bpref's first; each part is a method, and gives fields of the results."""

    def __init__(self, plan: Plan, checkers: tuple[Checker, ...]):
        self.plan, self.checkers = plan, checkers
        self.absent = {dtype: absent(dtype) for dtype in FLOATS}
        self.names = {dtype: [n for n in plan.names if n not in self.absent[dtype]] for dtype in FLOATS}

    def wrong(self) -> dict[str, Any]:
        trials = []
        for dtype in FLOATS:
            asked = on_wrong(self.checkers, dtype, range(self.plan.seeds), self.names[dtype])
            trials += _timed(f"wrong derivations, {dtype}", asked)
        return {"detected": self._table(trials, detected), "diagnoses": diagnoses(trials)}

    def right(self) -> dict[str, Any]:
        by_bpref, others = self.checkers[:1], self.checkers[1:]
        seeds = range(self.plan.seeds)
        functions = sum(map(len, self.names.values()))
        controls = range(max(self.plan.seeds, -(-self.plan.controls // functions)))
        trials = []
        for dtype in FLOATS:
            names = self.names[dtype]
            trials += _timed(f"right derivations, {dtype}", on_right(by_bpref, dtype, controls, names))
            trials += _timed(f"right derivations, {dtype}, others", on_right(others, dtype, seeds, names))
        return {"accepted": self._table(trials, accepted), "absent": self.absent["bfloat16"]}

    def mutants(self) -> dict[str, Any]:
        seeds = range(self.plan.mutant_seeds)
        trials = []
        for dtype in MUTATED_IN:
            trials += _timed(f"mutants, {dtype}", on_mutants(IN_JAX[:2], dtype, seeds, self.names[dtype]))
        return {"mutants": self._table(trials, detected)}

    def times(self) -> dict[str, Any]:
        plan = self.plan
        return {"times": dict(_timed("times", times(plan.names, plan.pairs)))}

    def _table(self, trials: Sequence[Trial], is_good: Callable[[Trial], bool]) -> dict[str, dict[str, Count]]:
        return {
            c.name: {
                dtype: count((t for t in trials if (t.checker, t.dtype) == (c.name, dtype)), is_good)
                for dtype in FLOATS
            }
            for c in self.checkers
        }


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "mutants": Bench.mutants,
    "wrong": Bench.wrong,
    "right": Bench.right,
    "times": Bench.times,
}


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
        alarms = [f"{c.of - c.good:,} of {c.of:,}" if c.of else "" for c in r.accepted.get(name, {}).values()]
        lines.append(_row([name, *map(str, of.values()), *alarms]))
    lines += ["", _row(["", BPREF, CHECK_GRADS]), _row(["---"] * 3)]
    lines += [_row([what, str(c), ""]) for what, c in r.diagnoses.items()]
    for dtype in MUTATED_IN if r.mutants else ():
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
    parts = {f"missed by {BPREF}": [line for c in r.detected.get(BPREF, {}).values() for line in c.bad]}
    parts[f"right, and accused by {BPREF}"] = [line for c in r.accepted.get(BPREF, {}).values() for line in c.bad]
    parts |= {f"not so: {what}": repeated(c.bad) for what, c in r.diagnoses.items()}
    parts[f"mutants missed by {BPREF}"] = [line for c in r.mutants.get(BPREF, {}).values() for line in c.bad]
    parts["not in bfloat16"] = [f"{name}: {reason}" for name, reason in r.absent.items()]
    for which, ratios in r.times.items():
        parts[f"time, {which}: bpref / check_grads, median (quartiles); seconds of each"] = [
            f"{name}: {ratio}; {ratio.hand_seconds:.4f}, {ratio.other_seconds:.4f}" for name, ratio in ratios.items()
        ]
    return "\n\n".join(
        "\n".join([f"{title}: {len(lines)}", *(f"  {v}" for v in lines)]) for title, lines in parts.items()
    )


def to_json(r: Results, plan: Plan) -> str:
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
    return json.dumps({"machine": machine, "plan": plan._asdict(), **_plain(r)}, indent=1)


def from_json(text: str) -> Results:
    """The results that an earlier run has written."""
    read = json.loads(text)

    def counts(v):
        return {name: Count(c["good"], c["of"], tuple(c["bad"])) for name, c in v.items()}

    return Results(
        read["absent"],
        {name: counts(v) for name, v in read["detected"].items()},
        counts(read["diagnoses"]),
        {name: counts(v) for name, v in read["accepted"].items()},
        {name: counts(v) for name, v in read["mutants"].items()},
        {which: {name: Ratio(**r) for name, r in v.items()} for which, v in read["times"].items()},
    )


def _plain(v: Any) -> Any:
    if hasattr(v, "_asdict"):
        return _plain(v._asdict())
    return {name: _plain(value) for name, value in v.items()} if isinstance(v, dict) else v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how often each wrong derivation is tried")
    parser.add_argument("--mutant-seeds", type=int, default=2, help="how often each mutant is tried")
    parser.add_argument("--quick", action="store_true", help="2 seeds, a few functions: whether it runs at all")
    parser.add_argument("--part", choices=PARTS, help="measure this alone, and take the others from the JSON file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", action="store_true", help="print the tables alone")
    arguments = parser.parse_args()
    if arguments.part and not arguments.json:
        parser.error("--part needs --json FILE, where the other parts are read from")
    warnings.simplefilter("ignore")
    checkers, left_out = installed()
    if left_out:
        print(left_out, file=sys.stderr)
    plan = Plan(tuple(DERIVATIONS), arguments.seeds, 10_000, arguments.mutant_seeds, 30)
    if arguments.quick:
        plan = Plan(QUICK_NAMES, 2, 0, 1, 5)
    bench = Bench(plan, checkers)
    results = from_json(arguments.json.read_text()) if arguments.part and arguments.json.exists() else NOTHING
    for part in [arguments.part] if arguments.part else PARTS:
        results = results._replace(**PARTS[part](bench))
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(to_json(results, plan) + "\n")
    if not arguments.markdown:
        print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}\n")
    print(tables(results))
    if not arguments.markdown:
        print(f"\n{failures(results)}")


if __name__ == "__main__":
    main()
