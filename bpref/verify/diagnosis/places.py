"""Wrong at few places: which, and what is there."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from bpref.verify.diagnosis.factors import constant_ratio, name_axes, show, show_index
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    idle_places,
    informative,
    is_clear,
    is_floating,
    like,
    scale_of,
    wrong_places,
)

MOST_OF_AN_AXIS = 1 / 2
"""Of the slices along one axis at most these may be wrong, those that are zero in both arrays not counted ..."""

MOST_ELEMENTS = 1 / 3
"""... or of all elements, the same ones in every sample."""

MOST_ANYWHERE = 2 / 5
"""Where the places depend on the values, and nothing says how, fewer must be wrong, in every sample."""

CLEAR = 1e2
"""The largest error must be this many times round-off, so that right and wrong places can be told apart."""


class _Errors:
    """Where the hand is wrong, and where nothing can be seen."""

    def __init__(self, r: Residual):
        self.wrong = wrong_places(r)
        self.idle = idle_places(r)
        self.ever = self.wrong.any(axis=0)
        self.is_fixed = bool(np.all(self.wrong | self.idle | ~self.ever))


def sparse_by_name(r: Residual) -> Diagnosis | None:
    """Wrong only where an argument says: at indices that it repeats, where it is zero, negative or the largest."""
    e = _errors_of(r)
    return e and _say(r, e, _of_integers(r, e) or _of_values(r, e))


def sparse(r: Residual) -> Diagnosis | None:
    """A minority of the elements is wrong: the same ones in every sample, or very few."""
    e = _errors_of(r)
    return e and _say(r, e, _along_an_axis(e) or _region(e) or _few(e) or _fewer(r, e))


def _errors_of(r: Residual) -> _Errors | None:
    """None where wrong and right places cannot be told apart, or one of the two is not there."""
    if r.oracle[0].size < 2 or not is_clear(r, r.hand - r.oracle, r.oracle, digits=CLEAR):
        return None
    e = _Errors(r)
    return e if (~e.idle & ~e.wrong).any() and e.wrong.reshape(len(e.wrong), -1).any(axis=1).sum() > 1 else None


def _say(r: Residual, e: _Errors, places: str | None) -> Diagnosis | None:
    return Diagnosis("sparse", f"wrong only at {places}, {what_is_there(r, e.wrong)}") if places else None


def what_is_there(r: Residual, places: np.ndarray) -> str:
    """How hand and oracle compare at the wrong places."""
    hand, oracle = r.hand[places], r.oracle[places]
    if not hand.any():
        return "zero there"
    if not oracle.any():
        return f"where the reference is zero: {show(hand[np.argmax(np.abs(hand))])} at most there"
    c = constant_ratio(hand, oracle)
    if c is not None and np.all(np.abs(hand - c * oracle) <= r.round_off * scale_of(r.oracle)[places]):
        return "the sign wrong there" if abs(c + 1) <= r.round_off else f"{show(c)} x the reference there"
    if len(r.shape) and np.iscomplexobj(oracle) and np.allclose(hand, oracle.conj(), rtol=r.round_off, atol=0):
        return "the complex conjugate there"
    worst = np.argmax(np.abs(hand - oracle))
    return f"such as {show(hand[worst])} for {show(oracle[worst])}"


def right_region(r: Residual) -> str | None:
    """An edge, a diagonal or a triangle that is all that is right, in a sentence."""
    e = _Errors(r)
    if e.is_fixed and e.ever.any():
        for name, region in regions(r.shape):
            if np.array_equal(region, ~e.ever):
                return f"right at {name}; elsewhere {what_is_there(r, e.wrong)}"
    return None


def _along_an_axis(e: _Errors) -> str | None:
    """Whole slices of an axis: the same ones wrong in every sample, the others right, and at most half of them."""
    found = []
    for axis, n in enumerate(e.ever.shape):
        over = tuple(a for a in range(1, e.wrong.ndim) if a != axis + 1)
        wrong, idle = e.wrong.any(axis=over), e.idle.all(axis=over)
        bad = wrong.any(axis=0)
        live = int((~idle).any(axis=0).sum())
        if n > 1 and bad.sum() <= MOST_OF_AN_AXIS * live and np.all(wrong | idle | ~bad):
            found.append((bad.sum() / n, axis, np.flatnonzero(bad)))
    if not found:
        return None
    return " and ".join(
        name_indices(indices, axis, e.ever.shape) for _, axis, indices in sorted(found, key=lambda f: f[0])
    )


def name_indices(indices: np.ndarray, axis: int, shape: tuple[int, ...]) -> str:
    """Indices of an axis in words."""
    n, which = shape[axis], f"axis {axis}"
    row = {0: "row", 1: "column"}.get(axis, "slice") if len(shape) == 2 else "index"
    if len(indices) == 1:
        i = int(indices[0])
        place = {0: " (the first)", n - 1: " (the last)"}.get(i, "")
        return f"{row} {i}{place} of {which}"
    if np.array_equal(indices, [0, n - 1]):
        return f"the edge (first and last index) of {which}"
    if indices[-1] - indices[0] == len(indices) - 1:
        end = " (the first)" if indices[0] == 0 else " (the last)" if indices[-1] == n - 1 else ""
        return f"indices {indices[0]} to {indices[-1]}{end} of {which}"
    return f"indices {', '.join(map(str, indices[:8]))}{', ...' * (len(indices) > 8)} of {which}"


def _region(e: _Errors) -> str | None:
    """An edge, a diagonal or a triangle, wrong throughout, and right beside it."""
    if not e.is_fixed:
        return None
    for name, region in regions(e.ever.shape):
        if np.array_equal(region, e.ever):
            return name
    return None


def regions(shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Edges, diagonals and triangles, each with its name and its mask."""
    inner = [a for a, n in enumerate(shape) if n > 2]
    for count in range(1, min(len(inner), 3) + 1):
        for axes in combinations(inner, count):
            for width in (1, 2):
                right = np.ones(shape, bool)
                for a in axes:
                    at = np.arange(shape[a]).reshape([-1 if b == a else 1 for b in range(len(shape))])
                    right = right & (at >= width) & (at < shape[a] - width)
                if right.any():
                    wide = "" if width == 1 else f" ({width} wide)"
                    yield f"the edge of {name_axes(axes)}{wide}", ~right
    for a, b in combinations(range(len(shape)), 2):
        if shape[a] == shape[b] and shape[a] > 2:
            n = shape[a]
            view = [n if i in (a, b) else 1 for i in range(len(shape))]
            for name, square in (
                ("the diagonal", np.eye(n, dtype=bool)),
                ("the places above the diagonal", np.triu(np.ones((n, n), bool), 1)),
                ("the places below the diagonal", np.tril(np.ones((n, n), bool), -1)),
            ):
                yield f"{name} of axes {a}, {b}", np.broadcast_to(square.reshape(view), shape)


