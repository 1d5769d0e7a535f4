"""check_intermediates: of a derivation's cotangents of named intermediates, which is the first wrong step?"""

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from bpref.verify.diagnosis.diagnose import diagnose, diagnose_shape
from bpref.verify.diagnosis.pattern import pattern_of
from bpref.verify.diagnosis.residual import Diagnosis, Residual
from bpref.verify.examining.held import AMPLIFIED, ROUND_OFF, Point
from bpref.verify.naming import function_name, leaf_names
from bpref.verify.numbers.kinks import Neighbourhood, at_kinks
from bpref.verify.numbers.measure import NEGLIGIBLE, widened
from bpref.verify.options import came, require_callable, require_cotangents, seed_of
from bpref.verify.programs.running import as_if_at_home, ran_interpreted
from bpref.verify.report import CANNOT_TELL, OK, WRONG, Finding, Report, Verdict
from bpref.verify.steps.steps import Cotangents, Sample, Steps, no_shifts, samples, steps_of

OPEN = 8
"""Up to this many times what rounding may have made, an error is not called wrong."""

MOST = 0.1
"""Arrays further apart than this, relatively, are not taken for equal in a diagnosis, whatever their dtype."""

FACTOR = 8
"""How many times the rounding of the given dtype, and what it does downstream, an error may be."""


class IntermediatesReport(NamedTuple):
    """What `check_intermediates` says. Printed, it is a table in backward order, the last computed value first.

    Attributes:
      name: the forward's name.
      oracle: what the cotangents were held against.
      key: the seed of every random draw.
      verdicts: one for each name, in backward order.
      findings: the steps that are wrong by themselves, in backward order.
      consequences: the names that are wrong only because they were computed, rightly, from others that are wrong;
        and for each of them, from which.
      notes: what else a reader should know.
    """

    name: str
    oracle: str
    key: int
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]
    consequences: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self._table.ok

    @property
    def verdict(self) -> str:
        """The gravest verdict of all."""
        return self._table.verdict

    @property
    def first_wrong(self) -> str | None:
        """The name at which back-propagation goes wrong first; None if it does not."""
        return self.findings[0].where if self.findings else None

    def raise_if_wrong(self) -> "IntermediatesReport":
        """Raise `AssertionError` with the report if any step is wrong; else the report itself."""
        if self.verdict == WRONG:
            raise AssertionError(f"\n{self}")
        return self

    def to_json(self) -> str:
        """The whole report as one JSON object."""
        whole = json.loads(self._table.to_json())
        more = {"first_wrong": self.first_wrong, "consequences": {k: list(v) for k, v in self.consequences.items()}}
        return json.dumps(whole | more, indent=1)

    def __str__(self) -> str:
        first = f"\n  first wrong step: d{self.first_wrong}" if self.findings else ""
        return f"{self._table}{first}"

    @property
    def _table(self) -> Report:
        return Report(self.name, self.oracle, self.key, self.verdicts, self.findings, self.notes)


@as_if_at_home
def check_intermediates(
    forward: Callable[..., PyTree],
    args: Sequence[PyTree],
    cotangents: Cotangents,
    dy: PyTree = None,
    key: int | Array | None = None,
) -> IntermediatesReport:
    """Hold hand-computed cotangents of a forward's intermediates against autodiff's, step by step.

    A step is judged by itself: the cotangent of a value is what the hand's own cotangents of the values computed
    from it make of it. A cotangent that is wrong and yet right for those is wrong only as their consequence.

    Args:
      forward: a function that names its intermediates, `z = jax.ad_checkpoint.checkpoint_name(z, "Z2")`; also inside
        jit, remat and custom rules, which are stripped; not inside loops and branches.
      args: the arguments of `forward`, a tuple: pytrees of arrays, or of specifications where `cotangents` is a
        function.
      cotangents: `{"Z2": dZ2, ...}`, arrays computed for these `args` and `dy`, which are then judged by the
        precision of their dtype; or a function `(args, dy) -> {"Z2": dZ2, ...}`, which is judged in float64, at
        several points. What is named and not given is not looked at.
      dy: the cotangent of the output; left out, 1 for a scalar output, and random for a function's.
      key: the seed of every random draw, a whole number or a `jax.random.key`; left out, a new one, which the report
        names.

    Example:
      >>> from jax.ad_checkpoint import checkpoint_name
      >>> def forward(W, x):
      ...     return jnp.sum(checkpoint_name(jnp.tanh(checkpoint_name(W @ x, "Z")), "A") ** 2)
      >>> def cotangents(args, dy):
      ...     A = jnp.tanh(args[0] @ args[1])
      ...     return {"A": 2 * A * dy, "Z": 2 * A * dy * (1 - A**2)}
      >>> bpref.check_intermediates(forward, (jnp.ones((2, 3)), jnp.full(3, 0.1)), cotangents).ok
      True

    Raises:
      TypeError, ValueError: a call that cannot be checked: a name that the forward does not give, or gives twice, or
        gives inside a loop; no scalar output and no `dy`.
    """
    if not isinstance(args, tuple | list):
        raise TypeError(f"check_intermediates: args is {came(args)}, expected the tuple of forward's args")
    require_callable("check_intermediates", "forward", forward)
    require_cotangents("check_intermediates", cotangents)
    key = seed_of("check_intermediates", key)
    steps = steps_of(forward, tuple(args), cotangents, dy, key)
    seen = samples(steps, key)
    report = _report(function_name(forward), steps, seen, key)
    return report._replace(notes=(*report.notes, *ran_interpreted(forward, *args)))


