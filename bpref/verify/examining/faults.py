"""Who is at fault when something was raised: the function, its backward, the call, or bpref itself?"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.verify.examining.program import pulled, swept
from bpref.verify.examining.refusals import (
    CannotCheck,
    NeedsNumbers,
    Refused,
    arguments_in_words,
    in_words,
    require_accepted,
)
from bpref.verify.examining.subject import INSIDE, Subject
from bpref.verify.naming import describe, first_line
from bpref.verify.numbers import points
from bpref.verify.oracle import Arrays


def explained(subject: Subject, error: Exception, x64: AbstractContextManager) -> Exception:
    """What to raise in place of `error`, which came up when the subject was traced: stage by stage, whose is it?"""
    specs = subject.specs
    if isinstance(error, CannotCheck | NeedsNumbers | Refused):
        return error
    with x64:
        try:
            jax.eval_shape(subject.plain, specs)
        except Exception as cause:
            return _untraceable(subject, cause)
        try:
            jax.eval_shape(subject.primal, specs)
        except Exception as cause:
            if _outputs_on_arrays(subject.primal, subject) is not None:
                return NeedsNumbers("JAX cannot trace the reference: it was called as a host function, with arrays")
            return CannotCheck(blamed(subject, "the reference", cause))
        mine, other = (in_words(jax.eval_shape(f, specs)) for f in (subject.plain, subject.primal))
        if mine != other:
            return CannotCheck(f"the reference returns {other}, {subject.name} returns {mine}; expected the same")
        try:
            require_accepted(subject, nullcontext())
            jax.eval_shape(lambda leaves: swept(subject.sweep, leaves), specs)
        except Refused as refusal:
            return refusal
        except Exception as cause:
            return _unswept(subject, cause)
        try:
            jax.eval_shape(lambda leaves: pulled(subject.primal, leaves), specs)
        except Exception as cause:
            return NeedsNumbers(f"its primal cannot be differentiated by JAX ({first_line(cause)})")
    error.add_note(
        f"bpref: {subject.name} and its backward could be traced; this is a fault of bpref, please report it"
    )
    return error


def _untraceable(subject: Subject, cause: Exception) -> Exception:
    """It cannot be traced. Called with arrays it may work: then it is a host function, or it reads traced values."""
    try:
        with np.errstate(all="ignore"):
            outputs = jax.tree.leaves(_on_some_arrays(subject, subject.plain))
    except Exception as error:
        return CannotCheck(blamed(subject, subject.name, error))
    odd = next((v for v in outputs if not _is_arraylike(v)), None)
    if odd is not None or not outputs:
        came = "nothing" if not outputs else describe(odd)
        return CannotCheck(f"{subject.name} returned {came}, expected an array or a pytree of arrays")
    if subject.form == INSIDE:
        return CannotCheck(
            f"{subject.name} works on arrays but cannot be traced by JAX, since it reads their values "
            f"({first_line(cause)}): give its backward= to have it checked as a host function"
        )
    return NeedsNumbers("JAX cannot trace it: it was called as a host function, with arrays")


def _unswept(subject: Subject, cause: Exception) -> Exception:
    """Its value can be traced, and its sweep cannot: by the forward rule's fault or the backward's, or by none."""
    stage = f"the backward of {subject.name}"
    try:
        jax.eval_shape(lambda leaves: subject.sweep(leaves)[0], subject.specs)
    except Exception:
        stage = f"the forward rule of {subject.name}"
    # With arrays it may fail as well: what it raised first says why.
    if subject.form != INSIDE and (takes(subject, on_device) or takes(subject, copies)):
        return NeedsNumbers(f"JAX cannot trace {stage}: it was called as a host function, with arrays")
    return CannotCheck(blamed(subject, stage, cause))


def copies(values: Arrays) -> Arrays:
    """Arrays that a function may write into."""
    return [np.array(v) if isinstance(v, np.ndarray) else v for v in values]


def on_device(values: Arrays) -> list:
    """Copies for a function of JAX, which may index an array with a traced number, or update it."""
    return [jnp.array(v) if isinstance(v, np.ndarray) else v for v in values]


def takes(subject: Subject, given: Callable[[Arrays], list]) -> bool:
    """Whether its forward and backward can be called with arrays as `given` makes them: NumPy's, or JAX's."""

    def swept_once(leaves: Arrays) -> None:
        y, pull = subject.sweep(given(leaves))
        flat, tree = jax.tree.flatten(y)
        pull(jax.tree.unflatten(tree, given([np.ones(np.shape(v), np.asarray(v).dtype) for v in flat])))

    try:
        with np.errstate(all="ignore"):
            _on_some_arrays(subject, swept_once)
    except Exception:
        return False
    return True


def _on_some_arrays(subject: Subject, f: Callable[[Arrays], PyTree]) -> PyTree:
    """What it returns for the arguments, specifications filled so that it is defined there; raises what it raises."""
    smallest, first = points.smallest_axis(subject.leaves), None
    for attempt in range(len(points.FILLS)):
        rng = points.generator(0, 14, attempt)
        filled = [points.fill(v, rng, attempt, smallest) if points.is_specification(v) else v for v in subject.leaves]
        try:
            return f(copies(filled))
        except (ArithmeticError, ValueError) as error:  # where it is not defined
            first = first or error
    assert first is not None
    raise first


def _outputs_on_arrays(f: Callable, subject: Subject) -> list[ArrayLike] | None:
    """What it returns for arrays; None where it raises, or where that is no arrays."""
    try:
        outputs = jax.tree.leaves(_on_some_arrays(subject, f))
    except Exception:
        return None
    return outputs if outputs and all(map(_is_arraylike, outputs)) else None


def _is_arraylike(v: object) -> bool:
    try:
        return np.issubdtype(np.asarray(v).dtype, np.number) or np.asarray(v).dtype == bool
    except Exception:
        return False


def blamed(subject: Subject, what: str, error: Exception) -> str:
    called = ", ".join(arguments_in_words(subject))
    return f"{what} raised {type(error).__name__}: {first_line(error)} (called with {called})"
