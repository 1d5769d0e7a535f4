"""Precision: a right derivation in the dtypes that it is used in, beside autodiff's own error and what is attainable.

The truth is computed in float64 from the very inputs that the working dtype holds. Errors are in units of the last
place of each element; where the inputs' own rounding already moves an element by more, that is the unit. Autodiff may
share a fault, and a percentile hide the few elements that matter most: so the error of a whole array is held against
the truth's, rounded once, as well. An accumulator of few digits shows in cotangents that do not cancel.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bpref.verify.examining.held import Held, Point, nudged, pairs, run_in_float64, stacked
from bpref.verify.examining.prepare import Prepared, Working, x64_for
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.measure import summarise, ulp_errors, widened
from bpref.verify.oracle import Arrays, is_differentiable
from bpref.verify.report import Finding, Precision

FACTOR = 32
"""How many times autodiff's error, and how many units more, a derivation of someone's own may have: five bits."""

OUTLIER = 1024
"""The same for the largest error alone, where the dtype has so many digits."""

WHOLE = 16
"""How many times the unit round-off a whole array may be off, in a dtype that has fewer digits than float32."""

SCALED, SURE = 4, 8
"""How many times the unit round-off, and the standard error of the factor itself, beyond autodiff's, an array may be
too large or too small by one factor. Of the corpus' right derivations none is off by an eighth of a unit."""

PLAIN = 1000
"""So many times as large as its own error is a factor that is all that is wrong."""

FEW = 8
"""Of fewer elements than these a common factor may be rounding."""

UNIT_OF_FLOAT32 = 2.0**-24

MOVES = 3
"""How often the inputs are moved by their own rounding, to see what that does to the truth."""

DRAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda dy: dy,
    " with cotangents of one sign": lambda dy: np.abs(dy).astype(dy.dtype),
    " with cotangents of 1e-5": lambda dy: (dy * np.asarray(1e-5, dy.dtype)).astype(dy.dtype),
}
"""What is done to the cotangents that were drawn: as those of a mean over many tokens are, for one."""


class Row(NamedTuple):
    """Errors of one value in one dtype, by hand and by autodiff: elementwise in ulps, flattened, and as a whole.

    Attributes:
      where: its name.
      dtype: the dtype it is computed in.
      hand, autodiff: the errors, one for each element of each sample.
      whole: the norm of the error relative to the truth's, of the worst sample: by hand, by autodiff, and of the truth
        rounded once.
      shape: the shape of one sample.
      fault: what is wrong with the hand's, if anything is; `undefined` where the function itself has no value.
      beside: whose errors stand in `autodiff`: `attainable`, where there is no autodiff, is the truth rounded once.
      scale: as `scales` has it.
    """

    where: str
    dtype: str
    hand: np.ndarray
    autodiff: np.ndarray
    whole: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shape: tuple[int, ...] = ()
    fault: Finding | None = None
    beside: str = "autodiff"
    scale: tuple[float, float, float] = (1.0, 1.0, 0.0)

    @property
    def is_coarse(self) -> bool:
        return self.fault is not None

    def summary(self) -> Precision:
        worst: tuple[int, ...] = ()
        if self.hand.size and self.shape:
            size = int(np.prod(self.shape))
            worst = tuple(int(i) for i in np.unravel_index(int(self.hand.argmax()) % size, self.shape))
        return Precision(self.dtype, summarise(self.hand), summarise(self.autodiff), worst, self.beside, *self.whole)


def within(row: Row, factor: float = 2, more: float = 1) -> bool:
    """Whether the hand's median and 99th percentile are at most `factor` times autodiff's, and `more` ulps."""
    hand, autodiff = summarise(row.hand), summarise(row.autodiff)
    return hand.p99 <= factor * autodiff.p99 + more and hand.median <= factor * autodiff.median + more


class Inputs(NamedTuple):
    """The points of one draw: as the working dtype holds them, the same in float64, and the truth there."""

    narrow: list[Point]
    wide: list[Point]
    truth: dict[str, np.ndarray]


