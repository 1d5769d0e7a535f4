"""What is refused, before anything is compared: a subject that cannot be checked, or not by autodiff."""

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

import jax
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from bpref.programs import Typed
from bpref.verify.examining.program import pulled
from bpref.verify.examining.subject import INSIDE, OWN_PRIMAL, RULE, Subject
from bpref.verify.naming import describe
from bpref.verify.oracle import is_differentiable
from bpref.verify.programs.strip import has_custom_rules, is_opaque, narrow_outputs_of_opaque, with_own_rule
from bpref.verify.report import WRONG, Finding, Report, Verdict


class CannotCheck(ValueError):
    """Nothing could be checked; the message says in one line who is at fault: the function, its backward, the call."""


class Refused(Exception):
    """JAX does not take the rule: what its forward or backward returns has not the form that it asks for."""


class NeedsNumbers(Exception):
    """JAX cannot trace or cannot differentiate it: the oracle has to be numerical. The message says why."""


def refuse_eager(eager: bool, name: str, why: str) -> None:
    """Raise `CannotCheck` where `eager` is asked for of a function that is not under jit anyway."""
    if eager:
        raise CannotCheck(f"check: eager=True compares a function under jit with itself outside of it; {name} is {why}")


def require_arrays(subject: Subject) -> None:
    """Raise unless an argument holds floating-point numbers in an array."""
    if not any(is_differentiable(v) for v in subject.leaves):
        came = ", ".join(arguments_in_words(subject)) or "no arrays at all"
        raise CannotCheck(
            f"{subject.name}: no argument is an array of floating-point numbers, so it has no gradient; the call has "
            f"{came} (Python numbers are held fixed: pass np.float32(...) or an array)"
        )


def require_outputs(subject: Subject, outputs: Sequence[Typed]) -> None:
    """Raise unless an output has a cotangent."""
    if not outputs:
        raise CannotCheck(f"{subject.name}: it returns no floating-point numbers, so there is nothing to differentiate")


def require_checkable(
    subject: Subject, program: ClosedJaxpr, outputs: Sequence[Typed], well_formed: bool, x64: AbstractContextManager
) -> None:
    """Raise unless the traced program of a subject can be held against an oracle.

    Args:
      subject: what is checked.
      program: its program in float64.
      outputs: its outputs that have a cotangent.
      well_formed: whether its cotangents have the form of its arguments.
      x64: a context in which its arguments stay what they are.

    Raises:
      CannotCheck: the reference does not fit, a rule closes over a traced value, or nothing is derived by hand.
      Refused: JAX does not take its rule.
      NeedsNumbers: JAX cannot differentiate its primal.
    """
    _require_fitting_reference(subject, outputs)
    _require_no_leak(subject, program, len(subject.leaves) + len(outputs))
    if subject.form == RULE and well_formed:
        require_accepted(subject, x64)
    _require_rule(subject)
    _require_differentiable_primal(subject, program)


REFUSAL = re.compile(
    "Custom VJP fwd rule|Custom VJP bwd rule must produce an output with the same container|"
    "Custom VJP bwd rule produced a SymbolicZero|Custom JVP rule|.* is not a valid JAX type",
    re.DOTALL,
)
"""How JAX begins its complaints about the form of what a rule returns; not about a shape, which is looked at here."""


def require_accepted(subject: Subject, x64: AbstractContextManager) -> None:
    """Raise `Refused` if JAX, which applies the rule under `jit`, does not take what it returns."""
    if subject.form not in (RULE, INSIDE):
        return
    with x64:
        try:
            jax.eval_shape(lambda leaves: pulled(jax.jit(subject.plain), leaves), subject.specs)
        except Exception as error:  # what it says otherwise, the subject's own sweep has said or will say
            if REFUSAL.match(str(error)):
                raise Refused(f"jax.grad refuses it: {_joined(error)}") from error


def refused(subject: Subject, key: int, why: str) -> Report:
    """The report of a rule that JAX does not take."""
    names = [name for name, v in zip(subject.names, subject.leaves, strict=True) if is_differentiable(v)]
    return Report(
        subject.name,
        "JAX, which does not take the rule",
        key,
        tuple(Verdict(name, WRONG, why, math.inf) for name in names),
        tuple(Finding(name, "structure", why) for name in names),
    )


def _require_fitting_reference(subject: Subject, outputs: Sequence[Typed]) -> None:
    """Raise unless the reference has as many outputs with a cotangent as the function."""
    if subject.oracle == OWN_PRIMAL:
        return
    other = jax.eval_shape(subject.primal, subject.specs)
    if sum(map(is_differentiable, jax.tree.leaves(other))) != len(outputs):
        mine = jax.eval_shape(subject.plain, subject.specs)
        raise CannotCheck(
            f"the reference returns {in_words(other)}, {subject.name} returns {in_words(mine)}; expected the same"
        )


def _require_rule(subject: Subject) -> None:
    """Raise unless something in it is derived by hand."""
    if subject.form != INSIDE or subject.oracle != OWN_PRIMAL:
        return
    if not has_custom_rules(jax.make_jaxpr(subject.plain)(subject.specs)):
        raise CannotCheck(
            f"{subject.name}: nothing in it is derived by hand: it has no custom_vjp or custom_jvp rule inside, and "
            "the call gives neither backward= nor reference= (a rule that a jax.grad inside it has used up is not seen)"
        )


def _require_no_leak(subject: Subject, program: ClosedJaxpr, inputs: int) -> None:
    """Raise if a rule closes over a value that is traced around it: to JAX it is one more of the program's inputs."""
    if len(program.in_avals) > inputs:
        raise CannotCheck(
            f"{subject.name}: a rule in it closes over an array of shape {program.in_avals[0].shape}, an argument or "
            "what was made of one, and JAX gives no derivative with respect to that: make it an argument of the rule"
        )


def _require_differentiable_primal(subject: Subject, program: ClosedJaxpr) -> None:
    """Raise `NeedsNumbers` for a kernel or a callback, which takes the dtypes that it takes.

    Without a reference, a rule over one that is left in the primal would be its own oracle.
    """
    if subject.oracle == OWN_PRIMAL and with_own_rule(program):  # in the hand's backward alone it may be
        owned = with_own_rule(jax.make_jaxpr(subject.primal)(subject.specs))
        if owned:
            raise NeedsNumbers(f"the primitive {owned} in it has a derivative rule of its own, and autodiff uses that")
    opaque = is_opaque(program)
    if subject.oracle != OWN_PRIMAL and opaque:
        raise NeedsNumbers("there is a kernel or callback in it: it was called as a host function, with arrays")
    if subject.oracle == OWN_PRIMAL and has_custom_rules(jax.make_jaxpr(subject.primal)(subject.specs)):
        what = (
            "a kernel or callback under its rule, which JAX" if opaque else "a rule that stays in its primal: autodiff"
        )
        raise NeedsNumbers(f"{what} cannot differentiate")
    if opaque and narrow_outputs_of_opaque(program):
        raise NeedsNumbers("a kernel or callback in its rule that does not compute in float64")


def _joined(error: Exception) -> str:
    return " ".join(str(error).split("\n----")[0].split())


def arguments_in_words(subject: Subject) -> list[str]:
    """Each argument by its name, dtype and shape."""
    return [f"{name}: {describe(v)}" for name, v in zip(subject.names, subject.leaves, strict=True)]


def in_words(y: PyTree) -> str:
    """The arrays of a tree by dtype and shape."""
    return str(jax.tree.map(describe, y)).replace("'", "")
