"""Kinks and ties of a called function: where it has no derivative, other subgradients than the oracle's are right."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from bpref.verify.examine import Point
from bpref.verify.host.called import Arrays, Called, widened
from bpref.verify.host.oracles import Oracle
from bpref.verify.numbers.kinks import JUMP, Neighbourhood, at_kinks

Points = Sequence[tuple[Arrays, list[Arrays]]]
"""The leaves and the cotangents of the output at each point."""


def settled(
    c: Called, oracle: Oracle, points: Points, n: int, hand: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The hand's cotangent of leaf `n`, with the truth where its own subgradient is as right, and the truth.

    `hand` and `truth` have a sample for each point and cotangent along the first axis; the oracle is an exact one.
    """
    name, count = c.names[n], len(hand) // len(points)
    seen = [
        SimpleNamespace(hand={name: hand[i : i + count]}, oracle={name: truth[i : i + count]})
        for i in range(0, len(hand), count)
    ]
    kinks = at_kinks(_neighbourhood(c, oracle, points, n), seen, name)
    return np.where(kinks.accepted, kinks.truth, hand), kinks.truth


def jumps(c: Called, oracle: Oracle, points: Points, n: int) -> np.ndarray:
    """How far the cotangent of leaf `n` jumps at each element, a sample for each point and cotangent; 0 off kinks."""
    neighbours = _neighbourhood(c, oracle, points, n)
    around = [neighbours.around(i)[c.names[n]] for i in range(len(points))]
    spread = np.concatenate([v.max(axis=0) - v.min(axis=0) for v in around])
    scale = max(float(np.max(np.abs(v), initial=0.0)) for v in around)
    return np.where(spread > JUMP * scale, spread, 0.0)


def _neighbourhood(c: Called, oracle: Oracle, points: Points, n: int) -> Neighbourhood:
    def run(leaves: Arrays, dys: list[Arrays]) -> Any:
        assert oracle.in_float64 is not None
        found = oracle.in_float64(leaves, dys)[1]
        return SimpleNamespace(oracle={c.names[n]: np.stack([of_dy[n] for of_dy in found])})

    wide = [Point(widened(leaves, c.differentiable), dys) for leaves, dys in points]
    return Neighbourhood(run, wide, c.names, special=())
