"""A number, recognised: a size in sight, a small fraction, or a constant of the trade."""

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations

import numpy as np

from bpref.verify.diagnosis.residual import Residual, cotangents_of_outputs

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
