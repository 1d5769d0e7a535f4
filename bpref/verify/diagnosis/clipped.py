"""The oracle, limited: its values, or its norm."""

from collections.abc import Iterator

import numpy as np

from bpref.verify.diagnosis.factors import show
from bpref.verify.diagnosis.residual import Diagnosis, Residual, agree, informative


def clipped(r: Residual) -> Diagnosis | None:
    """`clip(oracle, low, high)` elementwise, or the oracle scaled down to a largest norm."""
    if np.iscomplexobj(r.oracle) or not r.shape or r.hand.size == 0:
        return None
    return _values(r) or _norms(r)


def _values(r: Residual) -> Diagnosis | None:
    """The limits are the hand's own extremes: that costs one element each, so at least two must lie on a limit."""
    low, high = float(r.hand.min()), float(r.hand.max())
    cut = (r.oracle < low) | (r.oracle > high)
    if cut.sum() < 3 or (informative(r.oracle) & ~cut).sum() < 2 or not agree(r, np.clip(r.oracle, low, high)):
        return None
    below, above = (r.oracle < low).any(), (r.oracle > high).any()
    if below and above:
        limits = f"to [{show(low)}, {show(high)}]"
    else:
        limits = f"from below at {show(low)}" if below else f"from above at {show(high)}"
    return Diagnosis("clipped", f"the reference, clipped {limits}: {int(cut.sum())} of {cut.size} values are")


def _norms(r: Residual) -> Diagnosis | None:
    for name, hand, oracle in _norms_of(r):
        cut = hand < oracle * (1 - 1e3 * r.round_off)
        if cut.sum() < 3:
            continue
        limit = float(np.max(hand[cut]))
        if agree(r, r.oracle * np.minimum(1, limit / np.maximum(oracle, 1e-300))):
            return Diagnosis("clipped", f"the reference, scaled down where {name} is above {show(limit)}")
    return None


def _norms_of(r: Residual) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The norms that people limit, of the hand's array and of the oracle's, with axes of size 1 for the others."""

    def norm(v: np.ndarray, over: tuple[int, ...]) -> np.ndarray:
        return np.sqrt(np.sum(np.abs(v) ** 2, axis=over, keepdims=True))

    everything = tuple(range(1, r.hand.ndim))
    hand, oracle = norm(r.hand, everything), norm(r.oracle, everything)
    yield "its norm", hand, oracle
    if r.others:
        squares = sum(np.sum(np.abs(v.reshape(v.shape[0], -1)) ** 2, axis=1) for v in r.others.values())
        together = np.sqrt(oracle**2 + np.reshape(squares, oracle.shape))
        yield "the norm of all cotangents together", hand * together / np.maximum(oracle, 1e-300), together
    if len(r.shape) > 1:
        yield "the norm of an example (axis 0)", norm(r.hand, everything[1:]), norm(r.oracle, everything[1:])
        yield "the norm of a row (the last axis)", norm(r.hand, everything[-1:]), norm(r.oracle, everything[-1:])
