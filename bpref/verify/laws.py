"""The laws that a backward obeys besides being right: linear in the cotangent, and the same however it is called."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from bpref.verify.examine import Point
from bpref.verify.measure import relative_error
from bpref.verify.program import Program, Seen, run_eagerly
from bpref.verify.report import Finding
from bpref.verify.subject import Subject

SLACK = 1e-7
"""How far the same derivation may be from itself: added up in another order, it still is the same."""


def linearity(seen: Seen, rounding: Callable[[], Mapping[str, np.ndarray]]) -> list[Finding]:
    """b(2u - 3v) = 2 b(u) - 3 b(v) and b(0) = 0, at every point of a stacked run.

    `rounding` gives what round-off may make of each value, a relative error for each sample; it is called only where
    something looks wrong.
    """
    findings = []
    for name, combined in seen.combined.items():
        u, v = seen.hand[name][0::2], seen.hand[name][1::2]
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs((2 * u - 3 * v) - combined).reshape(len(combined), -1).max(axis=1, initial=0.0)
            # The terms may cancel: the sum is held against their size, not against its own.
            scale = np.maximum(*(np.abs(w).reshape(len(w), -1).max(axis=1, initial=0.0) for w in (2 * u, 3 * v)))
        error = np.where(apart == 0, 0.0, apart / np.maximum(scale, np.finfo(float).tiny))
        error = np.where(np.isfinite(scale), error, 0.0)
        if not np.all(error <= SLACK) and name in rounding():
            of_points = rounding()[name].reshape(len(error), -1).max(axis=1)
            error = np.where(error <= np.maximum(SLACK, of_points), 0.0, error)
        if not np.all(error <= SLACK):
            worst = float(np.max(error))
            findings.append(Finding(name, "nonlinear", f"b(2u - 3v) is off 2b(u) - 3b(v) by {worst:.1e}", worst))
        elif np.any(np.isfinite(seen.zero[name]) & (seen.zero[name] != 0)):
            findings.append(Finding(name, "nonlinear", "b(0) is not 0"))
    return findings


def form(program: Program, leaves: list[Any], names: tuple[str, ...]) -> list[Finding]:
    """Cotangents have the tree and dtypes of the arguments: what the program, traced in their dtypes, has noted."""
    misfits = [Finding(name, "structure", detail) for name, detail in program.misfits.items()]
    kept = {name: v for name, v in zip(names, leaves, strict=True) if name not in program.misfits}
    dtypes = program.traced.out_info[2]
    return misfits + [
        Finding(name, "dtype", f"its cotangent is {came.dtype}, expected {kept[name].dtype}")
        for name, came in dtypes.items()
        if name in kept and came.dtype != kept[name].dtype
    ]


def purity(subject: Subject, program: Program, point: Point, seen: Seen) -> list[Finding]:
    """The same under vmap, eagerly, and when called again."""
    findings = []
    first = [v[0] for v in point.dys]
    with jax.enable_x64(True):
        eager = run_eagerly(subject, point.leaves, first)
    for name, alone in seen.alone.items():
        for how, other in (("under vmap", seen.hand[name][0]), ("eagerly", eager.get(name))):
            if other is None or other.shape != alone.shape:
                continue
            error = float(relative_error(other, alone)) if np.all(np.isfinite(alone)) else 0.0
            if not error <= SLACK:
                findings.append(
                    Finding(name, "impure", f"called {how} it gives another value, off by {error:.1e}", error)
                )
    return findings
