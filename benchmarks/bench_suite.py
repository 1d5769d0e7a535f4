"""What checking gradients costs a test suite: cold checks of many small functions, one after the other.

    python -m benchmarks.bench_suite [--runs 5] [--json FILE]

A suite asks about every function once. Nothing of it has been compiled before, and what JAX compiles for one function
(an addition of two small arrays) it finds again for the next. So each checker is run in a process of its own, caches
empty at the start and never cleared, over the same derivations of the corpus in float32: of every function the right
one and wrong ones. The checkers take turns, and each pair of runs gives a ratio. `bpref.check` stands beside
`jax.test_util.check_grads` in reverse mode, called in both ways that a suite has: with the `jax.custom_vjp` function as
it is, which JAX runs operation by operation, and under `jax.jit`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.checker_trials import RIGHT, arguments, wrong_in
from benchmarks.checkers import BPREF, CHECK_GRADS, Ask, by_check_grads, by_rule
from bpref.corpus import DERIVATIONS, Derivation

DTYPE = "float32"
FUNCTIONS = (
    *("attention", "batch_norm", "cosine_similarity", "cumulative_product", "dense", "gather", "gelu", "group_norm"),
    *("huber", "info_nce", "l2_normalize", "layer_norm", "log_sum_exp", "max_pool", "rms_norm", "segment_sum"),
    *("softmax", "softmax_cross_entropy"),
)
WRONG_OF_EACH = 4
"""How many wrong derivations of a function are asked about at most: the first ones."""

EAGER, JITTED = f"{CHECK_GRADS}, eager", f"{CHECK_GRADS}, jitted"
CHECKERS: dict[str, Callable[[Any, Any], Ask]] = {
    BPREF: by_rule,
    EAGER: by_check_grads,
    JITTED: lambda forward, backward: by_check_grads(forward, backward, jax.jit),
}


class Run(NamedTuple):
    """One suite by one checker: wall and processor seconds, those of each check, and the checks it answered wrongly."""

    wall: float
    cpu: float
    seconds: dict[str, float]
    mistaken: list[str]


def cases() -> Iterator[tuple[Derivation, str, Any]]:
    """`(derivation, case, backward)` of every check."""
    for d in map(DERIVATIONS.__getitem__, FUNCTIONS):
        yield d, RIGHT, d.backward
        for wrong in [w for w in d.wrong if wrong_in(d, w, DTYPE)][:WRONG_OF_EACH]:
            yield d, wrong.name, wrong.backward


def suite(name: str) -> Run:
    """Every check once, by this process."""
    asked = [(f"{d.name}, {case or 'right'}", CHECKERS[name](d.forward, b), d, case == RIGHT) for d, case, b in cases()]
    points = {d.name: tuple(map(jnp.asarray, arguments(d, DTYPE, 0))) for _, _, d, _ in asked}
    seconds, mistaken = {}, []
    wall, cpu = time.perf_counter(), time.process_time()
    for key, (what, ask, d, is_right) in enumerate(asked):
        start = time.perf_counter()
        answer = ask(points[d.name], key)
        seconds[what] = time.perf_counter() - start
        mistaken += [] if answer.accepted == is_right else [f"{what}: {answer.said}"]
    return Run(time.perf_counter() - wall, time.process_time() - cpu, seconds, mistaken)


def in_a_process_of_its_own(name: str) -> Run:
    command = [sys.executable, "-m", "benchmarks.bench_suite", "--by", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def measured(runs: int) -> dict[str, list[Run]]:
    """By checker, `runs` runs; the checkers take turns."""
    found: dict[str, list[Run]] = {name: [] for name in CHECKERS}
    for i in range(runs):
        for name in list(CHECKERS)[:: -1 if i % 2 else 1]:
            found[name].append(in_a_process_of_its_own(name))
            print(f"{i + 1}: {name}: {found[name][-1].wall:.1f} s", file=sys.stderr, flush=True)
    return found


def ratios(found: dict[str, list[Run]], rival: str, of: str) -> tuple[float, float, float]:
    """bpref's `of`, "wall" or "cpu", by the rival's of the same turn: the median, the least and the greatest."""
    each = [getattr(a, of) / getattr(b, of) for a, b in zip(found[BPREF], found[rival], strict=True)]
    return float(np.median(each)), min(each), max(each)


def table(found: dict[str, list[Run]]) -> str:
    checks = len(found[BPREF][0].seconds)
    lines = [
        f"| {checks} cold checks of {len(FUNCTIONS)} functions | seconds | bpref.check's wall time by it | "
        "processor time by it | answered wrongly |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, runs in found.items():
        both = ["{:.2f} ({:.2f}-{:.2f})".format(*ratios(found, name, of)) for of in ("wall", "cpu")]
        both = ["1", "1"] if name == BPREF else both
        seconds = np.median([r.wall for r in runs])
        lines.append(f"| {name} | {seconds:.0f} | {both[0]} | {both[1]} | {len(runs[0].mistaken)} |")
    return "\n".join(lines)


def to_json(found: dict[str, list[Run]]) -> str:
    machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
    of = {name: [r._asdict() for r in runs] for name, runs in found.items()}
    return json.dumps({"machine": machine, "runs": of}, indent=1)


def read(path: Path) -> dict[str, list[Run]]:
    return {name: [Run(**r) for r in runs] for name, runs in json.loads(path.read_text())["runs"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often each checker runs the suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--by", choices=CHECKERS, help="run the suite once, by this checker, in this process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.by:
        print(json.dumps(suite(options.by)._asdict()))
        return
    found = measured(options.runs)
    if options.json:
        options.json.write_text(to_json(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
