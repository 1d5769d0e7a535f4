"""Writes what the benchmarks, and `bpref verify seed`, have last seen into the READMEs: every table of figures.

python -m benchmarks.in_readme
"""

import json
from pathlib import Path

from benchmarks import (
    bench_checker,
    bench_criteria,
    bench_devices,
    bench_draws,
    bench_keeping,
    bench_kernels,
    bench_mlp,
    bench_models,
    bench_policies,
    bench_precision,
    bench_signals,
    bench_suite,
    bench_train,
    bench_updates,
    compiled_figures,
    kill_and_resume,
    rule_figures,
    sequence_figures,
    torch_figures,
)
from benchmarks.contest import OWN, Outcome

HERE = Path(__file__).parent
SHORT, LONG, COMPILED = HERE.parent / "README.md", HERE / "README.md", HERE / "compiled.md"
RULES, SEQUENCES = HERE.parent / "bpref/rules/figures.json", HERE / "results/sequence_cpu.json"
SUITE = HERE / "results/suite_cpu.json"
TORCH = HERE / "results/torch_cpu.json"
DRAWS = HERE / "results/draws_cpu.json"
DEVICES = HERE / "results/devices_tpu.json"
KERNELS = HERE / "results/kernels_tpu.json"
POLICIES = HERE / "results/policies.json"
PRECISION = HERE / "results/precision.json"
CRITERIA = HERE / "results/criteria.json"
CHECKER = HERE / "results/checker_cpu.json"
SEED, TRAINING, STEP, MODELS, SIGNALS, UPDATES, KILLS, KEEPING = (
    HERE / f"results/{name}_cpu.json"
    for name in ("seed", "train", "mlp", "models", "signals", "updates", "kills", "keeping")
)

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
        own = next((row for row in contest if row.rival == OWN), None)
        plain = max((r for r in contest if r.rival != OWN and not r.rival.startswith("bpref.")), key=_speed)
        memory = (f"{r.memory:.3f} of {r.temp[1] / 1e6:,.0f} MB" if r else "" for r in (own, plain))
        times = (f"{r.time.median:.2f}" if r else "" for r in (own, plain))
        lines.append(f"| {' | '.join([plain.contest, *memory, *times, plain.rival])} |")
    return "\n".join(lines) + "\n"


def _speed(row: Outcome) -> float:
    return row.time.median


def written(text: str, name: str, table: str) -> str:
    """The text with the table between the markers of that name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}{table}{end}{rest.split(end)[1]}"


def equations(path: Path) -> str:
    """The seed's equations, each with its largest error in any layer."""
    errors: dict[str, list[float]] = {}
    for e in json.loads(path.read_text())["equations"]:
        errors.setdefault(e["text"], []).append(e["error"])
    lines = ["| the seed's equation | verified | float64 |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| `{text}` | {len(of)} times | {max(of):.0e} |" for text, of in errors.items())])


def pages() -> dict[Path, str]:
    """Both READMEs, and the page of what was compiled, as they are to be."""
    compiled = compiled_figures.read()
    rules, sequences = rule_figures.read(RULES), sequence_figures.read(SEQUENCES)
    models = json.loads(MODELS.read_text())
    of_short = {
        "figures of all rules": rule_figures.short(rules),
        "short figures": short(sequences.rows),
        "figures of the checker": bench_checker.tables(bench_checker.from_json(CHECKER.read_text())),
        "figures of criteria": bench_criteria.table(bench_criteria.read(CRITERIA)),
        "figures of gpt": bench_models.short(models),
        "figures compiled": compiled_figures.short(compiled),
    }
    of_long = {
        "figures of the rules": rule_figures.by_kind(rules),
        "figures of devices": bench_devices.table(json.loads(DEVICES.read_text())),
        "figures of precision": bench_precision.tables(bench_precision.read(PRECISION)),
        "figures of kernels": bench_kernels.table(json.loads(KERNELS.read_text())),
        "figures of sequences": sequence_figures.tables(sequences),
        "figures of the seed": equations(SEED),
        "figures of training": bench_train.tables(json.loads(TRAINING.read_text())),
        "figures of a train step": bench_mlp.table(STEP),
        "figures of models": bench_models.tables(models),
        "figures of signals": bench_signals.table(json.loads(SIGNALS.read_text())["rows"]),
        "figures of updates": bench_updates.table(json.loads(UPDATES.read_text())["rows"]),
        "figures of kills": kill_and_resume.table(json.loads(KILLS.read_text())),
        "figures of keeping": bench_keeping.table(json.loads(KEEPING.read_text())),
        "figures of PyTorch": torch_figures.table(torch_figures.read(TORCH)),
        "figures of a suite": bench_suite.table(bench_suite.read(SUITE)),
        "figures of draws": bench_draws.table(bench_draws.read(DRAWS)),
    }
    of_compiled = {
        "figures compiled for by kind": compiled_figures.by_kind(compiled),
        "figures compiled for models": compiled_figures.models(compiled),
        "figures of policies": bench_policies.table(json.loads(POLICIES.read_text())),
        "figures compiled for what takes more": compiled_figures.reasons(compiled),
        "figures compiled for rules": compiled_figures.rules(compiled),
    }
    texts = {path: path.read_text() for path in (SHORT, LONG, COMPILED)}
    for path, of_page in ((SHORT, of_short), (LONG, of_long), (COMPILED, of_compiled)):
        for name, table in of_page.items():
            texts[path] = written(texts[path], name, table.rstrip("\n") + "\n")
    return texts


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
