"""A report as one page that stands by itself: verdicts, what is wrong, and how precise each cotangent is."""

import html
import math

from bpref.cli.pages.heat_map import heat_map
from bpref.cli.pages.page import document, table, word
from bpref.verify.report import Finding, Precision, Report, Verdict
from bpref.verify.searching.search import SearchReport

WIDEST = 6
"""Decades of units in the last place that a whole bar, 12 letters wide, stands for."""


def page(report: Report | SearchReport) -> str:
    """The report as HTML, with nothing that is loaded from elsewhere; of a search, that of the case that failed."""
    inner = report.report if isinstance(report, SearchReport) else report
    title = f"{report.name}: {inner.verdict if inner else 'nothing found'}"
    searched = f"<pre>{html.escape(str(report))}</pre>" if isinstance(report, SearchReport) else ""
    body = _body(inner) if inner else ""
    return document(title, searched + body)


def _body(report: Report) -> str:
    parts = [
        f'<p class="fine">{html.escape(report.oracle)}; key {report.key}</p>',
        table(("value", "verdict", "why"), [_verdict(v) for v in report.verdicts]),
        "<h2>Findings</h2>" if report.findings else "",
        *map(_finding, report.findings),
    ]
    rows = [_precision(v.where, p) for v in report.verdicts for p in v.precision]
    if rows:
        heads = ("value", "dtype", "by hand", "beside it")
        unit = "Errors in units of the last place: the 99th percentile, with median and maximum; bars by decades."
        parts += ["<h2>Precision</h2>", table(heads, rows), f'<p class="fine">{unit}</p>']
    parts += [f"<p>Note: {html.escape(note)}.</p>" for note in report.notes]
    return "\n".join(part for part in parts if part) + "\n"


def _verdict(v: Verdict) -> tuple[str, ...]:
    return f"<code>{html.escape(v.where)}</code>", word(v.verdict), f"<pre>{html.escape(v.detail)}</pre>"


def _finding(finding: Finding) -> str:
    what = f"<b><code>{html.escape(finding.where)}</code>: {html.escape(finding.kind)}</b>"
    drawn = heat_map(finding.pattern) if finding.pattern else ""
    return f"<p>{what}</p><pre>{html.escape(finding.detail)}</pre>{drawn}"


def _precision(where: str, p: Precision) -> tuple[str, ...]:
    by_hand, beside = (
        f"{u.p99:.3g} ({u.median:.3g}, {u.maximum:.3g}){_bar(u.p99, kind)}"
        for u, kind in ((p.hand, "bar"), (p.autodiff, "bar beside"))
    )
    return f"<code>{html.escape(where)}</code>", p.dtype, by_hand, f"{p.beside}: {beside}"


def _bar(ulps: float, kind: str) -> str:
    share = min(1.0, math.log10(1 + ulps) / WIDEST) if math.isfinite(ulps) else 1.0
    return f'<span class="{kind}" style="width: {12 * share:.1f}rem"></span>'
