"""A whole rule, every case of it: what `bpref verify` shows in one line of its table."""

import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bpref.rule import Case, Rule
from bpref.verify.draw import axes_of, draw
from bpref.verify.examine import Finding, Precision, cache_bytes, examine, examiner, precision
from bpref.verify.measure import Ulps, summarise

SIZES = (64, 24, 5, 3)
"""The sizes of a case's axes, in order: all different, and enough elements for a 99th percentile."""


class Errors(NamedTuple):
    """Errors in ulps of one dtype, over every value of every case: by hand, and autodiff's own."""

    hand: Ulps
    autodiff: Ulps


class RuleReport(NamedTuple):
    """What was seen of one rule.

    Attributes:
      name: the rule.
      cases: how many cases were tried.
      float64: the largest relative error of any value or cotangent.
      float32, bfloat16: errors in ulps, beside autodiff's.
      cache_bytes, autodiff_bytes: what the backward needs kept, beside what `jax.vjp` keeps, over all cases.
      findings: what is wrong, each with the name of its case; empty when the rule is right.
      seconds: how long it took.
    """

    name: str
    cases: int
    float64: float
    float32: Errors
    bfloat16: Errors
    cache_bytes: int
    autodiff_bytes: int
    findings: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.findings


def verify_rule(rule: Rule, seed: int = 0) -> RuleReport:
    """Try every case of a rule: the laws of the derivation, of precision, and of the cache's size."""
    start = time.perf_counter()
    findings: list[str] = []
    errors: list[float] = []
    rows: dict[Any, list[Precision]] = {jnp.float32: [], jnp.bfloat16: []}
    cache = np.zeros(2, int)
    for case in rule.cases:
        example = draw(rule, case, sizes_of(case), seed)
        program = examiner(example.layer, example.reference)
        wrong, error = examine(example, program)
        errors.append(error)
        if all(f.law != "structure" for f in wrong):
            for dtype, seen in rows.items():
                compared = precision(example, dtype, program)
                wrong += [f for row in compared for f in imprecise(row, dtype)]
                seen += compared
            cache += cache_bytes(example)
        findings += [f"{case.name}: {f}" if case.name else str(f) for f in wrong]
    if cache[0] > cache[1] and not rule.larger_cache:
        findings.append(f"cache: {cache[0]} bytes are kept, jax.vjp keeps {cache[1]}")
    float32, bfloat16 = (_summary(seen) for seen in rows.values())
    seconds = time.perf_counter() - start
    hand_bytes, autodiff_bytes = map(int, cache)
    return RuleReport(
        rule.name,
        len(rule.cases),
        max(errors),
        float32,
        bfloat16,
        hand_bytes,
        autodiff_bytes,
        tuple(findings),
        seconds,
    )


def sizes_of(case: Case) -> dict[str, int]:
    """The sizes that a case is verified with."""
    return dict(zip(axes_of(case), SIZES, strict=False))


def imprecise(row: Precision, dtype: Any) -> list[Finding]:
    """The law of precision: no worse than twice autodiff's own error, and one unit more for a rounding of ours."""
    hand, autodiff = summarise(row.hand), summarise(row.autodiff)
    if hand.p99 <= 2 * autodiff.p99 + 1 and hand.median <= 2 * autodiff.median + 1:
        return []
    detail = f"{hand.p99:.1f} ulps of {jnp.dtype(dtype).name} (p99), autodiff {autodiff.p99:.1f}"
    return [Finding("precision", row.where, detail, hand.p99)]


def _summary(rows: list[Precision]) -> Errors:
    def pooled(arrays):
        return summarise(np.concatenate(arrays) if arrays else np.array([np.inf]))

    return Errors(pooled([r.hand for r in rows]), pooled([r.autodiff for r in rows]))
