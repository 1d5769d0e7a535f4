"""What `bpref verify` saw, as a page."""

import html
from collections.abc import Iterable, Sequence

from bpref.cli.pages.page import document, table, word
from bpref.models.mlp_equations import Equation, by_text
from bpref.verify import RuleReport
from bpref.verify.numbers.measure import Ulps


def page(reports: Sequence[RuleReport], equations: Sequence[Equation], said: str, seed: int) -> str:
    """Every rule's figures, what is wrong first, and the seed's equations; `said` is the command's last line."""
    parts = [f'<p class="fine">float64 oracle: autodiff of each rule\'s reference; seed {seed}</p>']
    if reports:
        parts += ["<h2>Rules</h2>", table(HEADS, map(_rule, sorted(reports, key=lambda r: r.ok))), UNIT]
    if equations:
        parts += ["<h2>The seed's equations</h2>", table(("equation", "error in float64", "verdict"), _rows(equations))]
    return document(said, "\n".join(parts) + "\n")


HEADS = ("rule", "cases", "float64", "float32: by hand, autodiff", "bfloat16: by hand, autodiff", "kept", "verdict")

UNIT = """<p class="fine">float64: the largest relative error. float32, bfloat16: the 99th percentile of errors in units
of the last place. Kept: the bytes that the backward needs, beside those that jax.vjp keeps.</p>"""


def _rule(r: RuleReport) -> tuple[str, ...]:
    ulps = (f"{_short(e.hand)}, {_short(e.autodiff)}" for e in (r.float32, r.bfloat16))
    kept = f"{r.cache_bytes:,}, {r.autodiff_bytes:,}"
    why = "".join(f"<pre>{html.escape(finding)}</pre>" for finding in r.findings)
    name = f"<code>{html.escape(r.name)}</code>"
    return name, str(r.cases), f"{r.float64:.0e}", *ulps, kept, word("ok" if r.ok else "wrong") + why


def _short(ulps: Ulps) -> str:
    return f"{ulps.p99:.3g}"


def _rows(equations: Iterable[Equation]) -> Iterable[tuple[str, ...]]:
    for text, same in by_text(equations).items():
        verdict = word("ok" if all(e.ok for e in same) else "wrong")
        yield f"<code>{html.escape(text)}</code>", f"{max(e.error for e in same):.0e}", verdict
