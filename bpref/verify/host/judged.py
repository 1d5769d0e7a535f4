"""From samples to the derivation's verdict: is a called function's backward what the oracle says, within its bars?"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpref.verify.diagnosis.diagnose import diagnose, diagnose_shape
from bpref.verify.diagnosis.pattern import pattern_of
from bpref.verify.diagnosis.residual import Residual, agree
from bpref.verify.examining.program import COTANGENTS
from bpref.verify.examining.rows import long_text
from bpref.verify.examining.subject import Misfit
from bpref.verify.host.called import Called
from bpref.verify.host.oracles import MARGIN, Oracle, jumps, settled
from bpref.verify.host.precision import Compared, by_hand, natural, roughness, sweeps, terms
from bpref.verify.host.sampling import Sample, eps_of
from bpref.verify.numbers.kinks import JUMP
from bpref.verify.numbers.measure import relative_error, widened
from bpref.verify.numbers.points import generator, is_key
from bpref.verify.report import CANNOT_TELL, IMPRECISE, OK, WRONG, Finding, Pattern, Verdict

BARS = 10
"""How many error bars off is wrong; within two is right."""

SHARP = 1e-3
"""A bar this large, relative to the array's largest element, decides nothing."""

UNMISTAKABLE = 1e-2
"""A relative error of a whole array, in the root mean square, that is no want of precision."""

DOUBLE = 1e-10
"""A dtype of a smaller rounding error than this decides about a derivation by itself."""


class Judged(NamedTuple):
    """What was found of one value so far: a verdict, its finding, and whether precision is still to be looked at."""

    verdict: Verdict
    finding: Finding | None = None


def wrong(name: str, kind: str, detail: str, error: float = np.inf, pattern: Pattern | None = None) -> Judged:
    return Judged(Verdict(name, WRONG, detail, error), Finding(name, kind, detail, error, pattern))


def judge_argument(
    c: Called, n: int, samples: Sequence[Sample], held_against: Oracle, own: Callable[[], dict[str, Compared]]
) -> Judged:
    """The verdict on the cotangent of leaf `n`.

    Args:
      c, samples: what is judged.
      held_against: the oracle.
      own: what was compared in the dtypes of the samples, for a function that does not compute in float64.
    """
    name = c.names[n]
    first = samples[0].hand[n]
    if isinstance(first, Misfit):
        return wrong(name, "structure", first.detail)
    oracle, bars, kinks = (np.stack([getattr(s, of)[n] for s in samples]) for of in ("oracle", "bars", "kinks"))
    bars = np.where(_idle(samples, oracle), np.inf, bars)
    unseen = _unseen(samples, n)
    if first is None:
        return _absent(name, samples, n, oracle, bars, unseen)
    hand = np.stack([s.hand[n] for s in samples]).astype(oracle.dtype)
    residual = _residual(c, n, samples, hand, oracle, bars, held_against)
    if hand.shape != oracle.shape:
        return wrong(name, *diagnose_shape(residual))
    expected = samples[0].leaves[n].dtype
    if not jnp.issubdtype(first.dtype, jnp.inexact) or jnp.finfo(first.dtype).nmant < jnp.finfo(expected).nmant:
        return wrong(name, "dtype", f"its cotangent is {first.dtype}, expected {expected}")
    eps = float(jnp.finfo(first.dtype).eps)
    if held_against.is_exact and eps > DOUBLE:
        judged = _narrow(own()[name], residual)
    else:
        noise = np.zeros(bars.shape)
        judged = _within_bars(name, samples, n, hand, oracle, bars, eps, residual, kinks=kinks)
        if judged.verdict.verdict != OK and np.all(np.isfinite(hand)) and expected in (np.float64, np.complex128):
            noise = _noise(c, held_against, samples, n)
            bars = bars + noise
            judged = _within_bars(name, samples, n, hand, oracle, bars, eps, residual, noise, kinks)
        if judged.verdict.verdict != OK and held_against.is_exact and np.all(np.isfinite(hand)):
            at = [(s.leaves, [other.dy for other in samples[i : i + COTANGENTS]]) for i, s in _firsts(samples)]
            hand, oracle = settled(c, held_against, at, n, hand, oracle)
            bars = np.where(jumps(c, held_against, at, n) > BARS * noise, 0.0, bars)
            residual = _residual(c, n, samples, hand, oracle, bars, held_against)
            judged = _within_bars(name, samples, n, hand, oracle, bars, eps, residual)
    return judged if judged.verdict.verdict == WRONG else _looked_at(judged, samples, n, oracle, bars, unseen)