def rows_in(
    ready: Prepared,
    working: Working,
    points: Sequence[Point],
    wide: Sequence[Point],
    held: Mapping[str, Held],
    truth: Mapping[str, np.ndarray] | None = None,
    draw: str = "",
    with_faults: bool = True,
) -> dict[str, Row]:
    """Every value's errors in a working dtype.

    Args:
      ready, working: the programs, and which of `ready.narrow()` to run.
      points: the points in the dtypes of the arguments.
      wide: the same points in float64.
      held: the values in float64 that are asked for, of at least these points; where a kink was accepted no error is
        counted, and nothing is said of a value that is wrong in float64.
      truth: the oracle's values at these very inputs, where the arguments have the working dtype; else they are made.
      draw: one of `DRAWS`, what is done to the cotangents first.
      with_faults: whether what is wrong with a row is asked as well, which may take long.
    """
    if all(h.is_wrong for h in held.values()):
        return {}
    cast = [Point(_cast(p.leaves, working.leaves), list(map(DRAWS[draw], _cast(p.dys, working.dys)))) for p in points]
    own = working.leaves == ready.own
    exact = [Point(w.leaves if own else widened(c.leaves), widened(c.dys)) for w, c in zip(wide, cast, strict=True)]
    known = truth if own and not draw and ready.is_its_own_truth else None
    inputs = Inputs(cast, exact, dict(known if known is not None else _truth(ready, working, exact)))
    values = _values(ready, working, cast)
    is_defined = all(has_value(*pair) for name, pair in values.items() if name not in ready.wide.names)
    rows = {
        name: _row(name, *pair, inputs.truth[name], held[name].torn)
        for name, pair in values.items()
        if name in held and not held[name].is_wrong
    }
    return _with_faults(ready, working, inputs, rows, is_defined, draw) if with_faults else rows


def _with_faults(
    ready: Prepared, working: Working, inputs: Inputs, rows: dict[str, Row], is_defined: bool, draw: str
) -> dict[str, Row]:
    """The rows with what is wrong with them, measured in units that rounding the inputs makes where that is more."""

    @cache
    def moved() -> list[dict[str, np.ndarray]]:
        return [_truth(ready, working, [_nudged(p, working, i) for p in inputs.wide]) for i in range(MOVES)]

    @cache
    def cancelled() -> list[dict[str, np.ndarray]]:
        """How far rounding inside of the oracle, at random, moves the truth, as much as it is in this dtype.

        What the hand alone casts down is no excuse of the hand's.
        """
        more = _round_off(working.name, ready.primal_casts_to()) / (float(np.finfo(np.float64).eps) / 2)
        found = []
        for i in range(MOVES):
            rounded = stacked(run_in_float64(ready.truth(working).rounded, [nudged(p, i) for p in inputs.wide]))
            values = rounded.y_oracle | rounded.oracle
            found.append({name: v + more * (values[name] - v) for name, v in inputs.truth.items()})
        return found

    def fault(name: str, row: Row) -> Finding | None:
        if np.any(np.isinf(row.hand)):
            return nonfinite(row, is_defined)
        if not within(row, FACTOR, FACTOR) or has_an_outlier(row):
            effects = [ulp_errors(m[name], inputs.truth[name], row.dtype) for m in moved() + cancelled()]
            unit = np.maximum(1.0, np.max(np.where(np.isfinite(effects), effects, 1.0), axis=0))
            scaled = row._replace(hand=row.hand / unit, autodiff=row.autodiff / unit)
            if not within(scaled, FACTOR, FACTOR) or has_an_outlier(scaled):
                return Finding(name, "imprecise", coarse_text(row) + draw, summarise(row.hand).p99)
        unit = _round_off(row.dtype, ready.casts_to)
        if is_blunt(row, unit):
            effect = max(apart_as_a_whole(m[name], inputs.truth[name]) for m in moved())
            is_lost = any(apart_as_a_whole(m[name], inputs.truth[name]) > 1 for m in cancelled())
            if is_blunt(row, max(unit, effect)) and not is_lost:
                return Finding(name, "imprecise", _blunt(ready, inputs, row) + draw, row.whole[0])
        if is_scaled(row, unit):
            effect = max(abs(scale_to(m[name], inputs.truth[name]) - 1) for m in moved() + cancelled())
            if is_scaled(row, max(unit, effect)):
                return Finding(name, "imprecise", scaled_text(row) + draw, abs(row.scale[0] - 1))
        return None

    return {name: row._replace(fault=fault(name, row)) for name, row in rows.items()}


