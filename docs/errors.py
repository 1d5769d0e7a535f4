"""How the error of each rule's backward grows with the size of its input: measured once, and drawn on the rule's page.

`python -m docs.errors [RULE ...]` measures, and writes docs/errors.json: in float32, against the truth in float64 of
the same rounded inputs, beside autodiff of the naive form.
"""

import itertools
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from bpref.formulas.matrices import (
    dominant_diagonal,
    positive_definite,
    spread_eigenvalues,
    spread_singular_values,
)
from bpref.rule import Case, Real, Rule
from bpref.verify.examining.prepare import Prepared
from bpref.verify.numbers.measure import rounded, summarise
from bpref.verify.rules.catalogue import prepare_example, rows_of, sizes_of
from bpref.verify.rules.draw import Example, draw, is_spec
from docs import by_rule

FILE = Path(__file__).parent / "errors.json"

SIZES = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)
"""What real inputs are multiplied by, those that are drawn near 1."""

OF_ANY_SIZE = (None, spread_singular_values, spread_eigenvalues, positive_definite, dominant_diagonal)
"""What a matrix that is multiplied by a positive number still is."""

Pair = tuple[float, float]
"""Errors by hand and by autodiff: the 99th percentile of all cotangents' elements, in units of the last place."""


def measured(rule: Rule, seed: int = 0) -> list[Pair | None]:
    """The errors at each of SIZES in the rule's first case; `None` where the function has no finite value there."""
    case = rule.cases[0]
    example = draw(rule, case, sizes_of(case), seed)
    ready = prepare_example(example, ("float32",))
    return [_at(example._replace(x=_scaled(case, example.x, size)), ready) for size in SIZES]


def can_be_scaled(case: Case) -> bool:
    """Whether there is a real input of any size in it: none that is a probability, or of length 1."""
    return any(map(_is_free, jax.tree.leaves(case.x, is_leaf=is_spec)))


def _is_free(spec: object) -> bool:
    return isinstance(spec, Real) and spec.domain in OF_ANY_SIZE and not spec.simplex


def _scaled(case: Case, x: PyTree, size: float) -> PyTree:
    def one(spec: object, v: np.ndarray) -> np.ndarray:
        return np.asarray(np.float32(v * size), v.dtype) if _is_free(spec) else v

    return jax.tree.map(one, case.x, x, is_leaf=is_spec)


def _at(example: Example, ready: Prepared) -> Pair | None:
    given = jax.tree.map(jnp.asarray, rounded((example.params, example.x), jnp.float32))
    if not any(map(_has_value, jax.tree.leaves(jax.jit(lambda *of: example.layer.forward(*of)[0])(*given)))):
        return None
    with np.errstate(all="ignore"):
        seen = itertools.chain.from_iterable(rows_of([example], ready).values())
        rows = [row for row in seen if not row.where.startswith("y")]
        defined = [row for row in rows if row.fault is None or row.fault.kind != "undefined"]
        if not defined:
            return None
        by_hand, by_autodiff = (np.concatenate(v) for v in zip(*((r.hand, r.autodiff) for r in defined), strict=True))
        pair = float(summarise(by_hand).p99), float(summarise(by_autodiff).p99)
    return pair if np.isfinite(pair).all() else None


def _has_value(v: Array) -> bool:
    return bool(jnp.any(jnp.isfinite(v)))


@cache
def of_all() -> dict[str, list[Pair | None]]:
    """What was measured, by rule."""
    return by_rule.read(FILE)


def found(rule: Rule) -> list[Pair | None] | None:
    """What is kept of a rule: its errors in three digits, if its first case can be scaled."""
    if not can_be_scaled(rule.cases[0]):
        return None
    return [pair and (float(f"{pair[0]:.3g}"), float(f"{pair[1]:.3g}")) for pair in measured(rule)]


if __name__ == "__main__":
    sys.exit(by_rule.main(FILE, found, "python -m docs.errors", "Measure errors at growing inputs."))
