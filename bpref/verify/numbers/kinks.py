"""Kinks and ties: where a function has no derivative, any subgradient between the one-sided ones is right.

Close to such a point the gradient takes several values, and every subgradient is a mean of these. A hand-derived
cotangent is accepted there if each element lies between the gradients found nearby, and if each sum that all of
those agree on (the elements of a tied maximum share one cotangent) is the hand's as well.

The oracle is looked at in the same way: a function may be smooth, or have a value at all, where its formula has a
kink, and autodiff of the formula be wrong or undefined at that one point. There the gradient nearby is the truth.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from bpref.verify.numbers.points import generator
from bpref.verify.oracle import Arrays, is_differentiable

STEP, CLOSER = 1e-7, 1e-10
"""How far 'nearby' is, relative to an array's size; and once more, since what is steep looks torn from afar."""

SMOOTH = 1e-9
"""How near the mean of opposite neighbours is to a smooth gradient between them, relatively."""

JUMP = 1e-3
"""The relative change of the gradient over such a step that only a kink can make; of an element of the gradient that is
small beside others, if it is no smaller from closer by."""

PAIRS = 5
"""How many pairs of opposite neighbours are looked at; in the first all inputs have moved up, and down."""

TOGETHER, ALONE = 12, 4
"""How often all elements outside of what was seen nearby are moved together, and how many of them each by itself."""

Gradients = dict[str, np.ndarray]


class Kinks(NamedTuple):
    """What was found in the neighbourhoods of the points, for one cotangent; (samples, *shape).

    Attributes:
      accepted: the elements of the hand's that are right though they differ from the oracle's.
      refused: those that are wrong, whatever the oracle says there.
      misled: of these, those where the oracle says the same.
      truth: the oracle's cotangent, and where the hand's was refused what it should have been.
    """

    accepted: np.ndarray
    refused: np.ndarray
    misled: np.ndarray
    truth: np.ndarray


def at_kinks(neighbours: "Neighbourhood", seen: Sequence[tuple[np.ndarray, np.ndarray]], name: str) -> Kinks:
    """Look at the neighbourhood of every point for the cotangent called `name`, there by hand and by the oracle.

    Where the hand's is the oracle's own, only points that may lie on a kink are looked at (`Neighbourhood.special`).
    """
    found: list[tuple[np.ndarray, ...]] = []
    for i, (hand, oracle) in enumerate(seen):
        differ = hand.shape == oracle.shape and not np.array_equal(hand, oracle)
        if not np.iscomplexobj(hand) and (differ or neighbours.is_torn(i, name, oracle)):
            found += [_at_kinks(neighbours, i, name, k, hand[k], oracle[k]) for k in range(len(oracle))]
        else:
            found += [(*(np.zeros(v.shape, bool) for _ in range(3)), v) for v in oracle]
    return Kinks(*(np.stack(v) for v in zip(*found, strict=True)))


class Neighbourhood:
    """What the oracle says near each of some points; looked at once, whoever asks and for which of the cotangents.

    Attributes:
      points: those points.
      special: the points that may lie on a kink or a tie, since somebody chose their values.
    """

    def __init__(
        self,
        run: Callable[[Arrays, list], Gradients],
        points: Sequence[tuple[Arrays, list]],
        names: Sequence[str],
        special: Sequence[int] = (0,),
    ):
        self._run, self.points, self._names, self.special = run, points, names, special
        self._around: dict[tuple[int, float], Gradients] = {}
        self._pairs: dict[int, Gradients] = {}

    def is_torn(self, i: int, name: str, oracle: np.ndarray) -> bool:
        """Whether at a special point the oracle's cotangent is not what it is a step ahead and a step behind."""
        if i not in self.special or np.iscomplexobj(oracle):
            return False
        if i not in self._pairs:
            self._pairs[i] = self._beside(i, _ways(self.points[i][0]))
        return any(_Picture(self._pairs[i][name][:, k]).is_torn_at(v).any() for k, v in enumerate(oracle))

    def around(self, i: int, far: float = STEP) -> Gradients:
        """At `PAIRS` pairs of opposite neighbours, stacked: (2 PAIRS, cotangents, *shape)."""
        if (i, far) not in self._around:
            rng, (leaves, _) = generator(0, 2), self.points[i]
            # What is tied must not stay so: no two elements move alike.
            ways = [[rng.normal(size=np.shape(v)) for v in leaves] for _ in range(PAIRS)]
            ways[0] = [0.5 + rng.uniform(size=np.shape(v)) for v in leaves]
            pairs = [self._beside(i, directions, far) for directions in ways]
            self._around[i, far] = {name: np.concatenate([p[name] for p in pairs]) for name in pairs[0]}
        return self._around[i, far]

    def can_move(self, name: str) -> bool:
        """Whether it is the cotangent of an argument, and not of something in between."""
        return name in self._names

    def along(self, i: int, name: str, direction: np.ndarray, far: float = STEP) -> np.ndarray:
        """The cotangent called `name` with its own argument alone moved along a direction, and against it."""
        directions: list[np.ndarray | None] = [None] * len(self._names)
        directions[self._names.index(name)] = direction
        return self._beside(i, directions, far)[name]

    def _beside(self, i: int, directions: Sequence[np.ndarray | None], far: float = STEP) -> Gradients:
        """A step ahead and a step behind, stacked."""
        leaves, dys = self.points[i]
        with jax.enable_x64(True):
            seen = [
                self._run([_moved(v, d, sign * far) for v, d in zip(leaves, directions, strict=True)], dys)
                for sign in (1, -1)
            ]
        return {name: np.stack([s[name] for s in seen]) for name in seen[0]}


