"""The rules of sequences beside autodiff and beside JAX's own best: temp memory and time, forward and backward.

    python -m benchmarks.bench_sequence [NAME ...] [--seconds 4] [--series] [--json FILE] [--plot FILE]

Each row is one computation and one rival, and its figures the ratios by hand / rival: below 1 is better. Hand and rival
give the same value and gradients, are jitted, and run in one process, in turn: the median of their ratios, and its
quartiles. `temp` is what XLA allocates beside inputs and outputs. NAME picks the rows whose name contains it. The
series are attention by hand at growing length T, alone: bytes and milliseconds, and the same for each step of T. A JSON
file is added to: rows that are not asked for stay as they are.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

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
from benchmarks.contest import Contest, compiled, outcomes
from benchmarks.sequence_figures import HEADER, LENGTHS_HEADER, Figures, Length, read, write
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
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; hand / rival, median (quartiles)\n\n{HEADER}")
    figures = read(arguments.json) if arguments.json else Figures({}, {})
    for contest in chosen(arguments.names):
        for row in outcomes(contest, arguments.seconds):
            print(row, flush=True)
            figures.rows[f"{row.contest} / {row.rival}"] = row
        jax.clear_caches()
        if arguments.json:
            write(arguments.json, figures)
    if arguments.series:
        for name, make in sequence_attention.SERIES.items():
            figures.series[name] = grown(name, make, arguments.seconds)
            if arguments.json:
                write(arguments.json, figures)
    if arguments.plot:
        plot(list(figures.rows.values()), figures.series, arguments.plot)


def chosen(names: list[str]) -> Iterator[Contest]:
    """The contests that are asked for, made one after the other."""
    for part in PARTS:
        yield from (c for c in part.contests() if not names or any(name in c.name for name in names))


def grown(name: str, make: Callable[[int], Contest], seconds: float) -> list[Length]:
    """Run and print one series."""
    print(f"\n{name}\n\n{LENGTHS_HEADER}")
    points = []
    for T in sequence_attention.LENGTHS:
        points.append(length(T, make(T), seconds))
        print(points[-1], flush=True)
    return points


if __name__ == "__main__":
    main()
