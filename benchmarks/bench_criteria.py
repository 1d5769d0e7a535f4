"""How many wrong derivations the acceptance criteria of test suites and benchmarks let through.

python -m benchmarks.bench_criteria --json benchmarks/results/criteria.json
"""

import argparse
import json
from pathlib import Path

from bpref.corpus.grade import AtSize, Grade, grade

CRITERIA = (
    "allclose(rtol=1e-2, atol=1e-2)",
    "fraction(0.99, rtol=1e-2, atol=1e-2)",
    "cosine(0.99)",
    "allclose(rtol=1e-5, atol=1e-5)",
)


def table(grades: list[Grade]) -> str:
    """A line for each criterion; the right derivations that it rejects at any size in the last column."""
    first = grades[0]
    sizes = " | ".join(f"cotangents of size {row.size:g}" for row in first.rows)
    lines = [
        f"| lets through, of {first.derivations} wrong derivations | {sizes} | rejects, of the right |",
        "| --- | --- | --- | --- | --- |",
    ]
    for g in grades:
        through = " | ".join(f"{100 * row.let_through / row.wrong:.1f}%" for row in g.rows)
        rejected, right = (sum(getattr(row, of) for row in g.rows) for of in ("rejected", "right"))
        lines.append(f"| `{g.criterion}` | {through} | {rejected} of {right:,} |")
    return "\n".join(lines)


def to_json(grades: list[Grade]) -> str:
    return json.dumps([json.loads(g.to_json()) for g in grades], indent=1)


def read(path: Path) -> list[Grade]:
    return [Grade(**one | {"rows": tuple(AtSize(**r) for r in one["rows"])}) for one in json.loads(path.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="how many trials each derivation has")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    grades = [grade(criterion, options.seeds) for criterion in CRITERIA]
    if options.json:
        options.json.write_text(to_json(grades) + "\n")
    print(table(grades))


if __name__ == "__main__":
    main()