def a_step_away(leaves: Arrays) -> Arrays:
    """The leaves moved by a step in a random direction: off every kink and tie that they lie on."""
    return [_moved(v, d, STEP) for v, d in zip(leaves, _ways(leaves), strict=True)]


def _ways(leaves: Arrays) -> list[np.ndarray]:
    rng = generator(0, 12)
    return [rng.normal(size=np.shape(v)) for v in leaves]


def _moved(v: np.ndarray, direction: np.ndarray | None, far: float) -> np.ndarray:
    if direction is None or not is_differentiable(v):
        return v
    return v + far * _size(v) * np.where(np.isfinite(v), direction, 0.0)


def _size(v: np.ndarray) -> float:
    finite = np.abs(v[np.isfinite(v)])
    return float(np.sqrt(np.mean(finite**2))) or 1.0 if finite.size else 1.0


class _Picture:
    """What the gradient is near one point, as far as it was seen: (neighbours, *shape)."""

    def __init__(self, gradients: np.ndarray, closer: np.ndarray | None = None):
        self.gradients, self.closer = gradients, closer
        known = np.isfinite(gradients).all(axis=0)
        seen = np.where(known, gradients, 0.0)
        self.low, self.high, self.middle = seen.min(axis=0), seen.max(axis=0), seen.mean(axis=0)
        scale = np.max(np.abs(seen), initial=0.0)
        self.slack, self.fine = 0.1 * JUMP * scale, SMOOTH * scale
        large, spread = np.max(np.abs(seen), axis=0, initial=0.0), self.high - self.low
        self.doubtful = known & (spread > np.maximum(JUMP * large, self.fine)) & (spread <= JUMP * scale)
        small = np.zeros_like(known) if closer is None else self.doubtful & (2 * np.ptp(closer, axis=0) >= spread)
        self.kinked = small | (known & (spread > JUMP * scale))
        self.margin = np.where(self.doubtful, 0.1 * JUMP * large, self.slack)
        self.smooth = known & ~self.kinked

    def with_more(self, gradients: np.ndarray) -> "_Picture":
        return _Picture(np.concatenate([self.gradients, gradients]), self.closer)

    def is_torn_at(self, oracle: np.ndarray) -> np.ndarray:
        """Where the oracle cannot be taken at its word: at a kink, or not what the smooth gradient is beside it."""
        flat = self.smooth & (self.high - self.low <= self.fine)
        return self.kinked | self.outside(oracle) | (flat & ~(np.abs(oracle - self.middle) <= 10 * self.fine))

    def outside(self, hand: np.ndarray) -> np.ndarray:
        """Which elements are no mean of what was seen nearby."""
        beyond = (hand < self.low - self.margin) | (hand > self.high + self.margin)
        unlike = self.smooth & ~(np.abs(hand - self.middle) <= self.margin)
        return np.where(self.kinked | (self.doubtful & np.isfinite(hand)), beyond, unlike)

    def breaks_a_sum(self, hand: np.ndarray) -> np.ndarray:
        """The kinked elements whose sum, along an axis or over all, is another than all gradients nearby agree on."""
        broken = np.zeros(hand.shape, bool)
        for axis in (None, *range(hand.ndim)):
            sums = self.gradients.sum(axis=tuple(range(1, self.gradients.ndim)) if axis is None else axis + 1)
            agreed = sums.max(axis=0) - sums.min(axis=0) <= self.slack
            off = agreed & (np.abs(hand.sum(axis=axis) - sums.mean(axis=0)) > 10 * self.slack)
            broken |= self.kinked & (off if axis is None else np.expand_dims(off, axis))
        return broken

    def is_a_limit_of(self, closer: "_Picture") -> np.ndarray:
        """Where the gradients from closer by are the same: neither steep nor without bound."""
        return (np.abs(closer.low - self.low) <= self.margin) & (np.abs(closer.high - self.high) <= self.margin)

    def accepts(self, hand: np.ndarray) -> np.ndarray:
        seen = (self.low - self.fine <= hand) & (hand <= self.high + self.fine)
        alike = self.kinked | (self.doubtful & seen) | (np.abs(hand - self.middle) <= self.fine)
        return ~self.outside(hand) & alike & np.isfinite(hand)

    def nearest(self, oracle: np.ndarray) -> np.ndarray:
        """The oracle's, or where that is outside what is nearest to it."""
        return np.where(self.kinked, np.clip(np.nan_to_num(oracle), self.low, self.high), self.middle)


