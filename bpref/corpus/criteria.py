"""Acceptance criteria that test suites and benchmarks use, by name: `(got, expected) -> bool`, both NumPy arrays."""

import ast
import inspect
from collections.abc import Callable

import numpy as np

from bpref.nearest import require_known

Criterion = Callable[[np.ndarray, np.ndarray], bool]


def allclose(rtol: float = 1e-5, atol: float = 1e-8) -> Criterion:
    """Every element within `atol + rtol |expected|`, as NumPy and PyTorch have it."""
    return fraction(1.0, rtol, atol)


def fraction(least: float, rtol: float = 1e-2, atol: float = 1e-2) -> Criterion:
    """At least this part of the elements within `atol + rtol |expected|`."""
    return lambda got, expected: bool(np.mean(np.abs(got - expected) <= atol + rtol * np.abs(expected)) >= least)


def cosine(least: float) -> Criterion:
    """The cosine of the angle between the arrays is at least this."""

    def is_met(got: np.ndarray, expected: np.ndarray) -> bool:
        lengths = np.linalg.norm(got) * np.linalg.norm(expected)
        return bool(np.vdot(got, expected).real >= least * lengths)

    return is_met


def max_abs(most: float) -> Criterion:
    """No element is further off than this."""
    return fraction(1.0, 0.0, most)


KNOWN: dict[str, Callable[..., Criterion]] = {f.__name__: f for f in (allclose, fraction, cosine, max_abs)}


def criterion_named(text: str) -> Criterion:
    """The criterion that a call such as `allclose(rtol=1e-2, atol=1e-2)` names.

    Raises:
      ValueError: it is no such call; the message says what there is.
    """
    try:
        call: ast.expr | None = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        call = None
    if isinstance(call, ast.Name):
        call = ast.Call(call, [], [])
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        some = ", ".join(f"{name}{_shown(f)}" for name, f in KNOWN.items())
        raise ValueError(f"{text!r} is no criterion; expected {some}, or a function (got, expected) -> bool")
    name = call.func.id
    require_known("criterion", name, KNOWN)
    try:
        given = [_number(v) for v in call.args], {str(k.arg): _number(k.value) for k in call.keywords}
        bound = inspect.signature(KNOWN[name]).bind(*given[0], **given[1])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{text!r}: expected numbers, {name}{_shown(KNOWN[name])}: {error}") from error
    for key, value in bound.arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise ValueError(f"{text!r}: expected a number for {key}, got {value!r}")
        low, high = (-1, 1) if name == "cosine" else (0, 1 if key == "least" else np.inf)
        if not low <= value <= high:
            fitting = "0 or more" if high == np.inf else f"{low} to {high}"
            raise ValueError(f"{text!r}: {key} is {value:g}, expected {fitting}")
    return KNOWN[name](*given[0], **given[1])


def _number(v: ast.expr) -> object:
    try:
        return ast.literal_eval(v)
    except ValueError as error:
        raise ValueError(f"{ast.unparse(v)} is none") from error


def _shown(f: Callable) -> str:
    parameters = inspect.signature(f).parameters.values()
    return f"({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default:g}' for p in parameters)})"
