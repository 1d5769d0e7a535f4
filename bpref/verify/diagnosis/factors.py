"""The whole cotangent is not finite, zero, negated, conjugated, or off by a constant factor, which is named."""

import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations

import numpy as np

from bpref.verify.diagnosis.residual import (
    FREE_FIT,
    Diagnosis,
    Residual,
    agree,
    cotangents_of_outputs,
    count_points,
    informative,
    scale_of,
)

KNOWN = {
    "sqrt(2)": math.sqrt(2),
    "1/sqrt(2)": math.sqrt(0.5),
    "sqrt(3)": math.sqrt(3),
    "pi": math.pi,
    "2 pi": 2 * math.pi,
    "1/pi": 1 / math.pi,
    "2/pi": 2 / math.pi,
    "sqrt(pi)": math.sqrt(math.pi),
    "sqrt(pi)/2": math.sqrt(math.pi) / 2,
    "2/sqrt(pi)": 2 / math.sqrt(math.pi),
    "1/sqrt(pi)": 1 / math.sqrt(math.pi),
    "sqrt(2/pi)": math.sqrt(2 / math.pi),
    "sqrt(2 pi)": math.sqrt(2 * math.pi),
    "1/sqrt(2 pi)": 1 / math.sqrt(2 * math.pi),
    "ln 2": math.log(2),
    "1/ln 2": 1 / math.log(2),
    "ln 10": math.log(10),
    "1/ln 10": 1 / math.log(10),
    "e": math.e,
}

LARGEST_OF_A_FRACTION = 12
"""A fraction of larger numbers is no likely mistake."""

LARGEST_OF_A_PLAIN_FRACTION = 4
"""A fraction of numbers up to this is a likely mistake also where an axis has that size."""


def is_near(r: Residual, c: complex, value: float) -> bool:
    """Whether a fitted number is `value`, to round-off."""
    return abs(c - value) <= max(10 * r.round_off, 1e-14) * abs(value)


def is_small_fraction(r: Residual, c: complex) -> bool:
    return small_fraction(r, c) is not None


def small_fraction(r: Residual, c: complex) -> Fraction | None:
    """`c` as a fraction of numbers up to 12, where it is one."""
    real = np.real(c)
    if abs(np.imag(c)) > r.round_off * abs(c):
        return None
    near = Fraction(float(real)).limit_denominator(LARGEST_OF_A_FRACTION)
    if near == 0 or abs(near.numerator) > LARGEST_OF_A_FRACTION or not is_near(r, real, float(near)):
        return None
    return near


def name_number(r: Residual, c: complex) -> str | None:
    """What a number may be, in words, such as `1/2, or 1 / the size of axis 0 of x`; None where it is nothing known."""
    return ", or ".join(names_of_number(r, c)) or None


def names_of_number(r: Residual, c: complex) -> list[str]:
    """Everything that a number may be: the constants first, then sizes in sight, else what is made of them.

    Of a fraction of larger numbers that is also made of a size, the size is the likely source, and is named alone.
    """
    if abs(np.imag(c)) > r.round_off * abs(c):
        return [text] if (text := {1j: "i", -1j: "-i"}.get(complex(np.round(c, 9)))) else []
    real = float(np.real(c))
    sign, size = ("-" if real < 0 else ""), abs(real)
    fraction = small_fraction(r, size)
    is_plain = fraction is not None and max(fraction.numerator, fraction.denominator) <= LARGEST_OF_A_PLAIN_FRACTION
    is_whole = fraction is not None and 1 in (fraction.numerator, fraction.denominator)
    constants = [str(fraction)] if is_plain else [text for text, value in KNOWN.items() if is_near(r, size, value)]
    sizes = dict(_sizes(r))

    def fitting(numbers: Iterator[tuple[float, str]]) -> list[str]:
        return [text for value, text in numbers if is_near(r, size, value)] if fraction != 1 else []

    made = fitting(_plain_numbers(sizes)) or ([] if is_whole else fitting(_made_of(sizes)))
    if not made and fraction is not None:
        constants = [str(fraction)]
    return [sign + text for text in constants] + [f"{'minus ' if sign else ''}{text}" for text in made]


def _plain_numbers(sizes: dict[int, str]) -> Iterator[tuple[float, str]]:
    for n, text in sizes.items():
        yield n, text
        yield 1 / n, f"1 / {text}"


def _made_of(sizes: dict[int, str]) -> Iterator[tuple[float, str]]:
    """Numbers that a derivation gets wrong, made from sizes; of a small integer none of them is the likely source."""
    for n, text in sizes.items():
        yield math.sqrt(n), f"the square root of {text}"
        yield 1 / math.sqrt(n), f"1 / the square root of {text}"
        if n == 2:
            continue
        yield n / (n - 1), f"n / (n - 1), n = {n} being {text}"
        yield (n - 1) / n, f"(n - 1) / n, n = {n} being {text}"
        yield n - 1, f"n - 1, n = {n} being {text}"
        yield 1 / (n - 1), f"1 / (n - 1), n = {n} being {text}"
        yield 2 / n, f"2 / n, n = {n} being {text}"
        yield n / 2, f"n / 2, n = {n} being {text}"
    of_axes = [(n, text) for n, text in sizes.items() if "axis" in text]
    for (n, a), (m, b) in combinations(of_axes, 2):
        yield n / m, f"{n}/{m}, {a} over {b}"
        yield m / n, f"{m}/{n}, {b} over {a}"


def _sizes(r: Residual) -> Iterator[tuple[int, str]]:
    """Every size above 1 with its name in the first array that has it; the numbers of elements after the axes."""
    seen: set[int] = {0, 1}
    arrays = [(name, v.shape[1:]) for name, v in arrays_in_sight(r).items()]
    for name, shape in arrays:
        for n in dict.fromkeys(shape):
            if n not in seen:
                seen.add(n)
                axes = [str(axis) for axis, m in enumerate(shape) if m == n]
                yield n, f"the size of axis {' or '.join(axes)} of {name}"
    for name, shape in arrays:
        for count in range(2, len(shape) + 1):
            for axes in combinations(range(len(shape)), count):
                n = math.prod(shape[a] for a in axes)
                if n not in seen:
                    seen.add(n)
                    which = "" if count == len(shape) else f" in axes {', '.join(map(str, axes))}"
                    yield n, f"the number of elements of {name}{which}"


def arrays_in_sight(r: Residual) -> dict[str, np.ndarray]:
    """All arrays with a name, this argument first."""
    return {r.where: r.oracle} | dict(r.args) | cotangents_of_outputs(r)


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


def show(c: complex | np.ndarray) -> str:
    """A number in four digits, or in as many as tell it from 1."""
    if np.iscomplexobj(c) and np.imag(c):
        return f"({np.real(c):.4g}{np.imag(c):+.4g}i)"
    value = float(np.real(c))
    return f"{value:.8g}" if 0 < abs(value - 1) < 1e-2 else f"{value:#.4g}".rstrip(".")


def show_index(index) -> str:
    return "(" + ", ".join(str(int(i)) for i in index) + ("," if len(index) == 1 else "") + ")"
