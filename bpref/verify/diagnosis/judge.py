"""From what was seen to a verdict: for each value, is it right, and what is wrong with it?"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from bpref.verify.diagnosis.diagnose import diagnose, diagnose_shape
from bpref.verify.diagnosis.pattern import pattern_of
from bpref.verify.diagnosis.residual import Residual
from bpref.verify.diagnosis.slopes import with_other_slopes
from bpref.verify.diagnosis.terms import contributions
from bpref.verify.examining import rows
from bpref.verify.examining.held import ROUND_OFF, Held, Point, run_in_float64
from bpref.verify.examining.laws import TWO_ANSWERS
from bpref.verify.examining.prepare import Prepared
from bpref.verify.examining.program import COTANGENTS, Seen
from bpref.verify.numbers.points import is_key
from bpref.verify.report import CANNOT_TELL, IMPRECISE, OK, WRONG, Finding, Precision, Verdict

Arrays = dict[str, np.ndarray]

LEGIBLE = 1e-3
"""However much round-off may make of a value, what explains it agrees with it to three digits."""


def unscaled(arrays: Arrays, scales: Sequence[float]) -> Arrays:
    """Stacked cotangents as they are for the dys that were drawn; exactly, since the scales are powers of two."""
    of_samples = np.repeat(scales, COTANGENTS)
    return {name: v / of_samples.reshape(-1, *[1] * (v.ndim - 1)) for name, v in arrays.items()}


def residuals(
    ready: Prepared, points: list[Point], seen: Seen, scales: Sequence[float], nonlinear: set[str]
) -> Callable[[str, Held | None], Residual]:
    """`(name, held) -> Residual` for the values of one stacked run.

    The points' cotangents differ by the powers of two in `scales`. They are divided out, except for the values whose
    backward is not linear.
    """
    of_args = {
        name: np.stack([p.leaves[i] for p in points])
        for i, name in enumerate(ready.subject.names)
        if not is_key(points[0].leaves[i])
    }
    dys = [np.concatenate([p.dys[i] for p in points]) for i in range(len(points[0].dys))]
    scaled = partial(unscaled, scales=scales)

    @cache
    def terms() -> dict[str, Arrays]:
        return contributions(ready.primal, ready.subject.names, points)

    @cache
    def slopes() -> dict[str, Arrays]:
        return with_other_slopes(ready.primal, ready.subject.names, points)

    def of_one(of_all: Callable[[], dict[str, Arrays]], name: str, level: Callable[[Arrays], Arrays]) -> Arrays:
        return level(of_all()[name])

    def for_dys(name: str, others: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """The oracle's cotangents of one argument for other dys, each given for all samples."""

        def for_all(d: Mapping[str, np.ndarray]) -> np.ndarray:
            of_points = [
                Point(p.leaves, [dy[i * COTANGENTS : (i + 1) * COTANGENTS] for dy in d.values()])
                for i, p in enumerate(points)
            ]
            return np.concatenate([s.oracle[name] for s in run_in_float64(ready.wide.oracle, of_points)])

        return list(map(for_all, others))

    def round_off(held: Held | None) -> float:
        return min(held.allowed, max(LEGIBLE, ready.round_off)) if held else ROUND_OFF

    def of_output(name: str, held: Held | None) -> Residual:
        others = {n: v for n, v in seen.y_oracle.items() if n != name}
        return Residual(name, seen.y[name], seen.y_oracle[name], others, of_args, {}, {}, round_off(held))

    def of_cotangent(name: str, held: Held | None) -> Residual:
        level: Callable[[Arrays], Arrays] = dict if name in nonlinear else scaled
        right = {name: held.oracle} if held else {}
        hand, oracle = level(seen.hand), level(seen.oracle | right)
        outputs = {n: np.repeat(v, COTANGENTS, axis=0) for n, v in seen.y_oracle.items()}
        return Residual(
            where=name,
            hand=hand.get(name, np.zeros_like(oracle[name])),
            oracle=oracle[name],
            others={n: v for n, v in oracle.items() if n != name},
            args={n: np.repeat(v, COTANGENTS, axis=0) for n, v in of_args.items()},
            y=outputs,
            dy=level(dict(zip(outputs, dys, strict=True))),
            round_off=round_off(held),
            terms=partial(of_one, terms, name, level),
            slopes=partial(of_one, slopes, name, level),
            for_dys=partial(for_dys, name),
        )

    def residual(name: str, held: Held | None) -> Residual:
        return of_output(name, held) if name in seen.y_oracle else of_cotangent(name, held)

    return residual


EXPLAIN_NONLINEARITY = ("clipped", "nonfinite", "ignores_dy")
"""The diagnoses that say more of a backward than that it is not linear."""


class Evidence(NamedTuple):
    """Everything that is known about one value when it is judged.

    Attributes:
      where: its name.
      held: the hand's beside the oracle's; None if the hand has no array of that shape.
      findings: what the laws have said of it already.
      residual: what a diagnosis is made from, as a function, since it is seldom needed.
      precision: its errors in the working dtypes.
      faults: what is wrong with it in one of them.
      oracle: where the oracle itself was found wrong.
    """

    where: str
    held: Held | None
    findings: tuple[Finding, ...]
    residual: Callable[[], Residual]
    precision: tuple[Precision, ...]
    faults: tuple[Finding, ...]
    oracle: tuple[Finding, ...] = ()


