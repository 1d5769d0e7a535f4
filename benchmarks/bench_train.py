"""What `bpref train` reaches on the embedded data, with its default settings: one whole process per run.

    python -m benchmarks.bench_train [--json FILE] [--diabetes-seeds 10] [--digits-seeds 5]

Diabetes: test R^2 by seed, beside least squares on the same split. Digits: test accuracy, and the seconds of the
whole process, start-up and compilation included.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np


def train(*arguments: str) -> tuple[str, float]:
    """What one `bpref train` printed, and how long it took."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "bpref", "train", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bpref train {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout, time.perf_counter() - start


def figure(pattern: str, printed: str) -> float:
    found = re.search(pattern, printed)
    if found is None:
        sys.exit(f"no {pattern!r} in what was printed:\n{printed}")
    return float(found[1])


def diabetes(seed: int) -> dict[str, float]:
    printed, seconds = train("--seed", str(seed))
    r2 = figure(r"test R\^2 (-?[\d.]+)", printed)
    baseline = figure(r"least squares on the same split: (-?[\d.]+)", printed)
    return {"seed": seed, "r2": r2, "least_squares": baseline, "seconds": seconds}


def digits(seed: int) -> dict[str, float]:
    printed, seconds = train("digits", "--seed", str(seed))
    return {"seed": seed, "accuracy": figure(r"test accuracy ([\d.]+)", printed), "seconds": seconds}


def tables(figures: dict[str, list[dict[str, float]]]) -> str:
    """One for each data set, in Markdown."""
    lines = ["| seed | test R^2 | least squares | whole run |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {r['seed']} | {r['r2']:.4f} | {r['least_squares']:.4f} | {r['seconds']:.1f} s |"
        for r in figures["diabetes"]
    ]
    r2, baseline = (np.mean([row[k] for row in figures["diabetes"]]) for k in ("r2", "least_squares"))
    lines += [f"| mean | **{r2:.4f}** | {baseline:.4f} | |", ""]
    lines += ["| seed | test accuracy | whole run |", "| --- | --- | --- |"]
    lines += [f"| {r['seed']} | {r['accuracy']:.4f} | {r['seconds']:.1f} s |" for r in figures["digits"]]
    return "\n".join([*lines, f"| mean | **{np.mean([r['accuracy'] for r in figures['digits']]):.4f}** | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diabetes-seeds", type=int, default=10)
    parser.add_argument("--digits-seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    figures = {
        "diabetes": [diabetes(seed) for seed in range(arguments.diabetes_seeds)],
        "digits": [digits(seed) for seed in range(arguments.digits_seeds)],
    }
    print(tables(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
