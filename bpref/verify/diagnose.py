"""What is wrong with a cotangent, read off its arrays: a named kind of mistake, or `unexplained`.

A diagnosis is given only where it accounts for the whole residual, to round-off, at every sample; samples come from
several points and cotangents, so that what happens to fit at one of them does not pass for an explanation.
"""

from collections.abc import Callable

import numpy as np

from bpref.verify.diagnosis.clipped import clipped
from bpref.verify.diagnosis.factors import factor, nonfinite, part_of_complex, sign, zero
from bpref.verify.diagnosis.incoming import another_dy, ignores_dy
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
    ignores_dy,
    factor,
    transposed,
    swapped,
    missing_sum,
    shifted,
    clipped,
    sparse_by_name,
    known_term,
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
    first = next((line.strip() for line in str(failed[0]).splitlines() if line.strip()), "without a message")
    note = f"the search for a cause failed: {type(failed[0]).__name__}: {first}"
    return found._replace(detail=f"{found.detail}\n{note}")
