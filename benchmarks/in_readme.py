"""Writes what `bench_rules`, `bench_sequence`, `bench_suite` and `bench_criteria` have last seen into the READMEs.

python -m benchmarks.in_readme
"""

from pathlib import Path

from benchmarks import bench_criteria, bench_suite, rule_figures, sequence_figures
from benchmarks.contest import OWN, Outcome

HERE = Path(__file__).parent
SHORT, LONG = HERE.parent / "README.md", HERE / "README.md"
RULES, SEQUENCES = HERE.parent / "bpref/rules/figures.json", HERE / "results/sequence_cpu.json"
SUITE = HERE / "results/suite_cpu.json"
CRITERIA = HERE / "results/criteria.json"

CHOSEN = (
    "causal attention, T 2048",
    "window of 256, T 2048",
    "linear_attention",
    "lstm, B 16",
    "selective_scan, T 2048, d 256, n 16, batch 1",
    "mixture of experts",
    "ctc",
    "crf",
    "fused linear cross-entropy, 32,000 classes, 128 rows at once",
    "fused linear cross-entropy, 128,000 classes",
    "transformer block, SwiGLU",
    "reversible stack",
)
"""How the computations of the README's table begin."""


def short(rows: dict[str, Outcome]) -> str:
    """A line for each chosen computation: beside autodiff of its own forward, and the fastest of the other rivals."""
    headers = ("computation", "temp memory / own forward's", "/ plain form's", "time / own", "/ plain", "plain form")
    lines = [f"| {' | '.join(headers)} |", "| --- " * len(headers) + "|"]
    for start in CHOSEN:
        contest = [row for row in rows.values() if row.contest.startswith(start)]
        contest = [row for row in contest if row.contest == contest[0].contest]
        own = next(row for row in contest if row.rival == OWN)
        plain = max(
            (row for row in contest if row.rival != OWN and not row.rival.startswith("bpref.")),
            key=lambda row: row.time.median,
        )
        memory = (f"{row.memory:.3f} of {row.temp[1] / 1e6:,.0f} MB" for row in (own, plain))
        times = (f"{row.time.median:.2f}" for row in (own, plain))
        lines.append(f"| {' | '.join([own.contest, *memory, *times, plain.rival])} |")
    return "\n".join(lines) + "\n"


def written(text: str, name: str, table: str) -> str:
    """The text with the table between the markers of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}{table}{end}{rest.split(end)[1]}"


def pages() -> dict[Path, str]:
    """Both READMEs as they are to be."""
    sequences = sequence_figures.read(SEQUENCES)
    rules = rule_figures.read(RULES)
    long = written(LONG.read_text(), "figures of the rules", rule_figures.by_kind(rules) + "\n")
    brief = written(SHORT.read_text(), "short figures", short(sequences.rows))
    brief = written(brief, "figures of all rules", rule_figures.short(rules))
    brief = written(brief, "figures of criteria", bench_criteria.table(bench_criteria.read(CRITERIA)) + "\n")
    return {
        SHORT: written(brief, "figures of a suite", bench_suite.table(bench_suite.read(SUITE)) + "\n"),
        LONG: written(long, "figures of sequences", sequence_figures.tables(sequences)),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
