"""Precision: a right derivation in the dtypes that it is used in, its error beside autodiff's own.

The truth is computed in float64 from the very inputs that the working dtype holds. Errors are in units of the last
place of each element; where the inputs' own rounding already moves an element by more, that is the unit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bpref.verify.examine import Held, Point, pairs, run_in_float64, stacked, widened
from bpref.verify.measure import summarise, ulp_errors
from bpref.verify.oracle import is_differentiable
from bpref.verify.points import generator
from bpref.verify.prepare import Prepared, Working, x64_for
from bpref.verify.report import Precision

FACTOR = 32
"""How many times autodiff's error, and how many units more, a derivation of someone's own may have: five bits."""

OUTLIER = 1024
"""The same for the largest error alone, where the dtype has so many digits."""

MOVES = 3
"""How often the inputs are moved by their own rounding, to see what that does to the truth."""


class Row(NamedTuple):
    """Elementwise errors of one value in one dtype, by hand and by autodiff, in ulps; flattened.

    Attributes:
      where: its name.
      dtype: the dtype it is computed in.
      hand, autodiff: the errors, one for each element of each sample.
      shape: the shape of one sample.
      is_coarse: whether the hand's are worse than autodiff's by more than `FACTOR`, in units that rounding makes.
      beside: whose errors stand in `autodiff`: `attainable`, where there is no autodiff, is the truth rounded once.
    """

    where: str
    dtype: str
    hand: np.ndarray
    autodiff: np.ndarray
    shape: tuple[int, ...] = ()
    is_coarse: bool = False
    beside: str = "autodiff"

    def summary(self) -> Precision:
        worst: tuple[int, ...] = ()
        if self.hand.size and self.shape:
            size = int(np.prod(self.shape))
            worst = tuple(int(i) for i in np.unravel_index(int(self.hand.argmax()) % size, self.shape))
        return Precision(self.dtype, summarise(self.hand), summarise(self.autodiff), worst, self.beside)


def within(row: Row, factor: float = 2, more: float = 1) -> bool:
    """Whether the hand's median and 99th percentile are at most `factor` times autodiff's, and `more` ulps."""
    hand, autodiff = summarise(row.hand), summarise(row.autodiff)
    return hand.p99 <= factor * autodiff.p99 + more and hand.median <= factor * autodiff.median + more


def rows_in(
    ready: Prepared,
    working: Working,
    points: Sequence[Point],
    wide: Sequence[Point],
    held: Mapping[str, Held],
    truth: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Row]:
    """Every value's errors in a working dtype.

    Args:
      ready, working: the programs, and which of `ready.narrow()` to run.
      points: the points in the dtypes of the arguments.
      wide: the same points in float64.
      held: the values in float64, those that are asked for; where a kink was accepted no error is counted. Nothing is
        said of a value that is wrong in float64.
      truth: the oracle's values at these very inputs, where the arguments have the working dtype; else they are made.
    """
    if all(h.is_wrong for h in held.values()):
        return {}
    cast = [Point(_cast(p.leaves, working.leaves), _cast(p.dys, working.dys)) for p in points]
    with x64_for(working.leaves, ready.x64):
        values = pairs(stacked([working.program.run(*p) for p in cast]))
    own = working.leaves == ready.own
    inputs = [Point(w.leaves if own else widened(c.leaves), widened(c.dys)) for w, c in zip(wide, cast, strict=True)]
    truth = truth if own and truth is not None else _oracle(ready, inputs)
    rows = {
        name: _row(name, *pair, truth[name], held[name].kinked)
        for name, pair in values.items()
        if name in held and not held[name].is_wrong
    }
    suspects = {
        name for name, row in rows.items() if overflows(row) or not within(row, FACTOR, FACTOR) or has_an_outlier(row)
    }
    coarse = suspects and _coarse(ready, working, inputs, truth, {n: rows[n] for n in suspects})
    return {name: row._replace(is_coarse=name in coarse) for name, row in rows.items()}


def _coarse(
    ready: Prepared, working: Working, inputs: Sequence[Point], truth: Mapping[str, np.ndarray], rows: dict[str, Row]
) -> set[str]:
    """Those values whose errors are larger than autodiff's by `FACTOR`, in units that rounding the inputs makes."""
    moved = [_oracle(ready, [_nudged(p, working, i) for p in inputs]) for i in range(MOVES)]
    coarse = set()
    for name, row in rows.items():
        effects = [ulp_errors(m[name], truth[name], row.dtype) for m in moved]
        unit = np.maximum(1.0, np.max(np.where(np.isfinite(effects), effects, 1.0), axis=0))
        scaled = row._replace(hand=row.hand / unit, autodiff=row.autodiff / unit)
        if overflows(row) or not within(scaled, FACTOR, FACTOR) or has_an_outlier(scaled):
            coarse.add(name)
    return coarse


