"""What is wrong with a cotangent, read off its arrays: a named kind of mistake, or `unexplained`.

A diagnosis is given only where it accounts for the whole residual, to round-off, at every sample; samples come from
several points and cotangents, so that what happens to fit at one of them does not pass for an explanation.
"""

from collections.abc import Callable

import numpy as np

from bpref.verify.diagnosis.factors import factor, nonfinite, part_of_complex, show, show_index, sign, zero
from bpref.verify.diagnosis.incoming import another_dy, clipped, ignores_dy
from bpref.verify.diagnosis.moved import shifted, swapped, transposed
from bpref.verify.diagnosis.parts import guessed_term, known_term
from bpref.verify.diagnosis.places import right_region, sparse, sparse_by_name
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    agree,
    cotangents_of_outputs,
    informative,
    is_floating,
    like,
    scale_of,
    wrong_places,
)
from bpref.verify.diagnosis.slopes import slope
from bpref.verify.diagnosis.sums import missing_sum, of_another_shape
from bpref.verify.naming import first_line

HYPOTHESES: tuple[Callable[[Residual], Diagnosis | None], ...] = (
    zero,
    sign,
    part_of_complex,
    ignores_dy,
    factor,
    transposed,
    swapped,
    missing_sum,
    shifted,
    clipped,
    sparse_by_name,
    known_term,
    slope,
    another_dy,
    sparse,
    guessed_term,
)
"""From the most specific to the one with the most freedom: the first that explains everything is the diagnosis."""


def diagnose(residual: Residual) -> Diagnosis:
    """The diagnosis of a cotangent that has the argument's shape and is known to be wrong.

    That it is wrong stands whether or not a cause is found: a hypothesis that fails is passed over, and is named where
    no other explains the residual.
    """
    failed: list[Exception] = []
    with np.errstate(all="ignore"):
        if residual.oracle.size and np.isfinite(residual.oracle).all() and np.isfinite(residual.hand).all():
            hypotheses = HYPOTHESES
        else:
            hypotheses = (nonfinite,)
        for hypothesis in hypotheses:
            found = _tried(hypothesis, residual, failed)
            if found is not None:
                return found
        found = _tried(unexplained, residual, failed) or Diagnosis("unexplained", "it is not the reference")
    return _with_failures(found, failed)


def diagnose_shape(residual: Residual) -> Diagnosis:
    """The diagnosis of a cotangent whose shape, `hand.shape[1:]`, is not the argument's."""
    failed: list[Exception] = []
    shapes = f"its shape is {residual.hand.shape[1:]}, that of {residual.where} {residual.shape}"
    with np.errstate(all="ignore"):
        found = _tried(of_another_shape, residual, failed) or Diagnosis("structure", shapes)
    return _with_failures(found, failed)


def _tried(
    hypothesis: Callable[[Residual], Diagnosis | None], residual: Residual, failed: list[Exception]
) -> Diagnosis | None:
    """What a hypothesis says; None where it cannot say anything, its error being kept."""
    try:
        return hypothesis(residual)
    except Exception as error:  # A search for a cause runs the user's function again, and must not cost the verdict.
        failed.append(error)
        return None


def _with_failures(found: Diagnosis, failed: list[Exception]) -> Diagnosis:
    if not failed:
        return found
    note = f"the search for a cause failed: {type(failed[0]).__name__}: {first_line(failed[0])}"
    return found._replace(detail=f"{found.detail}\n{note}")


WORST = 3


def unexplained(r: Residual) -> Diagnosis:
    """Ratio statistics, profiles along the axes, and the worst places, in a few lines."""
    if r.oracle.size == 0:
        return Diagnosis("unexplained", "there are no elements")
    if not np.isfinite(r.oracle).all():
        bad = int((~np.isfinite(r.oracle)).sum())
        return Diagnosis("unexplained", f"the reference itself is NaN or infinite at {bad} of {r.oracle.size} places")
    wrong = wrong_places(r)
    lines = [f"no simple pattern: {int(wrong.sum())} of {wrong.size} values are wrong{_ratio(r)}"]
    return Diagnosis("unexplained", "\n".join([*lines, *_observations(r), *_profiles(r, wrong), *_worst(r)]))