def _noise(c: Called, oracle: Oracle, samples: Sequence[Sample], n: int) -> np.ndarray:
    """What rounding makes of the cotangent, where terms cancel for instance: how far rounded inputs move the hand's.

    That of the median element for all of them: few moves may show nothing at one. A jump, at a tie, is no rounding.
    It is no less than what rounding makes of the terms, where all of an array cancels; nor, at each element, than what
    bends of it where a smooth function is straight, up to what double precision can lose of the terms.
    """
    shape = samples[0].leaves[n].shape
    found: list[np.ndarray] = []
    for i, s in _firsts(samples):
        of_point = samples[i : i + COTANGENTS]
        eps = float(jnp.finfo(s.leaves[n].dtype).eps)
        dys = [other.dy for other in of_point]
        _, effects = by_hand(c, s.leaves, dys, generator(n, 14), eps)
        inside = roughness(sweeps(c, oracle), s.leaves, s.y, dys, generator(n, 15))
        for other, of_dy, bent in zip(of_point, (e[n] for e in effects), (v[n] for v in inside), strict=True):
            moved = np.asarray(of_dy)
            typical = float(np.median(moved[moved > 0])) if moved.any() else 0.0
            size = natural(other.y, other.dy, other.leaves[n])
            of_terms = eps * terms(other.y, other.dy, other.leaves[n])
            least = max(of_terms, typical if typical < JUMP * size else 0.0)
            found.append(MARGIN * np.maximum(least, np.zeros(shape) if bent is None else bent))
    return np.stack(found)


def _firsts(samples: Sequence[Sample]) -> list[tuple[int, Sample]]:
    """The first sample of every point, with its place."""
    return list(enumerate(samples))[::COTANGENTS]


