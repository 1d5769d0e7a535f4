"""`bpref verify`: every rule and the seed's equations held against the oracle, here and now."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bpref.cli.ending import interrupt_held
from bpref.cli.errors import blaming_the_input
from bpref.cli.pages.page import HtmlFile, Open, require_page, write_page
from bpref.cli.pages.verify import page
from bpref.cli.writing import require_writable, write
from bpref.models.mlp_equations import Equation, by_text, verify_equations
from bpref.nearest import meant
from bpref.rules import RULES, other_names
from bpref.verify import RuleReport, verify_rule
from bpref.verify.numbers.measure import Ulps
from bpref.verify.programs.running import collect_rarely
from bpref.verify.rules.catalogue import Errors

SEED_NETWORK = "seed"

WORTH_A_PROCESS = 12
"""Of fewer rules the first is done before another process has imported JAX."""


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Rules, or `seed` for the seed's equations.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of all random values; 0 if not given.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
    html_file: HtmlFile = None,
    show: Open = False,
) -> int:
    """Verify every rule, or the named ones, and the seed's equations; exit code 1 if anything is wrong.

    The table: the largest relative error in float64; errors in ulps (median, 99th percentile, maximum) in float32
    and bfloat16 beside autodiff's own; the bytes that the backward needs kept, beside what jax.vjp keeps.
    """
    with blaming_the_input():
        known = [*RULES, SEED_NETWORK]
        chosen = list(dict.fromkeys(meant("rule", name, known, other_names()) for name in names or known))
    if json_file is not None:
        require_writable("--json", json_file)
    require_page("--html", html_file, show)
    console = Console(width=None if os.isatty(1) else 200)
    console.print(f"float64 oracle: autodiff of each rule's reference      seed {seed}")

    reports: dict[str, RuleReport] = {}
    equations: list[Equation] = []
    for name, result in _with_progress(chosen, seed):
        if isinstance(result, RuleReport):
            reports[name] = result
        else:
            equations = result
    reports = {name: reports[name] for name in chosen if name in reports}

    if json_file is not None:
        write("--json", json_file, json.dumps(_as_json(seed, reports, equations), indent=1) + "\n")
    if reports:
        console.print(_rules_table(list(reports.values())))
    if equations:
        console.print(_equations_table(equations))
    for report in reports.values():
        for finding in report.findings:
            console.print(f"{report.name}: {finding}", style="red", markup=False, highlight=False)
    wrong = [r.name for r in reports.values() if not r.ok] + [e.text for e in equations if not e.ok]
    cases = sum(r.cases for r in reports.values())
    said = f"{len(reports)} rules, {cases} cases, {len(equations)} equations: "
    said += f"{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "all right"
    console.print(said)
    write_page("--html", html_file, page(list(reports.values()), equations, said, seed), show)
    return 1 if wrong else 0


def _with_progress(chosen: list[str], seed: int) -> Iterator[tuple[str, RuleReport | list[Equation]]]:
    """Each name and what was seen of it, as it comes, on all cores, with a progress bar where there is a terminal."""
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[last]}"))
    console = Console(stderr=True)
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
    with bar, _pool(len(chosen)) as pool:
        task = bar.add_task("", total=len(chosen), last="")
        longest_first = sorted(chosen, key=lambda name: -len(RULES[name].cases) if name in RULES else -9)
        with interrupt_held():
            running = {pool.submit(_verify_one, name, seed): name for name in longest_first}
        try:
            for done in as_completed(running):
                bar.update(task, advance=1, last=running[done])
                yield running[done], done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pool(tasks: int) -> Executor:
    """Processes for a long list, since tracing holds one process to one core; on an accelerator, which is one's own,
    threads.
    """
    if tasks < WORTH_A_PROCESS or jax.default_backend() != "cpu":
        return ThreadPoolExecutor(os.cpu_count())
    return ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), collect_rarely)


def _verify_one(name: str, seed: int) -> RuleReport | list[Equation]:
    return verify_equations(seed) if name == SEED_NETWORK else verify_rule(RULES[name], seed)


def _rules_table(reports: list[RuleReport]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("rule")
    for header in ("cases", "float64", "float32 ulps", "autodiff", "bfloat16 ulps", "autodiff", "cache", "jax.vjp"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict")
    for r in reports:
        verdict = "[green]ok[/]" if r.ok else "[red]WRONG[/]"
        ulps = (_ulps(u) for errors in (r.float32, r.bfloat16) for u in errors)
        sizes = (f"{size:,} B" for size in (r.cache_bytes, r.autodiff_bytes))
        table.add_row(r.name, str(r.cases), f"{r.float64:.0e}", *ulps, *sizes, verdict)
    return table


def _ulps(u: Ulps) -> str:
    return " / ".join(f"{v:.1f}" if v < 100 else f"{v:.0f}" if v < 1e5 else f"{v:.0e}" for v in u)


def _equations_table(equations: list[Equation]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("the seed's equation")
    table.add_column("verified", justify="right")
    table.add_column("float64", justify="right")
    table.add_column("verdict")
    for text, same in by_text(equations).items():
        verdict = "[green]ok[/]" if all(e.ok for e in same) else "[red]WRONG[/]"
        table.add_row(text.replace("[", r"\["), f"{len(same)} times", f"{max(e.error for e in same):.0e}", verdict)
    return table


def _as_json(seed: int, reports: dict[str, RuleReport], equations: list[Equation]) -> dict[str, object]:
    def errors(e: Errors) -> dict[str, object]:
        return {who: ulps._asdict() for who, ulps in e._asdict().items()}

    return {
        "seed": seed,
        "rules": [
            r._asdict() | {"float32": errors(r.float32), "bfloat16": errors(r.bfloat16), "ok": r.ok}
            for r in reports.values()
        ],
        "equations": [e._asdict() | {"ok": e.ok} for e in equations],
    }