def _ratio(r: Residual) -> str:
    live = informative(r.oracle)
    if np.iscomplexobj(r.oracle) or not live.any():
        return ""
    ratio = r.hand[live] / r.oracle[live]
    return f"; hand / reference: median {show(np.median(ratio))}, from {show(ratio.min())} to {show(ratio.max())}"


def _observations(r: Residual) -> list[str]:
    """Facts that are no diagnosis: what the ratio is equal to, and along which axes it is constant."""
    live = informative(r.oracle)
    if live.sum() < 4:
        return []
    for name, v in (dict(r.args) | dict(r.y) | cotangents_of_outputs(r)).items():
        wide = like(v, r.shape) if is_floating(v) and np.isfinite(v).all() else None
        if wide is None:
            continue
        for text, times in ((name, wide), (f"{name}^2", wide**2)):
            if _all_near(r, r.hand, r.oracle * times):
                return [f"hand = reference x {text}"]
            if _all_near(r, r.hand * times, r.oracle):
                return [f"hand = reference / {text}"]
    if len(r.shape) > 1 and r.shape[-1] == r.shape[-2] > 1 and agree(r, _symmetric(r.oracle), value=_symmetric(r.hand)):
        return ["its symmetric part is the reference's: it is right for arguments that are symmetric, and stay so"]
    ratio = np.where(live, r.hand / np.where(live, r.oracle, 1), np.nan)
    region = right_region(r)
    if region is not None:
        return [region]
    same = []
    for axis, n in enumerate(r.shape):
        first = np.nanmax(np.where(live, np.real(ratio), -np.inf), axis=axis + 1, keepdims=True)
        if n > 1 and np.all(np.where(live, np.abs(ratio - first), 0) <= 10 * r.round_off * np.abs(first)):
            same.append(axis)
    if same:
        return [f"the ratio is constant along axis {', '.join(map(str, same))}, and not otherwise"]
    difference = r.hand - r.oracle
    flat = [
        axis
        for axis, n in enumerate(r.shape)
        if n > 1 and np.all(np.ptp(np.abs(difference), axis=axis + 1) <= r.round_off * np.max(scale_of(r.oracle)))
    ]
    return [f"the difference is constant along axis {', '.join(map(str, flat))}"] if flat else []


def _symmetric(v: np.ndarray) -> np.ndarray:
    return v + v.swapaxes(-1, -2).conj()


def _all_near(r: Residual, a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(np.abs(a - b) <= 10 * r.round_off * scale_of(b)))


def _profiles(r: Residual, wrong: np.ndarray) -> list[str]:
    """For every axis, how the error is spread over its indices; silent where it is even."""
    error = np.abs(r.hand - r.oracle)
    lines = []
    for axis, n in enumerate(r.shape):
        if n < 2:
            continue
        over = tuple(a for a in range(error.ndim) if a != axis + 1)
        right = np.flatnonzero(~wrong.any(axis=over))
        if 0 < len(right) < n:
            shown = ", ".join(map(str, right[:8])) + ", ..." * (len(right) > 8)
            lines.append(f"axis {axis}: right at {shown}, wrong at the other {n - len(right)} of {n}")
            continue
        mean = error.mean(axis=over)
        if mean.max() > 4 * mean.min():
            lines.append(f"axis {axis}: the error is largest at {mean.argmax()} and smallest at {mean.argmin()} of {n}")
    return lines


def _worst(r: Residual) -> list[str]:
    error = np.abs(r.hand - r.oracle)
    places = np.argsort(error, axis=None)[::-1][:WORST]
    shown = []
    for s, *index in (np.unravel_index(p, error.shape) for p in places):
        at = f"index {show_index(index)}, " if index else ""
        shown.append(f"{at}sample {s}: {show(r.hand[s, *index])} for {show(r.oracle[s, *index])}")
    return ["worst: " + "; ".join(shown)]
