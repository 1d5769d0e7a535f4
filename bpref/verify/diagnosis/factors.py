"""The whole cotangent is not finite, zero, negated, conjugated, or off by a constant factor."""

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np

from bpref.verify.diagnosis.constants import arrays_in_sight, is_near, names_of_number
from bpref.verify.diagnosis.residual import (
    FREE_FIT,
    Diagnosis,
    Residual,
    agree,
    count_points,
    informative,
    scale_of,
)


def nonfinite(r: Residual) -> Diagnosis | None:
    """NaN or infinity in the hand's array where the oracle's is finite."""
    bad = ~np.isfinite(r.hand) & np.isfinite(r.oracle)
    if not bad.any():
        return None
    s, *index = np.argwhere(bad)[0]
    what = "NaN" if np.isnan(r.hand[s, *index]) else "infinite"
    at = f" at index {show_index(index)}" if index else ""
    return Diagnosis(
        "nonfinite",
        f"{int(bad.sum())} of {bad.size} values are NaN or infinite where the reference is finite: "
        f"{what}{at}, sample {s}, the reference being {show(r.oracle[s, *index])}",
    )


def zero(r: Residual) -> Diagnosis | None:
    if not r.oracle.any() or np.any(np.abs(r.hand) > r.round_off * scale_of(r.oracle)):
        return None
    zero = "zero to round-off" if r.hand.any() else "zero"
    return Diagnosis("zero", f"{zero} everywhere, where the reference is up to {show(np.max(np.abs(r.oracle)))}")


def sign(r: Residual) -> Diagnosis | None:
    """The negative of the oracle, or its complex conjugate."""
    if informative(r.oracle).sum() < 2:
        return None
    if agree(r, -r.oracle):
        return Diagnosis("sign", "-1 x the reference, every element: the sign is wrong")
    if np.iscomplexobj(r.oracle) and agree(r, r.oracle.conj()):
        return Diagnosis("sign", "the complex conjugate of the reference: the imaginary part has the wrong sign")
    if np.iscomplexobj(r.oracle) and agree(r, -r.oracle.conj()):
        return Diagnosis("sign", "minus the complex conjugate of the reference: the real part has the wrong sign")
    return None


def part_of_complex(r: Residual) -> Diagnosis | None:
    """One of the two parts of a complex number is forgotten, or a real argument has a complex cotangent."""
    if np.iscomplexobj(r.hand) and not np.iscomplexobj(r.oracle):
        if agree(r, r.oracle, value=np.real(r.hand)):
            return Diagnosis("dtype", "complex, where the argument is real; its real part is the reference")
        return None
    if not np.iscomplexobj(r.oracle) or informative(r.oracle).sum() < 2:
        return None
    if agree(r, np.real(r.oracle).astype(r.oracle.dtype), r.oracle):
        return Diagnosis("missing_term", "the real part of the reference: the imaginary part is missing")
    if agree(r, 1j * np.imag(r.oracle), r.oracle):
        return Diagnosis("missing_term", "the imaginary part of the reference: the real part is missing")
    return None


def factor(r: Residual) -> Diagnosis | None:
    """A constant times the oracle; `mean_for_sum` where it is 1/N of an axis that was summed over."""
    c = constant_ratio(r.hand, r.oracle)
    if c is None or c == 0 or not agree(r, c * r.oracle) or abs(c - 1) < FREE_FIT * r.round_off:
        return None
    known = names_of_number(r, c)
    if count_points(r, r.oracle) < 2 and (not known or informative(r.oracle).sum() < 3):
        return None
    times = f"{show(c)} x the reference, every element"
    mean = _mean_over(r, c)
    if mean is not None:
        constants = [f"a constant factor {name}" for name in known if " of " not in name]
        return Diagnosis("mean_for_sum", ", or ".join([f"{times}: a mean in place of the sum over {mean}", *constants]))
    what = "a factor" if known and " of " in known[0] else "a constant factor"
    return Diagnosis("factor", f"{times}: {' '.join([what, ', or '.join(known)]).rstrip()}")


def constant_ratio(hand: np.ndarray, oracle: np.ndarray) -> complex | None:
    """The number that takes `oracle` to `hand` best; None where the oracle is zero."""
    power = np.vdot(oracle, oracle).real
    if power == 0:
        return None
    c = np.vdot(oracle, hand) / power
    return c if np.iscomplexobj(c) and abs(c.imag) > 1e-12 * abs(c) else float(np.real(c))


def _mean_over(r: Residual, c: complex) -> str | None:
    """The axes over which a mean was taken: c is 1/N of axes of another array that this argument does not have.

    An axis of 2 is left out: 1/2 is likelier to be the half that is forgotten or too many.
    """
    for name, v in list(arrays_in_sight(r).items())[:0:-1]:
        shape, own, lacking = v.shape[1:], Counter(r.shape), []
        for axis in reversed(range(len(shape))):
            if own[shape[axis]]:
                own[shape[axis]] -= 1
            else:
                lacking.insert(0, axis)
        for count in range(1, len(lacking) + 1):
            for axes in combinations(lacking, count):
                n = math.prod(shape[a] for a in axes)
                if n > 2 and is_near(r, c, 1 / n):
                    return f"{name_axes(axes)} of {name} ({n} terms)"
    return None


def name_axes(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def show(c: Any) -> str:
    """A number in four digits, or in as many as tell it from 1."""
    if np.iscomplexobj(c) and np.imag(c):
        return f"({np.real(c):.4g}{np.imag(c):+.4g}i)"
    value = float(np.real(c))
    return f"{value:.8g}" if 0 < abs(value - 1) < 1e-2 else f"{value:#.4g}".rstrip(".")


def show_index(index) -> str:
    return "(" + ", ".join(str(int(i)) for i in index) + ("," if len(index) == 1 else "") + ")"
