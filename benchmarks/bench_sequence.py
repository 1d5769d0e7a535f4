"""The rules of sequences beside autodiff and beside JAX's own best: temp memory and time, forward and backward.

    python -m benchmarks.bench_sequence [NAME ...] [--seconds 4] [--series] [--json FILE] [--plot FILE]

Each row is one computation and one rival, and its figures the ratios by hand / rival: below 1 is better. Hand and rival
give the same value and gradients, are jitted, and run in one process, in turn: the median of their ratios, and its
quartiles. `temp` is what XLA allocates beside inputs and outputs. NAME picks the rows whose name contains it. The
series are attention by hand at growing length T, alone: bytes and milliseconds, and the same for each step of T.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax

from benchmarks import (
    sequence_attention,
    sequence_blocks,
    sequence_linear_attention,
    sequence_losses,
    sequence_mixture,
    sequence_policy,
    sequence_recurrence,
    sequence_state_space,
)
from benchmarks.contest import Contest, Outcome, compiled, outcomes
from benchmarks.sequence_plot import plot

PARTS = (
    sequence_attention,
    sequence_linear_attention,
    sequence_recurrence,
    sequence_state_space,
    sequence_mixture,
    sequence_losses,
    sequence_policy,
    sequence_blocks,
)
"""The files that the rows come from: each has `contests()`."""


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


def length(T: int, contest: Contest, seconds: float) -> Length:
    """Time the hand alone: at these lengths the naive form may not fit."""
    program = compiled(contest.hand, contest.arguments)
    program.run()
    times, start = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        program.run()
        times.append(time.perf_counter() - before)
    return Length(T, program.temp, median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows whose name contains it; all if none is given")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each pair is timed")
    parser.add_argument("--series", action="store_true", help="the growing lengths too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; hand / rival, median (quartiles)\n")
    rows, series = contested(arguments.names, arguments.seconds), {}
    if arguments.series:
        series = {name: grown(name, make, arguments.seconds) for name, make in sequence_attention.SERIES.items()}
    if arguments.json:
        machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "host": platform.machine()}
        figures = [row._asdict() | {"time": row.time._asdict()} for row in rows]
        lengths = {name: [point._asdict() for point in points] for name, points in series.items()}
        content = {"machine": machine, "rows": figures, "series": lengths}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.plot:
        plot(rows, series, arguments.plot)


def contested(names: list[str], seconds: float) -> list[Outcome]:
    """Run and print every row that is asked for."""
    print("| computation | rival | temp memory | time |\n| --- | --- | --- | --- |")
    rows = []
    for part in PARTS:
        for contest in part.contests():
            if names and not any(name in contest.name for name in names):
                continue
            for row in outcomes(contest, seconds):
                print(row, flush=True)
                rows.append(row)
            jax.clear_caches()
    return rows


def grown(name: str, make: Callable[[int], Contest], seconds: float) -> list[Length]:
    """Run and print one series."""
    print(f"\n{name}\n\n| T | temp MB | ms | temp bytes / T | us / T | ns / T^2 |\n{'| --- ' * 6}|")
    points = []
    for T in sequence_attention.LENGTHS:
        points.append(length(T, make(T), seconds))
        print(points[-1], flush=True)
    return points


if __name__ == "__main__":
    main()