def _of_integers(r: Residual, e: _Errors) -> str | None:
    """Places that an integer argument names: rows that it repeats, or where it has one value, elements it picks."""
    for name, ids in r.args.items():
        if is_floating(ids) or ids.size == 0:
            continue
        for text, places in _places_of(ids, r.shape):
            here = np.broadcast_to(places, e.wrong.shape)
            if here.any() and _are_places(e, here):
                return text.format(name)
    return None


def _are_places(e: _Errors, here: np.ndarray) -> bool:
    """Whether everything wrong is at the places, and wherever something is at them, something is wrong.

    Element by element, or else in every slice of axis 0, as of a table whose rows are zero in part.
    """
    if (e.wrong & ~here).any() or not (~e.idle & ~here).any():
        return False
    if np.all(e.wrong | e.idle | ~here):
        return True
    over = tuple(range(2, e.wrong.ndim))
    return bool(over) and bool(np.all(e.wrong.any(over) | e.idle.all(over) | ~here.any(over)))


def _places_of(ids: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    samples, inner = ids.shape[0], ids.shape[1:]
    if ids.dtype != bool:
        for axis, n in enumerate(shape):
            counts = np.stack([np.bincount(v[(v >= 0) & (v < n)], minlength=n)[:n] for v in ids.reshape(samples, -1)])
            view = (samples, *(n if a == axis else 1 for a in range(len(shape))))
            where = f" of axis {axis}"
            for text, i in (("last", -1), ("first", 0)):
                named = np.arange(n) == ids.reshape(samples, -1)[:, i, None]
                yield f"the index{where} that the {text} of {{}} names", named.reshape(view)
            yield "the indices" + where + " that {} repeats", (counts > 1).reshape(view)
            yield "the indices" + where + " that {} does not hold", (counts == 0).reshape(view)
    if inner and inner == shape[: len(inner)]:
        wide = ids.reshape(*ids.shape, *(1,) * (len(shape) - len(inner)))
        same = bool(np.all(ids == ids[:1]))
        for value in np.unique(ids)[:64]:
            if not same or value < 0 or (ids[0] == value).sum() > 1:
                yield f"the places where {{}} is {value}", wide == value
        if len(inner) == len(shape) - 1 and ids.dtype != bool:
            yield "the element of the last axis that {} picks", ids[..., None] == np.arange(shape[-1])


def _few(e: _Errors) -> str | None:
    """Elements that have no common name, few and always the same."""
    if not e.is_fixed or e.ever.sum() > MOST_ELEMENTS * (~e.idle).any(axis=0).sum():
        return None
    return _elements(np.argwhere(e.ever))


def _elements(indices: np.ndarray) -> str:
    shown = ", ".join(show_index(i) for i in indices[:4])
    return f"{'index' if len(indices) == 1 else f'{len(indices)} indices'} {shown}" + ", ..." * (len(indices) > 4)


def _of_values(r: Residual, e: _Errors) -> str | None:
    """Where an argument is zero, negative, or the largest or smallest along an axis."""
    for name, v in (dict(r.args) | dict(r.y)).items():
        wide = like(v, r.shape) if is_floating(v) and not np.iscomplexobj(v) else None
        if wide is None:
            continue
        candidates = [(f"the places where {name} is 0", wide == 0), (f"the places where {name} is negative", wide < 0)]
        for axis, n in enumerate(r.shape):
            if n > 2:
                largest = wide == wide.max(axis=axis + 1, keepdims=True)
                smallest = wide == wide.min(axis=axis + 1, keepdims=True)
                candidates.append((f"the largest of {name} along axis {axis}", largest))
                candidates.append((f"the smallest of {name} along axis {axis}", smallest))
        for text, places in candidates:
            if (
                places.any()
                and (places & ~e.idle).sum() <= MOST_OF_AN_AXIS * (~e.idle).sum()
                and _are_places(e, places)
            ):
                # What is at one end in every sample may be there for its place, or be the largest by chance.
                return f"{end}, {text} too" if (end := _one_end(e, places)) else text
    return None


def _one_end(e: _Errors, places: np.ndarray) -> str | None:
    """The first or last slice of an axis, in words, where that is what these places are in every sample."""
    if not np.array_equal(places.any(axis=0), places.all(axis=0)):
        return None
    found = _along_an_axis(e)
    return found if found and found.count("(the ") == 1 and " and " not in found else None


def _fewer(r: Residual, e: _Errors) -> str | None:
    """Few elements in every sample, though not the same ones."""
    live = informative(r.oracle) | informative(r.hand)
    over = tuple(range(1, live.ndim))
    shares = (e.wrong & live).sum(axis=over) / np.maximum(live.sum(axis=over), 1)
    if np.max(shares) > MOST_ANYWHERE:
        return None
    counts = e.wrong.sum(axis=over)
    return f"{counts.min()} to {counts.max()} of {live[0].size} elements, others in other samples"
