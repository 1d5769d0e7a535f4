"""Who is at fault when something cannot be checked: the function, its backward, the call, or bpref itself."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from bpref.verify.oracle import is_differentiable, with_cotangents
from bpref.verify.programs.strip import has_custom_rules, is_opaque, narrow_outputs_of_opaque, with_own_rule
from bpref.verify.report import WRONG, Finding, Report, Verdict
from bpref.verify.subject import INSIDE, OWN_PRIMAL, RULE, Subject, describe


class CannotCheck(ValueError):
    """Nothing could be checked; the message says in one line who is at fault: the function, its backward, the call."""


class Refused(Exception):
    """JAX does not take the rule: what its forward or backward returns has not the form that it asks for."""


class NeedsNumbers(Exception):
    """JAX cannot trace or cannot differentiate it: the oracle has to be numerical. The message says why."""


REFUSAL = re.compile(
    "Custom VJP fwd rule|Custom VJP bwd rule must produce an output with the same container|"
    "Custom VJP bwd rule produced a SymbolicZero|Custom JVP rule|.* is not a valid JAX type",
    re.DOTALL,
)
"""How JAX begins its complaints about the form of what a rule returns; not about a shape, which is looked at here."""


def require_accepted(subject: Subject, x64: Any) -> None:
    """Raise `Refused` if JAX, which applies the rule under `jit`, does not take what it returns."""
    if subject.form not in (RULE, INSIDE):
        return
    with x64:
        try:
            jax.eval_shape(lambda leaves: _pulled(jax.jit(subject.plain), leaves), _specs(subject))
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


def refuse_eager(eager: bool, name: str, why: str) -> None:
    """Raise `CannotCheck` where `eager` is asked for of a function that is not under jit anyway."""
    if eager:
        raise CannotCheck(f"check: eager=True compares a function under jit with itself outside of it; {name} is {why}")


def require_arrays(subject: Subject) -> None:
    """Raise unless an argument holds floating-point numbers in an array."""
    if not any(is_differentiable(v) for v in subject.leaves):
        came = ", ".join(_arguments(subject)) or "no arrays at all"
        raise CannotCheck(
            f"{subject.name}: no argument is an array of floating-point numbers, so it has no gradient; the call has "
            f"{came} (Python numbers are held fixed: pass np.float32(...) or an array)"
        )


def require_outputs(subject: Subject, outputs: list[Any]) -> None:
    """Raise unless an output has a cotangent."""
    if not outputs:
        raise CannotCheck(f"{subject.name}: it returns no floating-point numbers, so there is nothing to differentiate")


def require_fitting_reference(subject: Subject, outputs: list[Any]) -> None:
    """Raise unless the reference has as many outputs with a cotangent as the function."""
    if subject.oracle == OWN_PRIMAL:
        return
    other = jax.eval_shape(subject.primal, _specs(subject))
    if sum(map(is_differentiable, jax.tree.leaves(other))) != len(outputs):
        mine = jax.eval_shape(subject.plain, _specs(subject))
        raise CannotCheck(
            f"the reference returns {_shapes(other)}, {subject.name} returns {_shapes(mine)}; expected the same"
        )


def require_rule(subject: Subject) -> None:
    """Raise unless something in it is derived by hand."""
    if subject.form != INSIDE or subject.oracle != OWN_PRIMAL:
        return
    if not has_custom_rules(jax.make_jaxpr(subject.plain)(_specs(subject))):
        raise CannotCheck(
            f"{subject.name}: nothing in it is derived by hand: it has no custom_vjp or custom_jvp rule inside, and "
            "the call gives neither backward= nor reference="
        )


def require_no_leak(subject: Subject, program: Any, inputs: int) -> None:
    """Raise if a rule closes over a value that is traced around it: to JAX it is one more of the program's inputs."""
    if len(program.in_avals) > inputs:
        raise CannotCheck(
            f"{subject.name}: a rule in it closes over an array of shape {program.in_avals[0].shape}, an argument or "
            "what was made of one, and JAX gives no derivative with respect to that: make it an argument of the rule"
        )


def require_differentiable_primal(subject: Subject, program: Any) -> None:
    """Raise `NeedsNumbers` for a kernel or a callback, which takes the dtypes that it takes.

    Without a reference, a rule over one that is left in the primal would be its own oracle.
    """
    if subject.oracle == OWN_PRIMAL and with_own_rule(program):  # in the hand's backward alone it may be
        owned = with_own_rule(jax.make_jaxpr(subject.primal)(_specs(subject)))
        if owned:
            raise NeedsNumbers(f"the primitive {owned} in it has a derivative rule of its own, and autodiff uses that")
    if not is_opaque(program):
        return
    if subject.oracle != OWN_PRIMAL:
        raise NeedsNumbers("there is a kernel or callback in it: it was called as a host function, with arrays")
    if has_custom_rules(jax.make_jaxpr(subject.primal)(_specs(subject))):
        raise NeedsNumbers("a kernel or callback under its rule, which JAX cannot differentiate")
    if narrow_outputs_of_opaque(program):
        raise NeedsNumbers("a kernel or callback in its rule that does not compute in float64")


