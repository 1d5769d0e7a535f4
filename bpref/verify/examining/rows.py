"""The errors of one value in one dtype, beside what is possible, and whether they are a fault of the derivation's.

Errors are in units of the last place of each element; where rounding already moves an element by more, that is the
unit. Autodiff may share a fault, and a percentile hide the few elements that matter most: so the error of a whole array
is held against the truth's, rounded once, as well, and the one number that takes the truth to the array against 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bpref.verify.numbers.measure import summarise, ulp_errors
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

ROUNDED_ONCE = "the truth rounded once"


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


def errors(
    where: str,
    hand: np.ndarray,
    other: np.ndarray,
    truth: np.ndarray,
    is_forgiven: np.ndarray | bool = False,
    beside: str = "autodiff",
) -> Row:
    """The errors of one value; zero where they are forgiven, and where the truth is no number of its dtype.

    Args:
      where: its name.
      hand, other, truth: a sample along the first axis; `other` is autodiff's, or what is attainable.
      is_forgiven: of each element, as where it has a kink.
      beside: which of the two `other` is.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        once = truth.astype(hand.dtype)
        skipped = ~np.isfinite(once) | is_forgiven
        by_hand, by_other = (
            np.where(skipped.reshape(-1), 0.0, ulp_errors(v, truth, hand.dtype)) for v in (hand, other)
        )
        of_all = hand, other, once, truth
        values, others, best, known = (np.where(skipped, 0.0, v) for v in of_all) if skipped.any() else of_all
        off = apart_as_a_whole(values, known), apart_as_a_whole(others, known), apart_as_a_whole(best, known)
        shape, scale = truth.shape[1:], scales(values, others, known)
        return Row(where, jnp.dtype(hand.dtype).name, by_hand, by_other, off, shape, beside=beside, scale=scale)


def fault(
    row: Row,
    truth: np.ndarray,
    is_defined: bool,
    unit: float,
    moved: Callable[[], list[np.ndarray]],
    cancelled: Callable[[], list[np.ndarray]] = list,
    factor: float = FACTOR,
    best: Callable[[], tuple[float, str]] | None = None,
    is_moved: bool = False,
) -> Finding | None:
    """What is wrong with a row, if anything is.

    Args:
      row: the errors beside `truth`.
      is_defined: whether the function itself has a value in that dtype.
      unit: the round-off of what is computed in.
      moved: the truth where the inputs are moved by their rounding, to be had when it is asked for.
      cancelled: the truth where the arithmetic inside is rounded, likewise.
      factor: how many times the other's error the hand's may be, and how many units more.
      best: how far off as a whole the array need not be, and than what that is, if not than the truth rounded once.
      is_moved: whether `moved` is known and asked in any case: where the other is as far off in ulps, yet the inputs'
        rounding explains the other's errors alone.
    """
    if np.any(np.isinf(row.hand)):
        return nonfinite(row, is_defined)
    if is_moved or not is_precise(row, factor):
        effects = [ulp_errors(v, truth, row.dtype) for v in moved() + cancelled()]
        units = np.maximum(1.0, np.max(np.where(np.isfinite(effects), effects, 1.0), axis=0))
        if not is_precise(row._replace(hand=row.hand / units, autodiff=row.autodiff / units), factor):
            return Finding(row.where, "imprecise", coarse_text(row), row.summary().hand.p99)
    if is_blunt(row, unit):
        effect = max(apart_as_a_whole(v, truth) for v in moved())
        is_lost = any(apart_as_a_whole(v, truth) > 1 for v in cancelled())
        if is_blunt(row, max(unit, effect)) and not is_lost:
            detail = blunt_text(row, *(best() if best else (row.whole[2], ROUNDED_ONCE)))
            return Finding(row.where, "imprecise", detail, row.whole[0])
    if is_scaled(row, unit):
        effect = max(abs(scale_to(v, truth) - 1) for v in moved() + cancelled())
        if is_scaled(row, max(unit, effect)):
            return Finding(row.where, "imprecise", scaled_text(row), abs(row.scale[0] - 1))
    return None


def is_precise(row: Row, factor: float) -> bool:
    """Whether all but a few elements are within so many times the other's errors, and none is wrong altogether."""
    return within(row, factor, factor) and not has_an_outlier(row)


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


def has_an_outlier(row: Row) -> bool:
    """Whether a single element is wrong in its leading digits, though most are right."""
    most = max(FACTOR, min(OUTLIER, 0.25 / float(jnp.finfo(row.dtype).eps)))
    return float(np.max(row.hand, initial=0.0)) > most * (1 + float(np.max(row.autodiff, initial=0.0)))


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
