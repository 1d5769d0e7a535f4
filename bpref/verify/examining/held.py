"""The examination in float64: is the derivation right, at every element, of every argument, at every point?

Nothing is tuned: two float64 programs for the same derivative agree to round-off, and where one of them amplifies
round-off, the check measures by how much, by rounding every operation of both at random
(`bpref.verify.programs.running`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from bpref.verify.examining.program import COTANGENTS, SCALES, Program, Seen
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.kinks import Kinks, Neighbourhood, at_kinks
from bpref.verify.numbers.measure import sample_errors
from bpref.verify.oracle import Arrays

ROUND_OFF = 1e-10
"""The relative error in float64 above which a derivation is wrong: a thousand times what round-off makes."""

AMPLIFIED = 100
"""How many times the effect of rounding every operation at random an error may be, where that effect is larger."""

TRIALS = 3
"""How often every operation is rounded at random."""

MORE_TRIALS = 12
"""The same before a value is accused that is right at some samples: where one rounding is all that spoils a value, a
few trials may miss it by chance."""

UNDECIDED = 1e-6
"""Where round-off may make a larger relative error than this, a sample says nothing."""


class Effect(NamedTuple):
    """What round-off may make of a value, one relative error for each sample: in the oracle, and there or by hand."""

    oracle: np.ndarray
    either: np.ndarray


Rounding = Callable[..., dict[str, Effect]]
"""What round-off may make of each value; computed when it is first asked for. It takes a number of trials, or nothing
for `TRIALS`; with `beside=True` it is taken a step away from the points, where a jump that they lie on is not mistaken
for round-off."""


class Point(NamedTuple):
    """Where a derivation is tried: its array leaves, and a stack of cotangents for each output."""

    leaves: Arrays
    dys: Arrays


class Held(NamedTuple):
    """One value, the hand's held against the oracle's.

    Attributes:
      where: its name.
      hand: one sample for each point and cotangent along the first axis.
      oracle: likewise; where the oracle itself is wrong, at a kink of its formula, what it should be.
      error: the largest relative error, elementwise, where it can be judged.
      allowed: what round-off may have made at the worst sample.
      vouched: whether a sample that round-off cannot have spoilt is right.
      kinked: the elements where the hand has another subgradient than the oracle, as right.
      unjudged: the elements that the oracle has no finite value for, and its neighbours neither.
      refused: the elements that are not what the gradient is just beside them.
      misled: of these, those that autodiff of the formula gives too.
      right: for each sample, whether it is right.
    """

    where: str
    hand: np.ndarray
    oracle: np.ndarray
    error: float
    allowed: float
    vouched: bool
    kinked: np.ndarray
    unjudged: np.ndarray
    refused: np.ndarray
    misled: np.ndarray
    right: np.ndarray

    @property
    def kinks(self) -> int:
        return int(self.kinked.sum())

    @property
    def torn(self) -> np.ndarray:
        """The elements at kinks, where the hand was held against what is beside them and not the oracle."""
        return self.kinked | self.refused

    @property
    def is_misled(self) -> bool:
        """Whether nothing is wrong but what the oracle has wrong too."""
        apart = np.where(self.unjudged | self.kinked | self.misled, 0.0, sample_errors(self.hand, self.oracle))
        return bool(self.misled.any()) and float(np.max(apart, initial=0.0)) <= max(self.allowed, ROUND_OFF)

    @property
    def is_wrong(self) -> bool:
        return not self.error <= self.allowed

    @property
    def is_clipped(self) -> bool:
        """Whether the samples with the smallest cotangents, the last ones, are right, and of the largest none is."""
        _, large, small = np.split(self.right, len(SCALES))
        return bool(np.all(small)) and not np.any(large)

    @property
    def only_where(self) -> str:
        """Which sign the one cotangent has everywhere for which it is wrong; empty where it is wrong for others too."""
        wrong = {divmod(int(i), COTANGENTS) for i in np.flatnonzero(~self.right)}
        return fresh.ONE_SIGNED.get(wrong.pop(), "") if len(wrong) == 1 else ""

    @property
    def is_open(self) -> bool:
        """Whether an element was not judged, or an error is too large to pass and too small to accuse."""
        return bool(self.unjudged.any()) or (not self.is_wrong and not self.vouched)


def run_in_float64(run: Callable[..., Seen], points: Sequence[Point]) -> list[Seen]:
    """A program's values at every point; called with x64 switched on, and only then."""
    with jax.enable_x64(True):
        return [run(*p) for p in points]


def stacked(seen: Sequence[Seen]) -> Seen:
    """The values of several points in one: cotangents one after the other, outputs and sums one for each point."""

    def of(field: Callable[[Seen], dict], join: Callable) -> dict[str, np.ndarray]:
        return {name: join([field(s)[name] for s in seen]) for name in field(seen[0])}

    return Seen(
        of(lambda s: s.y, np.stack),
        of(lambda s: s.y_oracle, np.stack),
        of(lambda s: s.hand, np.concatenate),
        of(lambda s: s.oracle, np.concatenate),
        of(lambda s: s.combined, np.stack),
        of(lambda s: s.zero, np.stack),
        of(lambda s: s.alone, np.stack),
    )


