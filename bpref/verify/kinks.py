"""Kinks and ties: where a function has no derivative, any subgradient between the one-sided ones is right.

Close to such a point the gradient takes several values, and every subgradient is a mean of these. A hand-derived
cotangent is accepted there if each element lies between the gradients found nearby, and if each sum that all of
those agree on (the elements of a tied maximum share one cotangent) is the hand's as well.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from bpref.verify.oracle import is_differentiable
from bpref.verify.points import generator

STEP = 1e-7
"""How far 'nearby' is, relative to an array's size."""

SMOOTH = 1e-9
"""How near the mean of opposite neighbours is to a smooth gradient between them, relatively."""

JUMP = 1e-3
"""The relative change of the gradient over such a step that only a kink can make."""

PAIRS = 5
"""How many pairs of opposite neighbours are looked at; in the first all inputs have moved up, and down."""


Nearby = Callable[[int], dict[str, np.ndarray]]
"""Of a point, by its index, the oracle's cotangents at its neighbours, stacked; computed when first asked for."""


class Kinks(NamedTuple):
    """What was found in the neighbourhoods of the points.

    Attributes:
      accepted: the elements of the hand's cotangent that are right though they differ from the oracle's,
        (samples, *shape).
      broken: the samples in which the hand breaks a sum that all gradients nearby agree on.
    """

    accepted: np.ndarray
    broken: np.ndarray


def nearby(run: Callable[[list[Any], list[Any]], Any], points: Sequence[Any]) -> Nearby:
    """The neighbourhoods of these points, each looked at once, whoever asks and for which of the cotangents."""

    @cache
    def of_point(i: int) -> dict[str, np.ndarray]:
        with jax.enable_x64(True):
            oracles = [run(leaves, points[i].dys).oracle for leaves in _neighbours(points[i].leaves)]
        return {name: np.stack([oracle[name] for oracle in oracles]) for name in oracles[0]}

    return of_point


def at_kinks(neighbours: Nearby, seen: Sequence[Any], name: str) -> Kinks:
    """Look at the neighbourhood of every point for the cotangent called `name`."""
    found = []
    for i, s in enumerate(seen):
        hand, oracle = s.hand[name], s.oracle[name]
        if hand.shape != oracle.shape or np.array_equal(hand, oracle):
            found += [(np.zeros(v.shape, bool), False) for v in oracle]
            continue
        around = np.swapaxes(neighbours(i)[name], 0, 1)
        found += [_accepted(*sample) for sample in zip(hand, oracle, around, strict=True)]
    return Kinks(*(np.stack(v) for v in zip(*found, strict=True)))


def _neighbours(leaves: list[Any]) -> Iterator[list[Any]]:
    rng = generator(0, 2)
    for i in range(PAIRS):
        steps = [_step(v, rng, i) if is_differentiable(v) else 0 for v in leaves]
        for sign in (1, -1):
            yield [v + sign * step if is_differentiable(v) else v for v, step in zip(leaves, steps, strict=True)]


def _step(v: np.ndarray, rng: np.random.Generator, which: int) -> np.ndarray:
    size = np.sqrt(np.mean(np.abs(v) ** 2)) if v.size else 1.0
    return STEP * (size or 1.0) * (rng.normal(size=v.shape) if which else np.ones(v.shape))


def _accepted(hand: np.ndarray, oracle: np.ndarray, nearby: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which elements have a kink that the hand is right at, and whether it breaks a sum that all neighbours keep.

    A function may be smooth where its formula has a kink, and autodiff of the formula be wrong at that one point:
    there the hand must be what its neighbours are.
    """
    if np.iscomplexobj(hand) or not np.all(np.isfinite(nearby)) or not np.all(np.isfinite(hand)):
        return np.zeros(hand.shape, bool), False
    scale = np.max(np.abs(nearby), initial=0.0)
    low, high, middle = nearby.min(axis=0), nearby.max(axis=0), nearby.mean(axis=0)
    kinked = high - low > JUMP * scale
    slack = JUMP * 0.1 * scale
    between = (hand >= low - slack) & (hand <= high + slack)
    smoothed = ~kinked & (np.abs(oracle - middle) > slack) & (np.abs(hand - middle) <= SMOOTH * scale)
    if not np.all(between[kinked]):
        return np.zeros(hand.shape, bool), False
    for axis in (None, *range(hand.ndim)):
        sums = nearby.sum(axis=tuple(range(1, nearby.ndim)) if axis is None else axis + 1)
        agreed = sums.max(axis=0) - sums.min(axis=0) <= slack
        touched = kinked.any(axis=axis) if kinked.ndim else kinked
        if np.any(agreed & touched & (np.abs(hand.sum(axis=axis) - sums.mean(axis=0)) > 10 * slack)):
            return np.zeros(hand.shape, bool), True
    return kinked | smoothed, False