def explained(subject: Subject, error: Exception, x64: Any) -> Exception:
    """What to raise in place of `error`, which came up when the subject was traced: stage by stage, whose is it?"""
    specs = _specs(subject)
    if isinstance(error, CannotCheck):
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
        mine, other = (_shapes(jax.eval_shape(f, specs)) for f in (subject.plain, subject.primal))
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
            jax.eval_shape(lambda leaves: _pulled(subject.primal, leaves), specs)
        except Exception as cause:
            return NeedsNumbers(f"its primal cannot be differentiated by JAX ({_first(cause)})")
    error.add_note(
        f"bpref: {subject.name} and its backward could be traced; this is a fault of bpref, please report it"
    )
    return error


def _untraceable(subject: Subject, cause: Exception) -> Exception:
    """It cannot be traced. Called with arrays it may work: then it is a host function, or it reads traced values."""
    try:
        with np.errstate(all="ignore"):
            outputs = jax.tree.leaves(subject.plain(_concrete(subject)))
    except Exception as error:
        return CannotCheck(blamed(subject, subject.name, error))
    odd = next((v for v in outputs if not _is_arraylike(v)), None)
    if odd is not None or not outputs:
        came = "nothing" if not outputs else describe(odd)
        return CannotCheck(f"{subject.name} returned {came}, expected an array or a pytree of arrays")
    if subject.form == INSIDE:
        return CannotCheck(
            f"{subject.name} works on arrays but cannot be traced by JAX, since it reads their values "
            f"({_first(cause)}): give its backward= to have it checked as a host function"
        )
    return NeedsNumbers("JAX cannot trace it: it was called as a host function, with arrays")


def _unswept(subject: Subject, cause: Exception) -> Exception:
    """Its value can be traced, and its sweep cannot: by the forward rule's fault or the backward's, or by none."""
    stage = f"the backward of {subject.name}"
    try:
        jax.eval_shape(lambda leaves: subject.sweep(leaves)[0], _specs(subject))
    except Exception:
        stage = f"the forward rule of {subject.name}"
    if subject.form != INSIDE:
        try:
            with np.errstate(all="ignore"):
                swept(subject.sweep, _concrete(subject))
            return NeedsNumbers(f"JAX cannot trace {stage}: it was called as a host function, with arrays")
        except Exception:  # with arrays it fails as well: what it raised first says why
            pass
    return CannotCheck(blamed(subject, stage, cause))


def _concrete(subject: Subject) -> list[Any]:
    """Arrays that may be written into, zeros for specifications."""
    arrays = [np.zeros(v.shape, v.dtype) if isinstance(v, jax.ShapeDtypeStruct) else v for v in subject.leaves]
    return [np.array(v) if isinstance(v, np.ndarray) else v for v in arrays]


def _outputs_on_arrays(f: Callable, subject: Subject) -> list[Any] | None:
    """What it returns for arrays; None where it raises, or where that is no arrays."""
    arrays = [
        np.zeros(v.shape, v.dtype) if isinstance(v, jax.ShapeDtypeStruct) else np.array(v) for v in subject.leaves
    ]
    try:
        outputs = jax.tree.leaves(f(arrays))
    except Exception:
        return None
    return outputs if outputs and all(map(_is_arraylike, outputs)) else None


def _is_arraylike(v: Any) -> bool:
    try:
        return np.issubdtype(np.asarray(v).dtype, np.number) or np.asarray(v).dtype == bool
    except Exception:
        return False


def swept(sweep: Callable, leaves: list[Any]) -> list[Any]:
    """The arrays among the cotangents that a sweep gives for a cotangent of ones."""
    y, pull = sweep(leaves)
    return [v for v in pull(_ones(y)) if hasattr(v, "dtype")]


def _pulled(primal: Callable, leaves: list[Any]) -> Any:
    y, cotangents = with_cotangents(primal, leaves)
    return cotangents(_ones(y))


def _ones(y: Any) -> Any:
    def one(v):
        return jax.numpy.ones_like(v) if is_differentiable(v) else np.zeros(v.shape, jax.dtypes.float0)

    return jax.tree.map(one, y)


def _specs(subject: Subject) -> list[Any]:
    return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in subject.leaves]


def _arguments(subject: Subject) -> list[str]:
    return [f"{name}: {describe(v)}" for name, v in zip(subject.names, subject.leaves, strict=True)]


def _shapes(y: Any) -> str:
    return str(jax.tree.map(describe, y)).replace("'", "")


def blamed(subject: Subject, what: str, error: Exception) -> str:
    called = ", ".join(_arguments(subject))
    return f"{what} raised {type(error).__name__}: {_first(error)} (called with {called})"


def _joined(error: Exception) -> str:
    return " ".join(str(error).split("\n----")[0].split())


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else "without a message"
