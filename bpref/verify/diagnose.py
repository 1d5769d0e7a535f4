"""What is wrong with a cotangent, read off its arrays: a named kind of mistake, or `unexplained`.

A diagnosis is given only where it accounts for the whole residual, to round-off, at every sample; samples come from
several points and cotangents, so that what happens to fit at one of them does not pass for an explanation.
"""

from collections.abc import Callable

import numpy as np

from bpref.verify.diagnosis.clipped import clipped
from bpref.verify.diagnosis.factors import factor, nonfinite, part_of_complex, sign, zero
from bpref.verify.diagnosis.moved import shifted, swapped, transposed
from bpref.verify.diagnosis.parts import guessed_term, known_term
from bpref.verify.diagnosis.pattern import unexplained
from bpref.verify.diagnosis.places import sparse, sparse_by_name
from bpref.verify.diagnosis.residual import Diagnosis, Residual
from bpref.verify.diagnosis.sums import missing_sum, of_another_shape

__all__ = ["Diagnosis", "Residual", "diagnose", "diagnose_shape"]

HYPOTHESES: tuple[Callable[[Residual], Diagnosis | None], ...] = (
    zero,
    sign,
    part_of_complex,
    factor,
    transposed,
    swapped,
    missing_sum,
    shifted,
    clipped,
    sparse_by_name,
    known_term,
    sparse,
    guessed_term,
)
"""From the most specific to the one with the most freedom: the first that explains everything is the diagnosis."""


def diagnose(residual: Residual) -> Diagnosis:
    """The diagnosis of a cotangent that has the argument's shape and is known to be wrong."""
    found = nonfinite(residual)
    if found is not None:
        return found
    if residual.oracle.size == 0 or not (np.isfinite(residual.oracle).all() and np.isfinite(residual.hand).all()):
        return unexplained(residual)
    with np.errstate(all="ignore"):
        for hypothesis in HYPOTHESES:
            found = hypothesis(residual)
            if found is not None:
                return found
        return unexplained(residual)


def diagnose_shape(residual: Residual) -> Diagnosis:
    """The diagnosis of a cotangent whose shape, `hand.shape[1:]`, is not the argument's."""
    with np.errstate(all="ignore"):
        return of_another_shape(residual)
