"""The arrays of a wrong cotangent, what is said of them, and when two of them count as equal."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bpref.verify.numbers.measure import NEGLIGIBLE

FLOOR = 1e-6
"""A sample this much smaller than the largest is compared on that scale: it may be rounding alone."""

FREE_FIT = 1e3
"""A fitted term must be this many times larger than round-off: of a smaller one too few digits could disagree."""


class Residual(NamedTuple):
    """A cotangent by hand beside the true one, with whatever may explain the difference.

    Attributes:
      where: the argument, such as `params.W`; the same name as in `args`.
      hand, oracle: `(samples, *shape)`, float64 or complex128; a sample is a pair of a random point and cotangent.
      others: the oracle's cotangents of the other arguments, `(samples, *their shape)`.
      args: the values of all arguments, integer ones too.
      y, dy: the outputs and their cotangents.
      round_off: the elementwise relative error below which two arrays are equal.
      terms: gives the contributions to the oracle by path of the chain rule, each `(samples, *shape)`; called late,
        because it costs.
      slopes: gives what the oracle would be with another slope of an elementwise function, by what is said; costs too.
      for_dys: gives the oracle, `(samples, *shape)`, for each of several other `dy`; costs too.
    """

    where: str
    hand: np.ndarray
    oracle: np.ndarray
    others: Mapping[str, np.ndarray]
    args: Mapping[str, np.ndarray]
    y: Mapping[str, np.ndarray]
    dy: Mapping[str, np.ndarray]
    round_off: float
    terms: Callable[[], Mapping[str, np.ndarray]] | None = None
    slopes: Callable[[], Mapping[str, np.ndarray]] | None = None
    for_dys: Callable[[Sequence[Mapping[str, np.ndarray]]], Sequence[np.ndarray]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The argument's shape."""
        return self.oracle.shape[1:]


class Diagnosis(NamedTuple):
    """A kind, one of `bpref.verify.report.KINDS`, and a line that says what was seen; further lines show a pattern."""

    kind: str
    detail: str


def agree(r: Residual, explained: np.ndarray, *parts: np.ndarray, value: np.ndarray | None = None) -> bool:
    """Whether `explained` is the hand's array (or `value`) at every element of every sample, to round-off.

    `parts` are what `explained` was computed from by adding: where they cancel, their size is the scale.
    """
    value = r.hand if value is None else value
    if value.shape != explained.shape:
        return False
    return bool(np.all(np.abs(value - explained) <= r.round_off * scale_of(explained, *parts)))


def scale_of(*parts: np.ndarray) -> np.ndarray:
    """Elementwise what errors are relative to: the largest part, or a fraction of its sample's largest element."""
    size = np.abs(parts[0])
    for part in parts[1:]:
        size = np.maximum(size, np.abs(part))
    over = tuple(range(1, size.ndim))
    largest = np.max(size, axis=over, keepdims=True, initial=0)
    return np.maximum(size, np.maximum(NEGLIGIBLE * largest, FLOOR * np.max(size, initial=0)))


def wrong_places(r: Residual) -> np.ndarray:
    """Where hand and oracle differ by more than round-off, `(samples, *shape)`."""
    return np.abs(r.hand - r.oracle) > r.round_off * scale_of(r.oracle)


def idle_places(r: Residual) -> np.ndarray:
    """Where both are zero, so that nothing can be seen of what the hand does there."""
    return np.maximum(np.abs(r.hand), np.abs(r.oracle)) <= r.round_off * scale_of(r.oracle, r.hand) * NEGLIGIBLE


def informative(v: np.ndarray) -> np.ndarray:
    """The elements that are neither zero nor small beside the others of their sample."""
    over = tuple(range(1, v.ndim))
    largest = np.max(np.abs(v), axis=over, keepdims=True, initial=0)
    return np.abs(v) > np.maximum(NEGLIGIBLE * largest, FLOOR * np.max(np.abs(v), initial=0))


def count_points(r: Residual, v: np.ndarray) -> int:
    """How many different points the samples in which `v` is not zero were taken at.

    A factor seen at one point only may be a function of the point.
    """
    live = np.flatnonzero(informative(v).reshape(v.shape[0], -1).any(axis=1))
    if not r.args:
        return len(live)
    return len({tuple(a[s].tobytes() for a in r.args.values()) for s in live})


def is_clear(r: Residual, difference: np.ndarray, *parts: np.ndarray, digits: float = FREE_FIT) -> bool:
    """Whether a difference is so much larger than round-off that a wrong explanation of it would be noticed."""
    return bool(np.max(np.abs(difference) / np.maximum(scale_of(*parts), 1e-300), initial=0) > digits * r.round_off)


def cotangents_of_outputs(r: Residual) -> dict[str, np.ndarray]:
    """The outputs' cotangents by the names that a reader writes: `dy` for that of `y`."""
    return {name if name.startswith("d") else f"d{name}": v for name, v in r.dy.items()}


def like(v: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """`v` with its samples in front, broadcast to `(samples, *shape)`; None where that cannot be.

    Axes are aligned at the end, as NumPy does it, else at the front: one value per example.
    """
    inner = v.shape[1:]
    if inner and inner != shape[-len(inner) :] and inner == shape[: len(inner)]:
        inner = (*inner, *(1,) * (len(shape) - len(inner)))
    if len(inner) > len(shape) or any(n not in (1, m) for n, m in zip(inner[::-1], shape[::-1], strict=False)):
        return None
    v = v.reshape(v.shape[0], *(1,) * (len(shape) - len(inner)), *inner)
    return np.broadcast_to(v, (v.shape[0], *shape))


def is_floating(v: np.ndarray) -> bool:
    return np.issubdtype(v.dtype, np.inexact)