def judge_output(
    c: Called, i: int, samples: Sequence[Sample], bars: Sequence[np.ndarray], own: Compared | None
) -> Judged:
    """The verdict on output `i`, held against the reference's; `own` as in `judge_argument`, for this output."""
    name = c.outputs(len(samples[0].y))[i]
    points = samples[:: len(samples) // len(bars)]
    y = np.stack([s.y[i] for s in points])
    reference = np.stack([s.reference[i] for s in points if s.reference is not None])
    wide = np.complex128 if np.iscomplexobj(reference) else np.float64
    args = {m: np.stack([s.leaves[j] for s in points]) for j, m in enumerate(c.names) if not is_key(c.leaves[j])}
    residual = Residual(name, y.astype(wide), reference.astype(wide), {}, args, {}, {}, 1e-10)
    if own is not None:
        judged = _narrow(own, residual)
    else:
        eps = float(jnp.finfo(y.dtype).eps)
        judged = _within_bars(name, (), i, residual.hand, residual.oracle, np.stack(bars), eps, residual)
    lost = ~np.isfinite(y) & ~np.isfinite(reference)
    if judged.verdict.verdict != WRONG and np.any(lost):
        detail = f"it is NaN or infinite{_where(np.asarray(lost.any(axis=0)))}, and so is the reference"
        return Judged(Verdict(name, CANNOT_TELL, detail, judged.verdict.error))
    return judged


def _within_bars(
    name: str,
    samples: Sequence[Sample],
    n: int,
    hand: np.ndarray,
    oracle: np.ndarray,
    bars: np.ndarray,
    eps: float,
    residual: Residual,
    noise: np.ndarray | None = None,
    kinks: np.ndarray | float = 0.0,
) -> Judged:
    """Right within the bars; at a kink whatever is between the slopes on either side."""
    bars = bars - kinks
    looked = np.isfinite(bars) & np.isfinite(oracle)
    known = np.where(looked, np.abs(oracle), 0.0)
    size = np.max(known, axis=tuple(range(1, oracle.ndim)), keepdims=True, initial=0.0)
    allowed = np.where(looked, bars, 0.0) + 100 * eps * size + SHARP * kinks
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(looked, np.abs(hand - oracle), 0.0)
        apart = np.where(np.isnan(apart), np.inf, apart)
        others = int(np.sum(np.any((kinks > 0) & (apart > 2 * allowed), axis=0)))
        apart = np.maximum(apart - kinks, 0.0)
        error = float(np.max(apart / np.maximum(known, SHARP * size + np.finfo(float).tiny), initial=0.0))
    if np.any(apart > BARS * allowed):
        if looked.all() and error > BARS * residual.round_off:
            return wrong(name, *diagnose(residual), error, pattern_of(residual))
        return wrong(name, "unexplained", _worst(hand, oracle, apart, np.broadcast_to(kinks, apart.shape)), error)
    if samples and _projections_disagree(samples, n, hand, noise):
        return wrong(name, "unexplained", "along a random direction through the whole array it is off", error)
    width = float(np.max(np.where(looked, bars, 0.0) / np.maximum(size, np.finfo(float).tiny), initial=0.0))
    width = max(width, 100 * eps) if 100 * eps > SHARP else width
    if width > SHARP or np.any(apart > 2 * allowed):
        sure = f"only sure to {width:.0e}" if width < 1 else "sure to no digit, being 0 but for rounding"
        return Judged(Verdict(name, CANNOT_TELL, f"off by {error:.1e}, and the oracle is {sure}", error))
    more = f"; at {others} kink{'s' * (others > 1)} it has another subgradient, as right" if others else ""
    return Judged(Verdict(name, OK, f"{error:.0e} off; the oracle is sure to {width:.0e}{more}", error))


def _narrow(own: Compared, residual: Residual) -> Judged:
    """A derivation that is only known in less than double precision, where the truth is known better.

    Errors as small as those of the best that the dtype allows are right. Larger ones are wrong where a mistake explains
    them or the array as a whole is another; else they are a want of precision.
    """
    name = residual.where
    row = own.row(name)
    p = row.summary()
    apart, beside = (_relative(v, own.truth) for v in (own.hand, own.other))
    if not row.is_coarse:
        return Judged(Verdict(name, OK, f"{apart:.0e} off, computed in {row.dtype}", apart))
    if row.fault and row.fault.kind == "undefined":
        return Judged(Verdict(name, CANNOT_TELL, row.fault.detail, apart), row.fault)
    if not np.isfinite(p.hand.maximum):
        return wrong(name, *diagnose(residual), np.inf)
    eps = float(jnp.finfo(own.hand.dtype).eps)
    possible = float(relative_error(np.asarray(own.other).astype(own.truth.dtype), own.truth))
    residual = residual._replace(round_off=max(4 * possible, 16 * eps))
    found = diagnose(residual)
    is_other = apart > max(UNMISTAKABLE, 16 * eps) and apart > 4 * beside
    # What is as near to the reference itself as to what a mistake would make of it shows no mistake.
    is_mistake = found.kind != "unexplained" and not agree(residual, residual.oracle)
    if is_other or is_mistake:
        return wrong(name, *found, apart, pattern_of(residual))
    detail = long_text(p)
    return Judged(Verdict(name, IMPRECISE, detail, apart), Finding(name, "imprecise", detail, p.hand.p99))


def _relative(v: np.ndarray, truth: np.ndarray) -> float:
    """The root mean square error of the worst sample, relative to that sample's size."""
    known = np.isfinite(truth)
    v, t = (np.where(known, np.asarray(a).astype(truth.dtype), 0).reshape(len(truth), -1) for a in (v, truth))
    norms = np.linalg.norm(t, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.max(np.where(norms > 0, np.linalg.norm(v - t, axis=1) / norms, 0.0), initial=0.0))


def _absent(
    name: str, samples: Sequence[Sample], n: int, oracle: np.ndarray, bars: np.ndarray, unseen: np.ndarray
) -> Judged:
    with np.errstate(invalid="ignore"):
        if np.any(np.abs(oracle) > BARS * bars):
            detail = "the backward returned None for it, which stands for zero, and it is not zero"
            return wrong(name, "structure", detail)
    absent = Judged(Verdict(name, OK, "None, and the oracle's is zero", 0.0))
    return _looked_at(absent, samples, n, oracle, bars, unseen)


def _looked_at(
    judged: Judged, samples: Sequence[Sample], n: int, oracle: np.ndarray, bars: np.ndarray, unseen: np.ndarray
) -> Judged:
    """`ok` only of what was looked at: the elements that no sample shows are said, and where."""
    v = judged.verdict
    broken = [s for s in samples if not s.is_finite]
    more = ""
    if unseen.any() and not unseen.all():
        more = f"; {int(unseen.sum())} elements were looked at only along random directions"
        if v.verdict == OK and not _is_seen_along(samples, n, oracle, bars):
            detail = f"{v.detail}{more}, and what is seen along these is not sharp enough to show one that is wrong"
            return Judged(Verdict(v.where, CANNOT_TELL, detail, v.error))
    if broken:
        bad = np.any([~np.isfinite(v) for s in broken[:1] for v in s.y[:1]], axis=0)
        more += f"; judged through the finite outputs: y is NaN or infinite{_where(bad)}, and dy was 0 there"
    blind = ~np.any(np.isfinite(oracle) & np.isfinite(bars), axis=0) & ~unseen
    if np.any(blind) or (oracle[0].size and unseen.all()):
        why = "only outputs that are NaN or infinite depend on it" if broken else "the oracle has no value"
        return Judged(Verdict(v.where, CANNOT_TELL, f"{why}{_where(blind)}", v.error))
    return Judged(v._replace(detail=v.detail + more), judged.finding)


def _idle(samples: Sequence[Sample], oracle: np.ndarray) -> np.ndarray:
    """The elements that are 0 in a sample for want of a finite output, perhaps: nothing is known of them there."""
    broken = np.array([not s.is_finite for s in samples])
    return broken.reshape(-1, *[1] * (oracle.ndim - 1)) & (oracle == 0)


def _unseen(samples: Sequence[Sample], n: int) -> np.ndarray:
    """The elements that were never drawn to be looked at one by one."""
    leaf = samples[0].leaves[n]
    seen = np.zeros(leaf.size, bool)
    for s in samples:
        seen[s.chosen[n]] = True
    return ~seen.reshape(leaf.shape)


def _where(places: np.ndarray) -> str:
    """` at [2, 0] and 5 more of 12 elements`; nothing for a scalar."""
    count = int(places.sum())
    if not places.ndim or not count:
        return ""
    first = [int(i) for i in np.argwhere(places)[0]]
    return f" at {first}" + (f" and {count - 1} more of {places.size} elements" if count > 1 else "")


def _projections_disagree(samples: Sequence[Sample], n: int, hand: np.ndarray, noise: np.ndarray | None) -> bool:
    """Whether the hand is off along a direction; in double precision alone, where such a bar can be trusted."""
    noise = np.zeros(hand.shape) if noise is None else noise
    if hand.dtype not in (np.float64, np.complex128) or samples[0].leaves[n].dtype.itemsize < 8:
        return False

    def disagrees(i: int) -> bool:
        s, h = samples[i], hand[i]
        return any(
            abs(float(np.sum(h * p.direction).real) - p.value)
            > BARS * p.bar + float(np.sum((1e-9 * np.abs(h) + BARS * noise[i]) * np.abs(p.direction)))
            for p in s.projections[n]
            if np.isfinite(p.bar)
        )

    # At given values there may be kinks, which a direction meets all at once; those of a mistake are everywhere.
    return all(any(disagrees(i + j) for j in range(COTANGENTS)) for i, _ in _firsts(samples))


def _is_seen_along(samples: Sequence[Sample], n: int, oracle: np.ndarray, bars: np.ndarray) -> bool:
    """Whether some direction is known so well that a typical element, a tenth wrong, would show."""
    known = np.abs(oracle[np.isfinite(bars) & np.isfinite(oracle)])
    typical = float(np.sqrt(np.mean(known**2))) if known.size else 0.0
    return any(BARS * p.bar <= 0.1 * typical or (p.bar == typical == 0) for s in samples for p in s.projections[n])


def _worst(hand: np.ndarray, oracle: np.ndarray, apart: np.ndarray, kinks: np.ndarray) -> str:
    index = np.unravel_index(int(apart.argmax()), apart.shape)
    right = f"up to {kinks[index]:.3e} off {oracle[index]:.3e}, at a kink" if kinks[index] else f"{oracle[index]:.3e}"
    return f"at {[int(i) for i in index[1:]]} it is {hand[index]:.3e}, the oracle's {right}"


def _residual(
    c: Called,
    n: int,
    samples: Sequence[Sample],
    hand: np.ndarray,
    oracle: np.ndarray,
    bars: np.ndarray,
    held_against: Oracle,
) -> Residual:
    def stack(of: Callable[[Sample], np.ndarray]) -> np.ndarray:
        return np.stack([of(s) for s in samples])

    def for_dys(others: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        """The oracle's for other dys, each given for all samples; asked again, point by point."""
        of_samples: list[list[np.ndarray]] = []
        for first in range(0, len(samples), COTANGENTS):
            dys = [[v[s] for v in d.values()] for s in range(first, first + COTANGENTS) for d in others]
            with jax.enable_x64(True):
                found = held_against.cotangents(samples[first].leaves, dys, generator(n, 11), eps_of(samples[first].y))
            values = iter([f.cotangents[n] for f in found])
            of_samples += [[next(values) for _ in others] for _ in range(COTANGENTS)]
        return [np.stack(v) for v in zip(*of_samples, strict=True)]

    with np.errstate(invalid="ignore"):
        size = np.max(np.abs(oracle), initial=0.0) or 1.0
        relative = np.max(np.where(np.isfinite(bars), bars, 0.0)) / size if bars.size else 0.0
    outputs = c.outputs(len(samples[0].y))
    return Residual(
        where=c.names[n],
        hand=hand,
        oracle=oracle,
        others={c.names[i]: stack(lambda s, i=i: s.oracle[i]) for i, d in enumerate(c.differentiable) if d and i != n},
        args={m: widened(stack(lambda s, i=i: s.leaves[i])) for i, m in enumerate(c.names) if not is_key(c.leaves[i])},
        y={m: widened(stack(lambda s, i=i: s.y[i])) for i, m in enumerate(outputs)},
        dy={m: widened(stack(lambda s, i=i: s.dy[i])) for i, m in enumerate(outputs)},
        round_off=max(1e-10, 2 * float(relative) / SHARP),
        for_dys=for_dys,
    )
