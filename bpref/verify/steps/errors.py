"""A hand-computed cotangent of a named value beside what it should be, judged by the precision it was computed in."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bpref.verify.examining.held import AMPLIFIED, ROUND_OFF, Point
from bpref.verify.numbers.kinks import Neighbourhood, at_kinks
from bpref.verify.numbers.measure import NEGLIGIBLE
from bpref.verify.steps.steps import Sample, Steps, no_shifts

OPEN = 8
"""Up to this many times what rounding may have made, an error is not called wrong."""

MOST = 0.1
"""Arrays further apart than this, relatively, are not taken for equal in a diagnosis, whatever their dtype."""

FACTOR = 8
"""How many times the rounding of the given dtype, and what it does downstream, an error may be."""


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


class _Oracle(NamedTuple):
    hand: dict[str, np.ndarray]
    oracle: dict[str, np.ndarray]


def _kinked(name: str, steps: Steps, seen: Sequence[Sample], which: str) -> list[np.ndarray]:
    """Where the forward has a kink at a point, and the hand has a subgradient there."""
    return [_kinked_at(name, steps, case, which) for case in seen]


def _kinked_at(name: str, steps: Steps, case: Sample, which: str) -> np.ndarray:
    def run(leaves, dys):
        expected = getattr(steps.wide(leaves, case.dy, no_shifts(steps), case.hand), which)
        return _Oracle({}, {name: expected[name][None]})

    here = _Oracle({name: case.hand[name][None]}, {name: getattr(case, which)[name][None]})
    return at_kinks(Neighbourhood(run, [Point(case.leaves, [])], (), special=()), [here], name).accepted[0]