def has_value(*ys: np.ndarray) -> bool:
    """Whether the function has a value in the dtype of these outputs: by hand, or as the oracle computes it."""
    return bool(np.all(np.any(np.isfinite(ys), axis=0)))


def is_blunt(row: Row, unit: float) -> bool:
    """Whether a whole array is off by more than so many times `unit`, and than the truth rounded once."""
    return unit > UNIT_OF_FLOAT32 and row.whole[0] > WHOLE * max(unit, row.whole[2])


def is_scaled(row: Row, unit: float) -> bool:
    """Whether a whole array is the truth times another number than 1, in a dtype that has fewer digits than float32."""
    return unit > UNIT_OF_FLOAT32 and _is_off_by_a_factor(row, unit)


def _is_off_by_a_factor(row: Row, unit: float) -> bool:
    hand, autodiff, sure_to = row.scale
    return row.hand.size >= FEW and abs(hand - 1) > abs(autodiff - 1) + SCALED * unit + SURE * sure_to


def scaled_text(row: Row) -> str:
    """In words what the array is, and how nearly."""
    hand, autodiff, sure_to = row.scale
    return f"in {row.dtype} it is {hand:.3g} times the truth, sure to {sure_to:.1g}; {row.beside} {autodiff:.3g} times"


def coarse_text(row: Row) -> str:
    """In words how far its elements are off: all by one factor, where that is most of it."""
    hand, _, sure_to = row.scale
    is_factor = _is_off_by_a_factor(row, float(jnp.finfo(row.dtype).eps)) and abs(hand - 1) > PLAIN * sure_to
    return scaled_text(row) if is_factor else long_text(row.summary())


def blunt_text(row: Row, best: float, than: str) -> str:
    """In words how far the array is off as a whole, and how far it need not be."""
    hand, autodiff, _ = row.whole
    as_autodiff = f"as imprecise as {row.beside}" if hand <= 2 * autodiff else f"less precise than {row.beside}"
    times = hand / max(best, np.finfo(float).tiny)
    return (
        f"{row.dtype} {as_autodiff}: as a whole {hand:.2g} of its size off, {times:.0f} times less precise than {than}"
    )


def nonfinite(row: Row, is_defined: bool) -> Finding:
    """What is said of a value that is NaN or infinite in a dtype; `undefined` where the function itself is."""
    at = f" at {list(row.summary().worst)}" if row.shape else ""
    if not is_defined:
        detail = f"in {row.dtype} the function itself is NaN or infinite here, and its gradient{at}"
        return Finding(row.where, "undefined", detail)
    shared = np.any(np.isinf(row.autodiff))
    too = "and so is autodiff, though it has a value there" if shared else "where autodiff is not"
    return Finding(row.where, "nonfinite", f"in {row.dtype} it is NaN or infinite{at}, {too}")


def _blunt(ready: Prepared, inputs: Inputs, row: Row) -> str:
    """`blunt_text`, beside the same derivation in float32 where that is better."""
    than, best = "the truth rounded once", row.whole[2]
    in_float32 = ready.in_float32()
    if in_float32 is not None:
        wide = [Point(_cast(p.leaves, in_float32.leaves), _cast(p.dys, in_float32.dys)) for p in inputs.wide]
        values = _values(ready, in_float32, wide)[row.where][0].astype(row.dtype)
        accumulated = apart_as_a_whole(values, inputs.truth[row.where])
        if 2 * accumulated < row.whole[0]:
            than, best = "float32 accumulation", accumulated
    return blunt_text(row, best, than)


