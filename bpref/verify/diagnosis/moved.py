"""The right numbers in the wrong place: transposed, swapped with another argument's, rolled, flipped, permuted."""

from collections.abc import Iterator
from itertools import combinations, islice, permutations

import numpy as np

from bpref.verify.diagnosis.factors import name_axes, show_index
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    agree,
    informative,
    is_floating,
    scale_of,
    wrong_places,
)

MOST_TRANSPOSITIONS = 120
"""Five axes; of more axes only as many orders are tried."""

MOST_LOOKED_FOR = 16
"""So many of the hand's largest elements are looked for in the oracle, to find a shift."""

LEAST_SAMPLES_TO_PERMUTE = 3
"""Elements in any order are matched by their values in all samples; fewer samples make matches cheap."""


def transposed(r: Residual) -> Diagnosis | None:
    """The oracle with its axes in another order; where they have different sizes, laid out in the right shape."""
    for order in axis_orders(len(r.shape)):
        kept = [a for a in order if r.shape[a] != 1]
        if kept == sorted(kept):
            continue  # every element stays where it is
        moved = np.transpose(r.oracle, (0, *(a + 1 for a in order)))
        if agree(r, moved.reshape(r.oracle.shape)):
            how = name_order(order)
            fits = moved.shape == r.oracle.shape
            return Diagnosis("transposed", f"the reference {how}" + ("" if fits else ", and reshaped to fit"))
    return None


def axis_orders(ndim: int) -> Iterator[tuple[int, ...]]:
    """All orders of the axes but the right one."""
    return islice(permutations(range(ndim)), 1, MOST_TRANSPOSITIONS)


def name_order(order: tuple[int, ...]) -> str:
    moved = [a for a, b in enumerate(order) if a != b]
    if len(moved) == 2:
        return f"with axes {moved[0]} and {moved[1]} exchanged"
    return f"with its axes in the order {', '.join(map(str, order))}"


def swapped(r: Residual) -> Diagnosis | None:
    """The cotangent of another argument."""
    same = [name for name, v in r.others.items() if agree(r, v) and informative(v).sum() > 1]
    if not same:
        return None
    return Diagnosis("swapped", f"the cotangent of {' or of '.join(same)}, not of {r.where}")


def shifted(r: Residual) -> Diagnosis | None:
    """Rolled, moved with zeros filled in, flipped, or permuted along an axis, or element by element."""
    if not r.shape or informative(r.oracle).sum() < 4:
        return None
    return _flipped(r) or _rolled(r) or _permuted_slices(r) or _sorted_by(r) or _permuted_elements(r)


def _flipped(r: Residual) -> Diagnosis | None:
    axes_in_use = [a for a, n in enumerate(r.shape) if n > 1]
    for count in range(1, min(len(axes_in_use), 4) + 1):
        for axes in combinations(axes_in_use, count):
            if agree(r, np.flip(r.oracle, tuple(a + 1 for a in axes))):
                return Diagnosis("shifted", f"the reference flipped along {name_axes(axes)}")
    return None


