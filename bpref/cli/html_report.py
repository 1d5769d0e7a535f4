"""A report as one page that stands by itself: verdicts, what is wrong, and how precise each cotangent is."""

import html
import math

from bpref.verify.report import Finding, Precision, Report, Verdict
from bpref.verify.searching.search import SearchReport

WIDEST = 6
"""Decades of units in the last place that a whole bar, 12 letters wide, stands for."""

STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid #8884; }
pre { overflow-x: auto; margin: 0.3rem 0; }
td pre { margin: 0; }
.verdict { font-weight: 600; white-space: nowrap; }
.ok { color: light-dark(#117733, #66cc88); }
.wrong { color: light-dark(#b00020, #ff8a80); }
.imprecise { color: light-dark(#8a5a00, #ffcc66); }
.cannot.tell, .not.run { color: light-dark(#7b1fa2, #d8a0ff); }
.bar { display: block; height: 0.5rem; background: light-dark(#3366aa, #7799dd); border-radius: 0.2rem; }
.bar.beside { background: #8888; }
.fine { opacity: 0.75; font-size: 0.9rem; }
"""


def page(report: Report | SearchReport) -> str:
    """The report as HTML, with nothing that is loaded from elsewhere; of a search, that of the case that failed."""
    inner = report.report if isinstance(report, SearchReport) else report
    title = html.escape(f"{report.name}: {inner.verdict if inner else 'nothing found'}")
    searched = f"<pre>{html.escape(str(report))}</pre>" if isinstance(report, SearchReport) else ""
    body = _body(inner) if inner else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n{searched}{body}</body></html>\n"
    )


def _body(report: Report) -> str:
    parts = [
        f'<p class="fine">{html.escape(report.oracle)}; key {report.key}</p>',
        _table(("value", "verdict", "why"), [_verdict(v) for v in report.verdicts]),
        "<h2>Findings</h2>" if report.findings else "",
        *map(_finding, report.findings),
    ]
    rows = [_precision(v.where, p) for v in report.verdicts for p in v.precision]
    if rows:
        heads = ("value", "dtype", "by hand", "beside it")
        unit = "Errors in units of the last place: the 99th percentile, with median and maximum; bars by decades."
        parts += ["<h2>Precision</h2>", _table(heads, rows), f'<p class="fine">{unit}</p>']
    parts += [f"<p>Note: {html.escape(note)}.</p>" for note in report.notes]
    return "\n".join(part for part in parts if part) + "\n"


def _verdict(v: Verdict) -> tuple[str, ...]:
    return f"<code>{html.escape(v.where)}</code>", _word(v.verdict), f"<pre>{html.escape(v.detail)}</pre>"


def _word(verdict: str) -> str:
    return f'<span class="verdict {verdict}">{verdict}</span>'


def _finding(finding: Finding) -> str:
    what = f"<b><code>{html.escape(finding.where)}</code>: {html.escape(finding.kind)}</b>"
    return f"<p>{what}</p><pre>{html.escape(finding.detail)}</pre>"


def _precision(where: str, p: Precision) -> tuple[str, ...]:
    by_hand, beside = (
        f"{u.p99:.3g} ({u.median:.3g}, {u.maximum:.3g}){_bar(u.p99, kind)}"
        for u, kind in ((p.hand, "bar"), (p.autodiff, "bar beside"))
    )
    return f"<code>{html.escape(where)}</code>", p.dtype, by_hand, f"{p.beside}: {beside}"


def _bar(ulps: float, kind: str) -> str:
    share = min(1.0, math.log10(1 + ulps) / WIDEST) if math.isfinite(ulps) else 1.0
    return f'<span class="{kind}" style="width: {12 * share:.1f}rem"></span>'


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