class Beside(NamedTuple):
    """The hand's cotangent of one value beside the one expected, over all points.

    Attributes:
      dtype: the precision it is judged by.
      error: the largest relative error, elementwise.
      excess: the largest error, in units of what rounding may have made of the element.
      allowed: that, relatively, at the worst element.
      round_off: the relative error below which two arrays may count as equal in a diagnosis.
      kinks: at how many elements another subgradient was accepted.
      nothing: whether the expected cotangent has no finite element.
    """

    dtype: np.dtype
    error: float
    excess: float
    allowed: float
    round_off: float
    kinks: int = 0
    nothing: bool = False

    @property
    def is_right(self) -> bool:
        return self.excess <= 1 and not self.nothing

    @property
    def is_wrong(self) -> bool:
        return not (self.excess <= OPEN or self.nothing)

    def text(self) -> str:
        kinks = f"; at {self.kinks} kinks it has another subgradient than the oracle, as right" if self.kinks else ""
        in_dtype = "in float64" if self.dtype == np.float64 else f"by the precision of {self.dtype}"
        return f"{self.error:.0e} {in_dtype}{kinks}"

    def open_text(self) -> str:
        if self.nothing:
            return "the oracle is NaN or infinite at every element"
        advice = "" if self.dtype == np.float64 else "; given as a function, cotangents are judged in float64"
        return f"off by {self.error:.1e}, where rounding in {self.dtype} makes {self.allowed:.0e}{advice}"


class _Judged(NamedTuple):
    verdict: Verdict
    finding: Finding | None = None
    because: tuple[str, ...] = ()


def _report(name: str, steps: Steps, seen: list[Sample], key: int) -> IntermediatesReport:
    judged: dict[str, _Judged] = {}
    for where in reversed(steps.shapes):
        judged[where] = _judge(where, steps, seen, judged)
    return IntermediatesReport(
        name,
        "backward order   float64 oracle: its own primal, differentiated",
        key,
        tuple(j.verdict for j in judged.values()),
        tuple(j.finding for j in judged.values() if j.finding),
        {where: j.because for where, j in judged.items() if j.because},
        steps.notes,
    )


def _judge(where: str, steps: Steps, seen: list[Sample], judged: dict[str, _Judged]) -> _Judged:
    misfit = steps.misfits.get(where)
    if misfit is not None:
        detail = f"its cotangent is {misfit}, expected {steps.shapes[where].dtype}{list(steps.shapes[where].shape)}"
        return _wrong(Finding(where, *_of_misfit(where, detail, steps, seen)))
    whole = beside(where, steps, seen, "total")
    if whole.is_right:
        return _Judged(Verdict(where, OK, whole.text(), whole.error))
    doubtful = tuple(w for w in steps.uses[where] if judged[w].verdict.verdict != OK)
    alone = beside(where, steps, seen, "step") if doubtful else whole
    if alone.is_right and whole.is_wrong:
        of = " and ".join(f"d{w}" for w in doubtful)
        verdict = judged[doubtful[0]].verdict.verdict if len(doubtful) == 1 else WRONG
        detail = f"only because of {of}, from which it is rightly computed"
        return _Judged(Verdict(where, verdict, detail, whole.error), None, doubtful)
    if not (alone.is_wrong and whole.is_wrong):
        return _Judged(Verdict(where, CANNOT_TELL, alone.open_text(), alone.error))
    if where not in steps.live:
        hint = "nothing is computed from this value: go on with what checkpoint_name returns"
        return _wrong(Finding(where, "structure", hint, alone.error))
    residual = _residual(where, steps, seen, alone)
    return _wrong(Finding(where, *diagnose(residual), alone.error, pattern_of(residual)), doubtful)


def _wrong(finding: Finding, doubtful: tuple[str, ...] = ()) -> _Judged:
    more = f"\nnot only because of {' and '.join(f'd{w}' for w in doubtful)}" if doubtful else ""
    return _Judged(Verdict(finding.where, WRONG, finding.detail + more, finding.error), finding)


def _of_misfit(where: str, detail: str, steps: Steps, seen: list[Sample]) -> Diagnosis:
    hand = [widened(case.misshapen[where]) for case in seen]
    if not all(np.issubdtype(v.dtype, np.inexact) for v in hand):
        return Diagnosis("structure", detail)
    residual = _residual(where, steps, seen, None)
    return diagnose_shape(residual._replace(hand=np.stack(hand)))


