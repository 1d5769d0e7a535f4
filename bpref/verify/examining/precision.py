"""Precision: a right derivation in the dtypes that it is used in, beside autodiff's own error and what is attainable.

The truth is computed in float64 from the very inputs that the working dtype holds. An accumulator of few digits shows
in cotangents that do not cancel.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bpref.verify.examining.held import Held, Point, nudged, pairs, run_in_float64, stacked
from bpref.verify.examining.prepare import Prepared, Working, widest_of, x64_for
from bpref.verify.examining.rows import ROUNDED_ONCE, Row, apart_as_a_whole, errors, fault, has_value
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.measure import widened
from bpref.verify.oracle import Arrays, is_differentiable
from bpref.verify.report import Finding

MOVES = 3
"""How often the inputs are moved by their own rounding, to see what that does to the truth."""

DRAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "": lambda dy: dy,
    " with cotangents of one sign": lambda dy: np.abs(dy).astype(dy.dtype),
    " with cotangents of 1e-5": lambda dy: (dy * np.asarray(1e-5, dy.dtype)).astype(dy.dtype),
}
"""What is done to the cotangents that were drawn: as those of a mean over many tokens are, for one."""


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
        name: errors(name, hand, autodiff, inputs.truth[name], held[name].torn[: len(hand)] & np.isfinite(hand))
        for name, (hand, autodiff) in values.items()
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

        What the hand alone casts down is no excuse of the hand's. Arguments of several dtypes meet in the widest.
        """
        more = _round_off(widest_of(working.leaves), ready.primal_casts_to()) / (float(np.finfo(np.float64).eps) / 2)
        found = []
        for i in range(MOVES):
            rounded = stacked(run_in_float64(ready.truth(working).rounded, [nudged(p, i) for p in inputs.wide]))
            values = rounded.y_oracle | rounded.oracle
            found.append({name: v + more * (values[name] - v) for name, v in inputs.truth.items()})
        return found

    def fault_of(name: str, row: Row) -> Finding | None:
        found = fault(
            row,
            inputs.truth[name],
            is_defined,
            _round_off(row.dtype, ready.casts_to),
            moved=lambda: [m[name] for m in moved()],
            cancelled=lambda: [m[name] for m in cancelled()],
            best=lambda: _best(ready, inputs, row),
        )
        return found._replace(detail=found.detail + draw) if found and found.kind == "imprecise" else found

    return {name: row._replace(fault=fault_of(name, row)) for name, row in rows.items()}


def _best(ready: Prepared, inputs: Inputs, row: Row) -> tuple[float, str]:
    """How far off the whole array need not be: as the same derivation in float32, where that is better."""
    in_float32 = ready.in_float32()
    if in_float32 is not None:
        wide = [Point(_cast(p.leaves, in_float32.leaves), _cast(p.dys, in_float32.dys)) for p in inputs.wide]
        values = _values(ready, in_float32, wide)[row.where][0].astype(row.dtype)
        accumulated = apart_as_a_whole(values, inputs.truth[row.where])
        if 2 * accumulated < row.whole[0]:
            return accumulated, "float32 accumulation"
    return row.whole[2], ROUNDED_ONCE


def _round_off(dtype: DTypeLike, inside: DTypeLike | None) -> float:
    """Half a unit of the coarser of the dtype that is computed in and the one that is cast down to inside, if any."""
    return max(float(jnp.finfo(d).eps) for d in (dtype, inside) if d is not None) / 2


def _truth(ready: Prepared, working: Working, inputs: Sequence[Point]) -> dict[str, np.ndarray]:
    seen = stacked(run_in_float64(ready.truth(working).oracle, inputs))
    return seen.y_oracle | seen.oracle


def _values(ready: Prepared, working: Working, points: Sequence[Point]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with x64_for(working.leaves, ready.x64):
        return pairs([working.program.run(*p) for p in points])


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
