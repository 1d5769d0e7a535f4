"""Sums: forgotten, over the wrong axis, over a part only; and what a cotangent of another shape may be."""

import math
from collections.abc import Iterator
from itertools import combinations, permutations

import numpy as np

from bpref.verify.diagnosis.factors import constant_ratio, is_near, name_axes, name_number, show
from bpref.verify.diagnosis.moved import axis_orders, name_order
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    agree,
    cotangents_of_outputs,
    count_points,
    informative,
    is_floating,
    like,
)

MOST_AXES = 5
MOST_ELEMENTS = 10**6
"""Larger sums are not searched."""


def missing_sum(r: Residual) -> Diagnosis | None:
    """A cumulative sum that is missing, or a sum of something recognisable over the wrong axis or over one slice."""
    return _cumulative(r) or _wrongly_summed(r)


def _cumulative(r: Residual) -> Diagnosis | None:
    for axis, n in enumerate(r.shape):
        if n < 3:
            continue
        for text, total in (
            ("cumulative", np.cumsum(r.hand, axis + 1)),
            ("reverse cumulative", np.flip(np.cumsum(np.flip(r.hand, axis + 1), axis + 1), axis + 1)),
        ):
            if agree(r, total, r.hand, value=r.oracle):
                return Diagnosis("missing_sum", f"the {text} sum over axis {axis} (size {n}) is missing")
    return None


def _wrongly_summed(r: Residual) -> Diagnosis | None:
    """Where the oracle is the sum of a product over some axes, the hand may be another reduction of that product."""
    for name, v in summands(r):
        for axes in _reductions(v, r.shape):
            if agree(r, _sum(v, axes).reshape(r.oracle.shape), value=r.oracle):
                found = _over_other_axes(r, name, v, axes) or _over_a_part(r, name, v, axes)
                if found is not None:
                    return found
    return None


def _over_other_axes(r: Residual, name: str, v: np.ndarray, axes: tuple[int, ...]) -> Diagnosis | None:
    for others in _reductions(v, r.shape):
        if others != axes and agree(r, _sum(v, others).reshape(r.oracle.shape)):
            text = f"the sum of {name} over {name_axes(others)}, where it is over {name_axes(axes)}"
            return Diagnosis("missing_sum", text)
    return None


def _over_a_part(r: Residual, name: str, v: np.ndarray, axes: tuple[int, ...]) -> Diagnosis | None:
    """One slice of what is summed, all slices but one, or the first or last few: a block."""
    for axis in axes:
        n, rest = v.shape[axis + 1], tuple(a for a in axes if a != axis)
        parts = [
            _sum(np.take(v, [i], axis + 1), (*rest, axis)).reshape(r.oracle.shape) for i in range(n if n > 1 else 0)
        ]
        for i, part in enumerate(parts):
            which = {0: "the first", n - 1: "the last"}.get(i, f"number {i}")
            if agree(r, part):
                text = f"{which} of axis {axis} of {name} alone: the sum over that axis (size {n}) is missing"
                return Diagnosis("missing_sum", text)
            if agree(r, r.oracle - part, part):
                return Diagnosis(
                    "missing_sum", f"the sum of {name} over {name_axes(axes)} without {which} of axis {axis}"
                )
        for first, which in ((True, "first"), (False, "last")):
            block = np.zeros_like(r.oracle)
            for count, part in enumerate(parts if first else parts[::-1], start=1):
                block = block + part
                if 1 < count < n - 1 and agree(r, block, part):
                    text = f"the sum of {name} over the {which} {count} of axis {axis} alone (size {n})"
                    return Diagnosis("missing_sum", text)
    return None


def summands(r: Residual) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that a cotangent is often the sum of: dy, dy times something of its shape, and outer products with dy."""
    values = {name: v for name, v in (dict(r.args) | dict(r.y)).items() if is_floating(v)}
    for name, dy in cotangents_of_outputs(r).items():
        if dy.ndim - 1 > MOST_AXES or dy.size > MOST_ELEMENTS:
            continue
        yield name, dy
        for other, v in values.items():
            wide = like(v, dy.shape[1:])
            if wide is None:
                continue
            yield f"{name} * {other}", dy * wide
            if not np.iscomplexobj(v):
                yield f"{name} * min({other}, 0)", dy * np.minimum(wide, 0)
                yield f"{name} * max({other}, 0)", dy * np.maximum(wide, 0)
            own = like(r.args[r.where], dy.shape[1:]) if r.where in r.args and other in r.y else None
            if own is not None and own.all():
                yield f"{name} * {other} / {r.where}", dy * wide / own
        yield from _outer_products(r, name, dy, values)


def _outer_products(r: Residual, name: str, dy: np.ndarray, values: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Per example, `dy[n, i] a[n, j]` or `dy[n, i] a[n, j] b[n, k]`, the axes in any order that gives the shape."""
    dims = len(r.shape)
    if dims not in (2, 3) or dy.ndim != 3:
        return
    flat = {other: v for other, v in values.items() if v.ndim == 3 and v.shape[1] == dy.shape[1]}
    for others in permutations(flat, dims - 1):
        arrays = {name: dy} | {other: flat[other] for other in others}
        for order in permutations(arrays):
            shape = tuple(arrays[key].shape[2] for key in order)
            if shape == r.shape and dy.size * math.prod(shape) <= MOST_ELEMENTS:
                letters = "ijk"[:dims]
                product = np.einsum(
                    ",".join(f"sn{a}" for a in letters) + f"->sn{letters}", *(arrays[key] for key in order)
                )
                yield f"the outer products of {', '.join(order)}", product