def _round_off(dtype: DTypeLike, inside: DTypeLike | None) -> float:
    """Half a unit of the coarser of the dtype that is computed in and the one that is cast down to inside, if any."""
    return max(float(jnp.finfo(d).eps) for d in (dtype, inside) if d is not None) / 2


def has_an_outlier(row: Row) -> bool:
    """Whether a single element is wrong in its leading digits, though most are right."""
    most = max(FACTOR, min(OUTLIER, 0.25 / float(jnp.finfo(row.dtype).eps)))
    return float(np.max(row.hand, initial=0.0)) > most * (1 + float(np.max(row.autodiff, initial=0.0)))


def _truth(ready: Prepared, working: Working, inputs: Sequence[Point]) -> dict[str, np.ndarray]:
    seen = stacked(run_in_float64(ready.truth(working).oracle, inputs))
    return seen.y_oracle | seen.oracle


def _values(ready: Prepared, working: Working, points: Sequence[Point]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with x64_for(working.leaves, ready.x64):
        return pairs([working.program.run(*p) for p in points])


def _row(name: str, hand: np.ndarray, autodiff: np.ndarray, truth: np.ndarray, torn: np.ndarray) -> Row:
    """The errors of one value; zero where it has a kink and a value, and where the truth is no number of its dtype."""
    with np.errstate(invalid="ignore", over="ignore"):
        once = truth.astype(hand.dtype)
        skipped = ~np.isfinite(once) | (torn[: len(truth)] & np.isfinite(hand))
        by_hand, by_autodiff = (
            np.where(skipped.reshape(-1), 0.0, ulp_errors(v, truth, hand.dtype)) for v in (hand, autodiff)
        )
        of_all = hand, autodiff, once, truth
        values, others, best, known = (np.where(skipped, 0.0, v) for v in of_all) if skipped.any() else of_all
        off = apart_as_a_whole(values, known), apart_as_a_whole(others, known), apart_as_a_whole(best, known)
        scale = scales(values, others, known)
        return Row(name, jnp.dtype(hand.dtype).name, by_hand, by_autodiff, off, truth.shape[1:], scale=scale)


def apart_as_a_whole(values: np.ndarray, truth: np.ndarray) -> float:
    """The norm of the error relative to the truth's, of the worst sample; the truth may be of many more digits."""
    wide = np.asarray(values, truth.dtype)
    apart, size = (np.linalg.norm(v.reshape(len(truth), -1), axis=1) for v in (wide - truth, truth))
    return float(np.max(apart / np.where(size > 0, size, np.inf), initial=0.0))


def scales(hand: np.ndarray, autodiff: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """The numbers that take the truth to the hand's and to autodiff's best, and the standard error of the hand's.

    That of least squares whose residuals are as large as they are, each by itself.
    """
    c, power = scale_to(hand, truth), float(np.vdot(truth, truth).real)
    with np.errstate(all="ignore"):
        apart = float(np.linalg.norm(truth * (np.asarray(hand, truth.dtype) - c * truth)))
    return c, scale_to(autodiff, truth), apart / power if 0 < power < np.inf else 0.0


def scale_to(values: np.ndarray, truth: np.ndarray) -> float:
    """The number that takes the truth to the values best; 1 where either says nothing."""
    with np.errstate(all="ignore"):
        power, overlap = (float(np.vdot(truth, v).real) for v in (truth, np.asarray(values, truth.dtype)))
        return overlap / power if power > 0 and np.isfinite(overlap / power) else 1.0


def _cast(values: Arrays, dtypes: Sequence[np.dtype]) -> Arrays:
    return [v.astype(d) if is_differentiable(v) else v for v, d in zip(values, dtypes, strict=True)]


def _nudged(point: Point, working: Working, i: int) -> Point:
    """The same point, its inputs and cotangents moved by up to one unit of their working dtype."""
    rng = fresh.generator(i, 3)
    units = (
        [float(jnp.finfo(d).eps) if jnp.issubdtype(d, jnp.inexact) else 0.0 for d in of]
        for of in (working.leaves, working.dys)
    )
    return Point(*(fresh.nudged(values, rng, unit) for values, unit in zip(point, units, strict=True)))


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
