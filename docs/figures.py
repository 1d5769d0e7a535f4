"""What was measured of a rule: bytes kept, time and memory on a CPU, and what compilers of accelerators say."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import bench_precision
from benchmarks.compiled_reasons import REASONS
from bpref.cli.rules import read_figures
from docs.prose import to_html

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
COMPILED = {"TPU v5e": "compiled_tpu_v5e.json", "H100": "compiled_h100.json"}


@cache
def of_all() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The figures of the CPU, and of each compiler's target."""
    return dict(read_figures()), {target: json.loads((RESULTS / file).read_text()) for target, file in COMPILED.items()}


def cached(name: str) -> str:
    """How many bytes the backward is left, beside what autodiff keeps, in a sentence."""
    row = of_all()[0]["rules"].get(name)
    if row is None:
        return ""
    (hand, own), (_, plain) = row["own"]["cache"], row["plain"]["cache"]
    return (
        f"<p>At the size that is timed (<i>{row['case'] or 'the one case'}</i>): <b>{size(hand)}</b> are kept by hand, "
        f"{size(own)} by autodiff of the same forward, {size(plain)} by autodiff of the best plain form.</p>"
    )


@cache
def precisions() -> dict[str, bench_precision.Row]:
    """Of rules that have a product."""
    return bench_precision.read(RESULTS / "precision.json")


def in_fewer_bits(name: str) -> str:
    """The error where products take their operands as accelerators do, in a sentence."""
    row = precisions().get(name)
    if row is None:
        return ""
    error = {way: f"{v:.0e}" for way, v in row.errors.items()}
    return (
        "<p>Largest error of all outputs and cotangents, each beside its largest element, with the operands of "
        f"products as accelerators take them, modelled on a CPU: <b>{error['bfloat16']}</b> in bfloat16, what a TPU "
        f"does unless told otherwise, {error['3 passes']} by three passes, {error['6 passes']} by six "
        f'(<code>jax.default_matmul_precision("highest")</code>); <b>{error["TF32"]}</b> in TF32, what a GPU does; '
        f"{error['float32']} in float32. The laws hold for highest.</p>"
    )


def to_page(name: str) -> str:
    """Tables of times and memory, by hand beside autodiff."""
    on_cpu, compiled = of_all()
    tables = [_cpu(on_cpu["rules"][name])] if name in on_cpu["rules"] else []
    rows = [
        row for target, seen in compiled.items() if name in seen["rows"] for row in _row(target, seen["rows"][name])
    ]
    if rows:
        head = _cells("th", "compiled for", "temp memory", "bytes read and written", "cycles, estimated")
        tables.append(
            _table(head, rows, "By hand / by autodiff of the same forward, forward and backward in one program.")
        )
    if rows and name in REASONS:
        tables.append(f'<p class="fine">Where it takes more: {to_html(REASONS[name])}.</p>')
    machine = on_cpu["machine"]
    below = f'<p class="fine">CPU: two cores, float32, jax {machine["jax"]}. Below 1 is better.</p>'
    return "\n".join([*tables, below]) if tables else ""


def _cpu(row: dict[str, Any]) -> str:
    head = _cells("th", "on a CPU, beside", "time", "temp memory", "bytes kept")
    rows = []
    for rival, called in (("own", "autodiff of the same forward"), ("plain", "autodiff of the best plain form")):
        time, (hand, other) = row[rival]["time"], row[rival]["temp"]
        seen = f"{time['median']:.2f} ({time['low']:.2f} to {time['high']:.2f})"
        rows.append(_cells("td", called, seen, beside(hand, other), beside(*row[rival]["cache"])))
    errors = row["errors"]
    ulps = {d: " / ".join(_short(e) for e in errors[d]) for d in ("float32", "bfloat16") if d in errors}
    precise = ", ".join(f"{dtype} {of} ulp" for dtype, of in ulps.items())
    caption = (
        f"By hand / by autodiff. Errors of the gradient (99th percentile): {precise}; float64 {errors['float64']:.0e}."
    )
    return _table(head, rows, caption)


def _short(error: float | None) -> str:
    return "none" if error is None else f"{error:.1f}" if error < 1e3 else f"{error:.0e}"


def _row(target: str, row: dict[str, Any]) -> list[str]:
    hand, other = row["hand"], row["autodiff"]
    if not isinstance(hand, dict) or not isinstance(other, dict):
        return []
    cycles = beside(hand["cycles"], other["cycles"], str) if hand["cycles"] and other["cycles"] else ""
    seen = [beside(hand[what], other[what]) for what in ("temp", "accessed")]
    return [_cells("td", target, *seen, cycles)]


def beside(hand: float, other: float, shown: Any = None) -> str:
    """A ratio with its two numbers; of nothing by nothing, that."""
    if not other:
        return "none by either" if not hand else f"{size(hand)} / none"
    if shown is str:
        return f"{hand / other:.2f} ({hand:,.0f} / {other:,.0f})"
    return f"{hand / other:.2f} ({size(hand)} / {size(other)})"


def size(n: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{n:.0f} bytes"


def _cells(tag: str, *texts: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"


def _table(head: str, rows: list[str], caption: str) -> str:
    return (
        f'<div class="wide"><table class="figures"><caption>{caption}</caption><thead>{head}</thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