def jump(neighbours: Neighbourhood, i: int, name: str, k: int, oracle: np.ndarray) -> np.ndarray:
    """How far apart the gradients at a kink are, the oracle's own among them, of each element; 0 off kinks."""
    near = _picture(neighbours, i, name, k)
    with np.errstate(invalid="ignore"):
        spread = np.maximum(near.high, oracle) - np.minimum(near.low, oracle)
        return np.where(near.is_torn_at(oracle) & np.isfinite(spread), spread, 0.0)


def _picture(neighbours: Neighbourhood, i: int, name: str, k: int) -> _Picture:
    near = _Picture(neighbours.around(i)[name][:, k])
    return _Picture(near.gradients, neighbours.around(i, CLOSER)[name][:, k]) if near.doubtful.any() else near


def _at_kinks(
    neighbours: Neighbourhood, i: int, name: str, k: int, hand: np.ndarray, oracle: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The `Kinks` of point i's cotangent number k."""
    nothing = np.zeros(hand.shape, bool)
    with np.errstate(invalid="ignore"):
        near = _picture(neighbours, i, name, k)
        torn = near.is_torn_at(oracle)
        if not torn.any():
            return nothing, nothing, nothing, oracle
        near, refused = _completed(neighbours, i, name, k, hand, oracle, near)
        torn |= near.is_torn_at(oracle)
        refused = torn & (refused | near.breaks_a_sum(hand))
        misled = refused & ((np.abs(hand - oracle) <= near.fine) | ~(np.isfinite(hand) | np.isfinite(oracle)))
        if refused.any():
            closer = _Picture(found := neighbours.around(i, CLOSER)[name][:, k], found)
            for element in _a_few(refused) if neighbours.can_move(name) else ():
                closer = closer.with_more(neighbours.along(i, name, element, CLOSER)[:, k])
            refused &= (closer.outside(hand) | closer.breaks_a_sum(hand)) & near.is_a_limit_of(closer)
            misled &= refused
        accepted = torn & near.accepts(hand) & ~refused
        if (among_several := accepted & near.kinked).any():
            accepted &= ~among_several | _is_sharp(
                near, *(neighbours.around(i, far)[name][:, k] for far in (STEP, CLOSER))
            )
    return accepted, refused, misled, np.where(refused, near.nearest(oracle), oracle)


def _completed(
    neighbours: Neighbourhood, i: int, name: str, k: int, hand: np.ndarray, oracle: np.ndarray, near: _Picture
) -> tuple[_Picture, np.ndarray]:
    """The picture with those neighbours that the hand's subgradient needs, and which elements stay outside of it.

    Where many elements are tied, each is the greatest somewhere nearby, and few such places are met at random: they are
    told apart by their order first, as most code does it, then the elements that were not seen as the hand has them are
    moved, all together, at last some each by itself.
    """
    rng = generator(0, 13)

    def unseen() -> np.ndarray:
        return near.is_torn_at(oracle) & near.outside(hand)

    if not neighbours.can_move(name):
        return near, np.zeros(hand.shape, bool)
    tried, before = np.zeros(hand.shape, bool), hand.size + 1
    for order in ("C", "F") if hand.size else ():
        if unseen().any():
            ranks = np.arange(1.0, hand.size + 1).reshape(hand.shape, order=order) / hand.size
            near = near.with_more(neighbours.along(i, name, ranks)[:, k])
    for _ in range(TOGETHER):
        if not 0 < unseen().sum() < before:
            break
        before = unseen().sum()
        direction = unseen() * rng.uniform(0.5, 1.5, hand.shape)
        near = near.with_more(neighbours.along(i, name, direction)[:, k])
    for _ in range(2 * TOGETHER):  # in another order: what is tied may come second too
        if not unseen().any():
            break
        near = near.with_more(neighbours.along(i, name, rng.normal(size=hand.shape))[:, k])
    for element in _a_few(unseen()):
        tried |= element
        near = near.with_more(neighbours.along(i, name, element)[:, k])
    # Elements that nobody has moved are accused only with all of those that were.
    outside = unseen()
    return near, outside if not np.any(tried & ~outside) else outside & tried


def _is_sharp(near: _Picture, gradients: np.ndarray, closer: np.ndarray) -> np.ndarray:
    """Where each gradient is from closer by the same, beside how far apart they are, or larger, as at a cusp.

    It is not where the function is but steep, or where its gradient is noise: in between lies any value whatever.
    """
    same = np.abs(closer - gradients) <= np.maximum(near.margin, np.ptp(gradients, axis=0) / 4)
    larger = (np.abs(closer) >= 2 * np.abs(gradients)) & (np.sign(closer) == np.sign(gradients))
    return np.all(same | larger, axis=0)


def _a_few(chosen: np.ndarray) -> Iterator[np.ndarray]:
    """Up to `ALONE` of the elements, each as an array that is True there alone."""
    where = np.flatnonzero(chosen)
    for element in where[np.linspace(0, len(where) - 1, min(ALONE, len(where))).astype(int)]:
        alone = np.zeros(chosen.size, bool)
        alone[element] = True
        yield alone.reshape(chosen.shape)
