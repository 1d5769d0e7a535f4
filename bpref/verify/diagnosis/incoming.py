"""The oracle for another dy than the one that came in: 1, its first for all of it, its mean, or none; or limited."""

from collections.abc import Iterator, Mapping

import numpy as np

from bpref.verify.diagnosis.factors import constant_ratio, show
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    agree,
    cotangents_of_outputs,
    informative,
    is_floating,
    scale_of,
)

MOST_AXES = 4
"""Of a dy with more axes no slices are tried."""

Dys = Mapping[str, np.ndarray]


def ignores_dy(r: Residual) -> Diagnosis | None:
    """The same whatever dy is, which happens to be right for dy = 1, as in most tests."""
    groups = _of_one_point(r)
    if not groups or not r.hand.any():
        return None
    for first, *others in groups:
        same = np.abs(r.hand[others] - r.hand[first]) <= r.round_off * scale_of(r.hand)[others]
        if not same.all() or agree(r._replace(hand=r.oracle[others]), r.oracle[[first] * len(others)]):
            return None
    text = "does not depend on dy" if len(r.dy) < 2 else f"does not depend on {', '.join(cotangents_of_outputs(r))}"
    if r.for_dys is None:
        return Diagnosis("ignores_dy", text)
    (of_ones,) = r.for_dys([{name: np.ones_like(dy) for name, dy in r.dy.items()}])
    c = constant_ratio(r.hand, of_ones)
    if c is None or not agree(r, c * of_ones):
        return Diagnosis("ignores_dy", text)
    times = "" if abs(c - 1) <= 10 * r.round_off else f"{show(c)} x "
    return Diagnosis("ignores_dy", f"{text}: it is {times}the reference's for dy = 1")


def another_dy(r: Residual) -> Diagnosis | None:
    """Right for a dy that is made of the one that came in."""
    if r.for_dys is None or informative(r.oracle).sum() < 2:
        return None
    tried = list(_substitutes(r))
    for (kind, text, _), explained in zip(tried, r.for_dys([dys for *_, dys in tried]) if tried else (), strict=True):
        if agree(r, explained):
            return Diagnosis(kind, text)
    return None


def _of_one_point(r: Residual) -> list[list[int]]:
    """The samples that have their arguments in common and not their dy, two or more at a time."""
    if not r.args or not r.dy:
        return []
    points: dict[tuple[bytes, ...], list[int]] = {}
    for s in range(len(r.hand)):
        points.setdefault(tuple(v[s].tobytes() for v in r.args.values()), []).append(s)
    groups = list(points.values())
    return groups if all(len(samples) > 1 for samples in groups) else []


def _substitutes(r: Residual) -> Iterator[tuple[str, str, Dys]]:
    """A kind, what is said of it, and the cotangents of the outputs: one of them replaced, the others as they are."""
    names = dict(zip(r.dy, cotangents_of_outputs(r), strict=True))
    for output, dy in r.dy.items():
        if not is_floating(dy):
            continue
        name = names[output]
        if len(r.dy) > 1:
            yield (
                "ignores_dy",
                f"does not depend on {name}: it is the reference's for {name} = 0",
                {
                    **r.dy,
                    output: np.zeros_like(dy),
                },
            )
            yield (
                "ignores_dy",
                f"does not depend on {name}: it is the reference's for {name} = 1",
                {
                    **r.dy,
                    output: np.ones_like(dy),
                },
            )
        for text, value in _made_of(dy, name):
            replaced = np.broadcast_to(value, dy.shape).copy()
            if not np.array_equal(replaced, dy):
                yield "another_dy", f"the reference's with {text} for all of {name}", {**r.dy, output: replaced}


def _made_of(dy: np.ndarray, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """One number, or one slice, that a kernel reads in place of each."""
    axes = range(dy.ndim - 1) if dy.ndim - 1 <= MOST_AXES else range(0)
    for axis in axes:
        if dy.shape[axis + 1] > 1:
            before = ":, " * axis
            yield f"{name}[{before}0]", np.take(dy, [0], axis + 1)
            yield f"{name}[{before}-1]", np.take(dy, [-1], axis + 1)
            over = f", axis {axis}" if dy.ndim > 2 else ""
            yield f"mean({name}{over})", dy.mean(axis + 1, keepdims=True)
    if dy.ndim > 2 and dy[0].size > 1:
        every = tuple(range(1, dy.ndim))
        yield f"{name}[{', '.join('0' * len(every))}]", dy.reshape(len(dy), -1)[:, :1].reshape(-1, *[1] * len(every))
        yield f"mean({name})", dy.mean(every, keepdims=True)


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
