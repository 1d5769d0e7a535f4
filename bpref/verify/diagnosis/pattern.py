"""What can be seen of a residual that nothing explains."""

import numpy as np

from bpref.verify.diagnosis.factors import show, show_index
from bpref.verify.diagnosis.places import right_region
from bpref.verify.diagnosis.residual import (
    Diagnosis,
    Residual,
    cotangents_of_outputs,
    informative,
    is_floating,
    like,
    scale_of,
    wrong_places,
)

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