def _rolled(r: Residual) -> Diagnosis | None:
    """Rolled, or shifted with zeros or with anything else filled in."""
    axes = tuple(range(1, 1 + len(r.shape)))
    for steps in _possible_shifts(r):
        text = _name_steps(steps)
        if agree(r, _shift_in_zeros(r.oracle, steps)):
            return Diagnosis("shifted", f"the reference shifted {text}, zeros filled in")
        if agree(r, np.roll(r.oracle, steps, axes)):
            shortest = tuple((k + n // 2) % n - n // 2 for k, n in zip(steps, r.shape, strict=True))
            return Diagnosis("shifted", f"the reference rolled {_name_steps(shortest)}")
        if _overlaps(r, steps):
            return Diagnosis(
                "shifted", f"the reference shifted {text}; at the edge that this leaves free it is another"
            )
    return None


def _name_steps(steps: tuple[int, ...]) -> str:
    return " and ".join(f"by {k} along axis {axis}" for axis, k in enumerate(steps) if k)


def _possible_shifts(r: Residual) -> Iterator[tuple[int, ...]]:
    """Found by looking for some of the hand's largest elements in the oracle."""
    s = int(np.argmax(np.max(np.abs(r.hand).reshape(r.hand.shape[0], -1), axis=1)))
    hand, oracle, seen = r.hand[s], r.oracle[s], {(0,) * len(r.shape)}
    for flat in np.argsort(np.abs(hand), axis=None)[: -MOST_LOOKED_FOR - 1 : -1]:
        at = np.unravel_index(flat, r.shape)
        for found in np.argwhere(np.abs(oracle - hand[at]) <= r.round_off * np.abs(hand[at]))[:8]:
            steps = tuple(int(a - b) for a, b in zip(at, found, strict=True))
            if steps not in seen:
                seen.add(steps)
                yield steps


def _overlaps(r: Residual, steps: tuple[int, ...]) -> bool:
    """Whether the hand is the shifted oracle wherever that reaches: at most elements, and most were wrong there."""
    target, source = _windows(steps, r.shape)
    hand, oracle = r.hand[:, *target], r.oracle[:, *source]
    if 2 * oracle.size < r.oracle.size or informative(oracle).sum() < 4:
        return False
    near = np.abs(hand - oracle) <= r.round_off * scale_of(r.oracle)[:, *source]
    wrong = wrong_places(r)[:, *target] & informative(oracle)
    return bool(near.all()) and 2 * wrong.sum() > informative(oracle).sum()


def _windows(steps: tuple[int, ...], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What a shift writes to, and what it reads."""
    pairs = list(zip(steps, shape, strict=True))
    return (
        tuple(slice(max(k, 0), n + min(k, 0)) for k, n in pairs),
        tuple(slice(max(-k, 0), n + min(-k, 0)) for k, n in pairs),
    )


def _shift_in_zeros(v: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    out = np.zeros_like(v)
    target, source = _windows(steps, v.shape[1:])
    out[:, *target] = v[:, *source]
    return out


def _permuted_slices(r: Residual) -> Diagnosis | None:
    for axis, n in enumerate(r.shape):
        if n < 2:
            continue
        order = _matching(_slices(r.hand, axis), _slices(r.oracle, axis))
        if np.any(order != np.arange(n)) and agree(r, np.take(r.oracle, order, axis + 1)):
            return Diagnosis("shifted", f"the reference with {_name_permutation(order)} of axis {axis}")
    return None


def _sorted_by(r: Residual) -> Diagnosis | None:
    """In the order of an integer argument, or put back as if it had been in that order."""
    for name, ids in r.args.items():
        if is_floating(ids) or ids.ndim != 2:
            continue
        order = np.argsort(ids, axis=1, kind="stable")
        for axis, n in enumerate(r.shape):
            if n != ids.shape[1]:
                continue
            view = [len(ids), *(n if a == axis else 1 for a in range(len(r.shape)))]
            for text, by in (
                ("sorted by", order),
                ("put in the order that would undo sorting by", np.argsort(order, axis=1)),
            ):
                if agree(r, np.take_along_axis(r.oracle, by.reshape(view), axis + 1)):
                    return Diagnosis("shifted", f"the reference, its axis {axis} {text} {name}")
    return None


def _permuted_elements(r: Residual) -> Diagnosis | None:
    if r.hand.shape[0] < LEAST_SAMPLES_TO_PERMUTE or len(r.shape) < 2:
        return None
    flat = r.oracle.reshape(r.oracle.shape[0], -1)
    order = _matching(r.hand.reshape(flat.shape).T, flat.T)
    if not agree(r, flat[:, order].reshape(r.oracle.shape)):
        return None
    first = int(np.flatnonzero(order != np.arange(len(order)))[0])
    here, there = (show_index(np.unravel_index(i, r.shape)) for i in (first, order[first]))
    return Diagnosis("shifted", f"the reference with its elements in another order: index {here} has that of {there}")


def _slices(v: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(v, axis + 1, 0).reshape(v.shape[axis + 1], -1)


def _matching(hand: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """For each row of `hand` the row of `oracle` most like it: both sorted by one random projection."""
    direction = np.random.default_rng(0).standard_normal(hand.shape[1])
    order = np.empty(len(hand), int)
    order[np.argsort((hand @ direction).real, kind="stable")] = np.argsort((oracle @ direction).real, kind="stable")
    return order


def _name_permutation(order: np.ndarray) -> str:
    n = len(order)
    moved = np.flatnonzero(order != np.arange(n))
    if len(moved) == 2:
        return f"indices {moved[0]} and {moved[1]} exchanged"
    if np.array_equal(order, -np.arange(n) % n):
        return f"index k exchanged with index -k modulo {n}"
    shown = ", ".join(map(str, order[:12])) + (", ..." if n > 12 else "")
    return f"the indices in the order {shown}"