def _reductions(v: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The sets of axes whose removal leaves `shape`, axes of size 1 aside."""
    wanted = [n for n in shape if n != 1]
    for count in range(1, v.ndim):
        for axes in combinations(range(v.ndim - 1), count):
            if [n for a, n in enumerate(v.shape[1:]) if a not in axes and n != 1] == wanted:
                yield axes


def _sum(v: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return v.sum(axis=tuple(a + 1 for a in axes)) if axes else v


def of_another_shape(r: Residual) -> Diagnosis:
    """What a hand of the wrong shape is."""
    hand, oracle = r.hand, r.oracle
    shapes = f"its shape is {hand.shape[1:]}, that of {r.where} {r.shape}"
    if oracle.size == 0 or hand.size == 0 or not (np.isfinite(hand).all() and np.isfinite(oracle).all()):
        return Diagnosis("structure", shapes)
    for order in axis_orders(len(r.shape)):
        if agree(r, np.transpose(oracle, (0, *(a + 1 for a in order)))):
            return Diagnosis("transposed", f"the reference {name_order(order)}: {shapes}")
    return _unsummed(r) or _of_another(r, shapes) or Diagnosis("structure", _relation(r, shapes))


def _unsummed(r: Residual) -> Diagnosis | None:
    """The hand is the oracle once it is summed over some axes; a constant factor may be left over."""
    for axes in _reductions(r.hand, r.shape):
        total, count = _sum(r.hand, axes).reshape(r.oracle.shape), _count(r.hand, axes)
        if count == 1:
            continue
        which = f"{name_axes(axes)}, size {_sizes(r.hand, axes)}"
        if agree(r, r.oracle, value=total):
            return Diagnosis("missing_sum", f"the sum over the axes that {r.where} does not have ({which}) is missing")
        c = constant_ratio(total, r.oracle)
        if c is None or c == 0 or count_points(r, r.oracle) < 2 or not agree(r, c * r.oracle, value=total):
            continue
        if is_near(r, c, 1 / count):
            return Diagnosis("mean_for_sum", f"divided by {count} and not summed ({which}); summed, it is a mean")
        known = name_number(r, c)
        return Diagnosis(
            "missing_sum",
            f"the sum ({which}) is missing, and it is {show(c)} x the reference" + f" ({known})" * bool(known),
        )
    return None


def _count(v: np.ndarray, axes: tuple[int, ...]) -> int:
    return math.prod(v.shape[a + 1] for a in axes)


def _sizes(v: np.ndarray, axes: tuple[int, ...]) -> str:
    return " x ".join(str(v.shape[a + 1]) for a in axes)


def _of_another(r: Residual, shapes: str) -> Diagnosis | None:
    same = [name for name, v in r.others.items() if agree(r, v) and informative(v).sum() > 1]
    return Diagnosis("swapped", f"the cotangent of {' or of '.join(same)}: {shapes}") if same else None


def _relation(r: Residual, shapes: str) -> str:
    """What can be said of a wrong shape that has no kind of its own."""
    if r.hand.size == r.oracle.size and agree(r, r.oracle, value=r.hand.reshape(r.oracle.shape)):
        return f"the reference's values, but {shapes}"
    for axes in _reductions(r.oracle, r.hand.shape[1:]):
        total = _sum(r.oracle, axes)
        if agree(r, total.reshape(r.hand.shape)):
            return f"the reference summed over {name_axes(axes)} (size {_sizes(r.oracle, axes)}): {shapes}"
        count = total.size and r.oracle.size // total.size
        if agree(r, (total / count).reshape(r.hand.shape)):
            return f"the mean of the reference over {name_axes(axes)} (size {_sizes(r.oracle, axes)}): {shapes}"
    return shapes