def overflows(row: Row) -> bool:
    return bool(np.any(np.isinf(row.hand) & np.isfinite(row.autodiff)))


def has_an_outlier(row: Row) -> bool:
    """Whether a single element is wrong in its leading digits, though most are right."""
    most = max(FACTOR, min(OUTLIER, 0.25 / float(jnp.finfo(row.dtype).eps)))
    return float(np.max(row.hand, initial=0.0)) > most * (1 + float(np.max(row.autodiff, initial=0.0)))


def _oracle(ready: Prepared, inputs: Sequence[Point]) -> dict[str, np.ndarray]:
    seen = stacked(run_in_float64(ready.wide.run, inputs))
    return seen.y_oracle | seen.oracle


def _row(name: str, hand: np.ndarray, autodiff: np.ndarray, truth: np.ndarray, kinked: np.ndarray | None) -> Row:
    """The errors of one value; zero where the truth is not finite, and where it has a kink."""
    skipped = ~np.isfinite(truth) if kinked is None else ~np.isfinite(truth) | kinked
    with np.errstate(invalid="ignore"):
        by_hand, by_autodiff = (
            np.where(skipped.reshape(-1), 0.0, ulp_errors(v, truth, hand.dtype)) for v in (hand, autodiff)
        )
    return Row(name, jnp.dtype(hand.dtype).name, by_hand, by_autodiff, truth.shape[1:])


def _cast(values: Sequence[Any], dtypes: Sequence[Any]) -> list[Any]:
    return [v.astype(d) if is_differentiable(v) else v for v, d in zip(values, dtypes, strict=True)]


def _nudged(point: Point, working: Working, i: int) -> Point:
    """The same point, its inputs and cotangents moved by up to one unit of their working dtype."""
    rng = generator(i, 3)

    def nudge(v, dtype):
        return v * (1 + float(jnp.finfo(dtype).eps) * rng.uniform(-1, 1, v.shape)) if is_differentiable(v) else v

    return Point(
        *(
            [nudge(v, d) for v, d in zip(*both, strict=True)]
            for both in zip(point, (working.leaves, working.dys), strict=True)
        )
    )


def text(p: Precision) -> str:
    """`float32 0.6 ulp (p99), autodiff 0.7`."""
    return f"{p.dtype} {_number(p.hand.p99)} ulp (p99), {p.beside} {_number(p.autodiff.p99)}"


def long_text(p: Precision) -> str:
    """All three figures of both, and where the largest error is."""
    hand, autodiff = ("/".join(map(_number, u)) for u in (p.hand, p.autodiff))
    at = f" at {list(p.worst)}" if p.worst else ""
    return f"{p.dtype} {hand} ulp (median/p99/max{at}), {p.beside} {autodiff}"


def _number(v: float) -> str:
    return f"{v:.1f}" if v < 100 else f"{v:.0f}" if v < 1e5 else f"{v:.0e}"