def pairs(seen: Sequence[Seen]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every value of several points by name, as `stacked` joins it, the hand's and the oracle's, where both have one of
    the same shape."""
    sides = [(lambda s: s.y, lambda s: s.y_oracle, np.stack), (lambda s: s.hand, lambda s: s.oracle, np.concatenate)]
    return {
        name: (join([hand(s)[name] for s in seen]), join([oracle(s)[name] for s in seen]))
        for hand, oracle, join in sides
        for name, v in hand(seen[0]).items()
        if name in oracle(seen[0]) and v.shape == oracle(seen[0])[name].shape
    }


def hold(
    program: Program,
    points: Sequence[Point],
    seen: Sequence[Seen],
    rounding: Rounding,
    round_off: float = ROUND_OFF,
    neighbours: Neighbourhood | None = None,
) -> list[Held]:
    """Every value of the hand's held against the oracle's; only where they disagree is `rounding` asked for.

    `neighbours` are the points', given where the same points are held more than once.
    """
    values, cotangents = pairs(seen), set(seen[0].hand)
    neighbours = neighbours or Neighbourhood(program.gradients, points, program.names)

    def held(name: str, hand: np.ndarray, oracle: np.ndarray) -> Held:
        here = _hold(name, hand, oracle, round_off)
        kinks = None
        if name in cotangents and (here.is_wrong or here.is_open or _is_torn(neighbours, seen, name)):
            kinks = at_kinks(neighbours, [(s.hand[name], s.oracle[name]) for s in seen], name)
            here = _hold(name, hand, oracle, round_off, kinks)
        if here.is_wrong:
            here = _hold(name, hand, oracle, round_off, kinks, _limits(here, rounding))
        if here.is_wrong and np.any(here.right):  # it is in doubt
            more = partial(rounding, MORE_TRIALS)
            here = _hold(name, hand, oracle, round_off, kinks, _limits(here, more))
        return here

    return [held(name, *pair) for name, pair in values.items()]


def _is_torn(neighbours: Neighbourhood, seen: Sequence[Seen], name: str) -> bool:
    return any(neighbours.is_torn(i, name, seen[i].oracle[name]) for i in neighbours.special)


def _limits(here: Held, rounding: Rounding) -> Effect:
    """What round-off may make of each sample; where the hand was refused at a kink, what it makes beside that."""
    limits = rounding()[here.where]
    if not here.refused.any():
        return limits
    refusing = here.refused.reshape(len(here.hand), -1).any(axis=1)
    beside = rounding(beside=True)[here.where]
    return Effect(*(np.where(refusing, *both) for both in zip(beside, limits, strict=True)))


def effect_of_rounding(program: Program, points: Sequence[Point], n: int = TRIALS) -> dict[str, Effect]:
    """What round-off may make of each value: the largest seen in `n` trials."""
    trials = [_effect(program, [nudged(p, i) for p in points]) for i in range(n)]

    def largest(name: str) -> Effect:
        by_hand, oracle = np.maximum(ROUND_OFF, AMPLIFIED * np.max([t[name] for t in trials], axis=0))
        return Effect(oracle, np.maximum(by_hand, oracle))

    return {name: largest(name) for name in trials[0]}


def _effect(program: Program, points: Sequence[Point]) -> dict[str, list[np.ndarray]]:
    """By hand and in the oracle."""
    plain, rounded_at_random = (pairs(run_in_float64(run, points)) for run in (program.run, program.rounded))

    def apart(v, w, truth):
        """How far v moves, in the units that its error is judged in: the truth's, where that is not zero."""
        v, w = v.astype(np.result_type(v, truth)), w.astype(np.result_type(w, truth))
        unit = np.where(np.any(truth != 0, axis=tuple(range(1, truth.ndim)), keepdims=True), truth, v)
        known = np.isfinite(v) & np.isfinite(w) & np.isfinite(unit)
        with np.errstate(invalid="ignore"):
            errors = np.where(known, sample_errors(unit + (w - v), unit), 0.0)
        return errors.reshape(len(v), -1).max(axis=1, initial=0.0)

    return {
        name: [apart(*both, pair[1]) for both in zip(pair, rounded_at_random[name], strict=True)]
        for name, pair in plain.items()
    }


def nudged(point: Point, trial: int) -> Point:
    """The same point, its inputs and cotangents moved by a few units of their last place; at trial 0 as it is."""
    rng, far = fresh.generator(trial, 1), 4 * float(np.finfo(np.float64).eps) * (trial > 0)
    return Point(*(fresh.nudged(values, rng, far) for values in point))


def _hold(
    where: str,
    hand: np.ndarray,
    oracle: np.ndarray,
    round_off: float,
    kinks: Kinks | None = None,
    limits: Effect | None = None,
) -> Held:
    """One value held against the oracle's; `limits` are what round-off may make of each sample, if it is more.

    A sample vouches for the hand where round-off does not spoil the oracle: what a hand loses is the hand's affair.
    """
    of_oracle, of_either = limits or (0.0, 0.0)
    accepted, refused, misled, oracle = kinks or (*(np.zeros(oracle.shape, bool) for _ in range(3)), oracle)
    unjudged = ~np.isfinite(oracle) & ~accepted
    worst = np.where(unjudged | accepted, 0.0, sample_errors(hand, oracle)).reshape(len(hand), -1)
    worst = worst.max(axis=1, initial=0.0)
    allowed = np.full(len(hand), np.maximum(round_off, of_either))
    right = worst <= allowed
    vouched = bool(np.any(right & (np.maximum(round_off, of_oracle) <= max(UNDECIDED, round_off)))) or not worst.size
    sample = max(range(len(worst)), key=lambda i: (not right[i], worst[i]), default=0)
    error, limit = (float(v[sample]) if v.size else 0.0 for v in (worst, allowed))
    return Held(where, hand, oracle, error, limit, vouched, accepted, unjudged, refused, misled, right)