def judge(e: Evidence) -> tuple[Verdict, list[Finding]]:
    """The verdict on one value, and the findings that it rests on."""
    findings = [f for f in e.findings if f.kind in ("structure", "dtype")]
    impure = [f for f in e.findings if f.kind == "impure"]
    if not findings and e.held is None and _is_absent_zero(e):
        return Verdict(e.where, OK, "None, and the oracle's is zero", 0.0), []
    if not findings and any(f.detail == TWO_ANSWERS for f in impure):
        return Verdict(e.where, CANNOT_TELL, _lines(impure), float("inf")), impure
    if not findings and e.oracle:
        return Verdict(e.where, CANNOT_TELL, _lines(list(e.oracle)), float("inf")), list(e.oracle)
    if not findings:
        findings = _derivation(e)
    if findings:
        return Verdict(e.where, WRONG, _lines(findings), max(f.error for f in findings), e.precision), findings
    assert e.held is not None
    kinks = [Finding(e.where, "kink", _kink(e.held), 0.0)] if e.held.kinks else []
    if e.held.is_open:
        return Verdict(e.where, CANNOT_TELL, _open(e.held), e.held.error, e.precision), kinks
    coarse = [f for f in e.faults if f.kind != "undefined"]
    if coarse:
        return Verdict(e.where, IMPRECISE, _lines(coarse), e.held.error, e.precision), coarse + kinks
    if e.faults:
        return Verdict(e.where, CANNOT_TELL, _lines(list(e.faults)), e.held.error, e.precision), [*e.faults, *kinks]
    figures = [f"{e.held.error:.0e} in float64", *map(rows.text, e.precision)]
    return Verdict(e.where, OK, "; ".join(figures + [f.detail for f in kinks]), e.held.error, e.precision), kinks


def _is_absent_zero(e: Evidence) -> bool:
    residual = e.residual()
    return residual.hand.shape == residual.oracle.shape and not np.any(residual.oracle)


def _derivation(e: Evidence) -> list[Finding]:
    nonlinear = [f for f in e.findings if f.kind == "nonlinear"]
    if e.held is None:
        residual = e.residual()
        found = diagnose_shape(residual)
        return [Finding(e.where, *found)]
    if e.held.is_wrong:
        if nonlinear and e.held.is_clipped and np.all(np.isfinite(e.held.hand)):
            return [Finding(e.where, "clipped", "right for small cotangents, clipped for large ones", e.held.error)]
        if nonlinear and (sign := e.held.only_where):
            detail = f"wrong where the cotangent is {sign} everywhere, and right for others"
            return [Finding(e.where, "nonlinear", detail, e.held.error)]
        if e.held.is_misled:
            return [Finding(e.where, "oracle", misled_text(e.held), e.held.error)]
        residual = e.residual()
        found = diagnose(residual)
        if nonlinear and found.kind not in EXPLAIN_NONLINEARITY:
            return nonlinear
        return [Finding(e.where, *found, e.held.error, pattern_of(residual))]
    return [f for f in e.findings if f.kind in ("nonlinear", "impure")]


def _lines(findings: list[Finding]) -> str:
    return "\n".join(f.detail for f in findings)


def _kink(held: Held) -> str:
    return f"at {held.kinks} kinks it has another subgradient than the oracle, as right"


def misled_text(held: Held) -> str:
    """In words where the hand and autodiff of the formula are both no limit of the gradients beside a kink."""
    sample, *index = np.argwhere(held.misled)[0].tolist()
    hand, truth = held.hand[(sample, *index)], held.oracle[(sample, *index)]
    more = _more(held.misled)
    return (
        f"at {index}{more} it is {hand:.4g}, and so is autodiff of the formula, which has a kink there; "
        f"the gradient beside it is {truth:.4g}"
    )


def _open(held: Held) -> str:
    if held.unjudged.all() and held.unjudged.size:
        return "the oracle is NaN or infinite at every element, at every point"
    if held.unjudged.any():
        sample, *index = np.argwhere(held.unjudged)[0].tolist()
        hand = held.hand[(sample, *index)]
        said = f"it is {hand:.4g}" if np.isfinite(hand) else "so is it"
        rest = "right" if not held.is_wrong else "wrong"
        return (
            f"at {index}{_more(held.unjudged)} the oracle is NaN or infinite, and has no limit there; {said}; "
            f"all else is {rest}, {held.error:.0e} in float64"
        )
    return (
        f"off by {held.error:.1e}, which round-off may explain: it makes up to {held.allowed:.0e} here; "
        "values that lose fewer digits, or a reference= that does, would tell"
    )


def _more(chosen: np.ndarray) -> str:
    more = int(chosen.any(axis=0).sum()) - 1
    return f" and {more} more" if more else ""
