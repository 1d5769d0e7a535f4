"""Sabotage: what a right backward would have shown, had it been wrong in one leaf. A checker that passes any of
these is broken."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from bpref.verify.examining.program import Seen

SPOIL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scaled by 1.001": lambda v: v * 1.001,
    "zeroed": np.zeros_like,
    "negated": lambda v: -v,
    "transposed": lambda v: np.swapaxes(v, -1, -2) if v.ndim > 1 and v.shape[-1] == v.shape[-2] else v,
    "summed over its first axis": lambda v: _summed(v, 0),
    "summed over its last axis": lambda v: _summed(v, -1),
}
"""What is done to one cotangent, by name; it stays as it is where the spoiling has no meaning for it."""


class Sabotage(NamedTuple):
    """What is seen of a backward that is wrong in one leaf, in one way."""

    where: str
    how: str
    seen: Seen


def sabotages(seen: Seen) -> Iterator[Sabotage]:
    """Every way to spoil one of the hand's cotangents that changes its value, in every backward alike."""
    for where in seen.combined:
        for how, spoil in SPOIL.items():
            right = seen.hand[where]
            wrong = np.stack([spoil(v) for v in right])
            if not np.allclose(wrong, right, rtol=1e-4, atol=0.0):
                yield Sabotage(
                    where,
                    how,
                    seen._replace(
                        hand=seen.hand | {where: wrong},
                        combined=seen.combined | {where: spoil(seen.combined[where])},
                        zero=seen.zero | {where: spoil(seen.zero[where])},
                    ),
                )


def _summed(v: np.ndarray, axis: int) -> np.ndarray:
    return np.broadcast_to(np.sum(v, axis, keepdims=True), v.shape) if v.ndim else v