def _residual(where: str, steps: Steps, seen: list[Sample], held: Beside | None) -> Residual:
    """What a diagnosis is made from: the step beside the one that is right for the same incoming cotangents."""

    def stacked(values: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {n: np.stack([v[n] for v in values]) for n in values[0]}

    expected = stacked([case.step | {n: v for n, v in case.total.items() if n not in case.step} for case in seen])
    arguments = {n: np.stack([case.leaves[i] for case in seen]) for i, n in enumerate(steps.names)}
    values = stacked([case.values for case in seen])
    outputs = leaf_names("y", seen[0].dy)
    dys = [np.stack(v) for v in zip(*(jax.tree.leaves(case.dy) for case in seen), strict=True)]
    return Residual(
        where=where,
        hand=expected[where] if held is None else np.stack([case.hand[where] for case in seen]),
        oracle=expected[where],
        others={n: v for n, v in expected.items() if n != where},
        args=arguments | values,
        y={},
        dy={n: v for n, v in zip(outputs, dys, strict=True) if np.issubdtype(v.dtype, np.inexact)},
        round_off=steps.round_off if held is None else held.round_off,
    )


def beside(name: str, steps: Steps, seen: Sequence[Sample], which: str) -> Beside:
    """The hand's cotangent of `name` beside autodiff's, `total`, or beside what is right for the hand's own, `step`."""
    plain = _beside(name, steps, seen, which, [np.zeros(case.values[name].shape, bool) for case in seen])
    return plain if plain.excess <= 1 else _beside(name, steps, seen, which, _kinked(name, steps, seen, which))


def _beside(name: str, steps: Steps, seen: Sequence[Sample], which: str, kinked: Sequence[np.ndarray]) -> Beside:
    errors, ratios, limits, judged = [], [], [], 0
    for case, kink in zip(seen, kinked, strict=True):
        hand, expected = case.hand[name], getattr(case, which)[name]
        allowed = _allowed(expected, [getattr(v, which)[name] for v in case.moved], steps.dtype)
        scale = _scale(expected)
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = np.abs(hand - expected)
            apart = np.where((hand == expected) | ~np.isfinite(expected) | kink, 0.0, apart)
            apart = np.where(np.isnan(apart), np.inf, apart)
            ratio = np.where((apart == 0) | np.isinf(allowed), 0.0, apart / allowed)
            errors.append(np.where(ratio == 0, 0.0, apart / scale).reshape(-1))
            limits.append((allowed / scale).reshape(-1))
        ratios.append(ratio.reshape(-1))
        judged += int(np.isfinite(expected).sum())
    error, ratio, limit = (np.concatenate(v) for v in (errors, ratios, limits))
    worst = int(np.argmax(ratio)) if ratio.size else 0
    finite = limit[np.isfinite(limit)]
    return Beside(
        steps.dtype,
        float(error.max(initial=0.0)),
        float(ratio.max(initial=0.0)),
        float(limit[worst]) if limit.size else 0.0,
        float(np.clip(finite.max(initial=0.0), ROUND_OFF, MOST)),
        sum(int(k.sum()) for k in kinked),
        ratio.size > 0 and judged == 0,
    )


def _scale(expected: np.ndarray) -> np.ndarray:
    """What an element's error is relative to, as in `bpref.verify.numbers.measure`; never zero."""
    size = np.abs(expected)
    largest = np.max(np.where(np.isfinite(size), size, 0.0), initial=0.0)
    return np.maximum(np.maximum(size, NEGLIGIBLE * largest), np.finfo(np.float64).tiny)


def _allowed(expected: np.ndarray, moved: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """What rounding may make of each element: from what moving everything by it makes, and autodiff's own error.

    Where it makes less of an element than of half of the others, that may be chance, and theirs counts.
    """
    with np.errstate(invalid="ignore"):
        effects = [np.where(np.isfinite(m), np.abs(m - expected), np.inf) for m in moved]
    unit = np.max([*effects, np.finfo(np.float64).eps * np.abs(expected)], axis=0, initial=0.0)
    finite = unit[np.isfinite(unit)]
    unit = np.maximum(unit, np.median(finite) if finite.size else 0.0)
    if dtype == np.float64:
        return np.maximum(AMPLIFIED * unit, ROUND_OFF * _scale(expected))
    return FACTOR * np.maximum(unit, float(jnp.finfo(dtype).eps) * np.abs(expected)) + np.finfo(np.float64).tiny


def _kinked(name: str, steps: Steps, seen: Sequence[Sample], which: str) -> list[np.ndarray]:
    """Where the forward has a kink at a point, and the hand has a subgradient there."""
    return [_kinked_at(name, steps, case, which) for case in seen]


def _kinked_at(name: str, steps: Steps, case: Sample, which: str) -> np.ndarray:
    def run(leaves, dys):
        expected = getattr(steps.wide(leaves, case.dy, no_shifts(steps), case.hand), which)
        return {name: expected[name][None]}

    here = case.hand[name][None], getattr(case, which)[name][None]
    return at_kinks(Neighbourhood(run, [Point(case.leaves, [])], (), special=()), [here], name).accepted[0]
