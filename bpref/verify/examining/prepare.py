"""Everything about a subject that does not depend on the values: traced once, cached for the next check."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from bpref.programs import Typed, all_equations
from bpref.verify.examining.faults import explained
from bpref.verify.examining.held import ROUND_OFF, TRIALS, Effect, Point, Rounding, effect_of_rounding
from bpref.verify.examining.laws import form, is_repeatable
from bpref.verify.examining.program import COTANGENTS, Program, output_shapes, trace_program, unchanged
from bpref.verify.examining.refusals import require_arrays, require_checkable, require_outputs
from bpref.verify.examining.subject import INSIDE, Subject
from bpref.verify.numbers.kinks import a_step_away
from bpref.verify.oracle import Specs, Values, is_differentiable
from bpref.verify.programs.lift import lift, lift_traced, narrowest
from bpref.verify.programs.rewrite import constants_of
from bpref.verify.programs.running import collecting_nothing
from bpref.verify.programs.strip import batches_itself, may_skip_a_rule, pushes_tangents, sees_zeros
from bpref.verify.report import Finding

WIDE = (np.float64, np.complex128)
"""The dtypes that there are only with 64-bit numbers enabled."""

CACHED = 64
"""How many subjects' programs are cached."""


class Working(NamedTuple):
    """A subject's program in a working dtype: what that is called, the dtypes of leaves and dys, the program."""

    name: str
    leaves: list[np.dtype]
    dys: list[np.dtype]
    program: Program


class Prepared(NamedTuple):
    """A subject's programs.

    Attributes:
      subject: what is checked.
      outputs: shapes and dtypes of the differentiable outputs, in the dtypes of the arguments.
      primal: `leaves -> y` in float64, what `wide` differentiates.
      wide: the program in float64.
      casts_to: the narrowest dtype that it casts down to inside, or None.
      is_lifted: whether `wide` leaves those casts out.
      round_off: the relative error above which a derivation is wrong.
      own: the dtypes of the arguments.
      x64: whether narrow arguments are looked at with 64-bit numbers enabled, since the caller has them enabled.
      narrow: makes, once, the program in each working dtype.
      formal: what is wrong with the form of the cotangents.
      sees_zeros: whether a rule in it may do something else where an argument alone is differentiated.
      may_skip: whether a rule in it need not run.
      pushes_tangents: whether somebody's own `custom_jvp` is in it.
      batches_itself: whether a function in it says itself what it is under `vmap`.
      is_repeatable: asks, once, whether it is the same program when it is traced again.
      is_its_own_truth: whether `wide` is what a program in another dtype computes, in float64: not if it casts down
        inside, or draws random numbers, which are others in another dtype.
      truth: makes, once, the float64 program whose oracle a working dtype's values are held against.
      in_float32: makes, once, the program in float32; None where it does not run in that.
      primal_casts_to: finds, once, what `casts_to` is of the differentiated primal alone.
    """

    subject: Subject
    outputs: Specs
    primal: Callable[[Values], PyTree]
    wide: Program
    casts_to: np.dtype | None
    is_lifted: bool
    round_off: float
    own: list[np.dtype]
    x64: bool
    narrow: Callable[[], tuple[Working, ...]]
    formal: tuple[Finding, ...]
    sees_zeros: bool
    may_skip: bool
    pushes_tangents: bool
    batches_itself: bool
    is_repeatable: Callable[[], bool]
    is_its_own_truth: bool
    truth: Callable[[Working], Program]
    in_float32: Callable[[], Working | None]
    primal_casts_to: Callable[[], np.dtype | None]


@collecting_nothing()
def prepared(subject: Subject, dtypes: Sequence[DTypeLike] | None) -> Prepared:
    """The programs of a subject; those made for an equal one before, if there are any.

    Raises:
      CannotCheck: the function, its backward or the call is at fault; the message says which.
      NeedsNumbers: JAX cannot trace it, or cannot differentiate its primal.
      Refused: JAX does not take its rule.
    """
    working = tuple(jnp.dtype(d).name for d in dtypes) if dtypes is not None else None
    shapes = tuple((v.shape, v.dtype) for v in subject.leaves)
    name = (subject.identity, shapes, working, jax.config.read("jax_enable_x64"))
    if name in _CACHE:
        _CACHE.move_to_end(name)
        return _CACHE[name]._replace(subject=subject)
    require_arrays(subject)
    x64 = partial(x64_for, [v.dtype for v in subject.leaves], _callers_x64(subject))
    try:
        made = programs_of(subject, working)
        made.narrow()
        require_checkable(subject, made.wide.traced.jaxpr, made.outputs, not made.formal, x64())
    except Exception as error:
        raise explained(subject, error, x64()) from error
    _CACHE[name] = made
    if len(_CACHE) > CACHED:
        _CACHE.popitem(last=False)
    return made


_CACHE: OrderedDict[Hashable, Prepared] = OrderedDict()


def programs_of(subject: Subject, working: tuple[str, ...] | None) -> Prepared:
    """The programs of a subject, traced; `working` as `dtypes` of `check`.

    Those in the working dtypes are made when they are asked for: the derivation is decided without them.
    """
    specs = subject.specs
    own, x64 = [v.dtype for v in specs], _callers_x64(subject)
    with x64_for(own, x64):
        outputs = [v for v in jax.tree.leaves(output_shapes(subject, specs)) if is_differentiable(v)]
    require_outputs(subject, outputs)
    primal, round_off = subject.primal, ROUND_OFF
    in_own_mode = partial(x64_for, own, x64)
    wide = _unless_refused(subject, specs, outputs)
    is_lifted = wide is None
    if wide is None:
        # It runs in its own dtypes and not in float64: evaluate what it does in its own, in float64.
        in_own_dtypes = partial(lift_traced, inputs=(specs, [_stack(v) for v in outputs]), x64=in_own_mode)
        wide = _in_float64(subject, specs, outputs, in_own_dtypes)
        primal = lift_traced(primal, inputs=(specs,), x64=in_own_mode)
        if any(map(_may_be_rounded, constants_of(wide.traced.jaxpr))):
            round_off = 16 * float(jnp.finfo(_narrowest_of(own)).eps)
    choices = {_name_of_dtypes(own): own} if working is None else {d: [_in(v.dtype, d) for v in specs] for d in working}
    choices = {name: d for name, d in choices.items() if name not in ("", "float64", "complex128")}
    narrow = cache(lambda: tuple(_narrow(subject, name, specs, dtypes, x64) for name, dtypes in choices.items()))
    in_own = next((w.program for w in narrow() if w.leaves == own), None) if own in choices.values() else None
    formal = form(in_own, specs, subject.names) if in_own else form(wide, list(map(wide_spec, specs)), subject.names)
    casts_to = narrowest(wide.traced.jaxpr, jnp.float64)
    return Prepared(
        subject,
        outputs,
        primal,
        wide,
        casts_to,
        is_lifted,
        round_off,
        own,
        x64,
        narrow,
        tuple(formal),
        *_of_rules_inside(subject, own, x64),
        batches_itself(wide.traced.jaxpr),
        cache(lambda: _is_repeatable(subject, specs, outputs, x64)),
        is_lifted or (casts_to is None and not draws_random_numbers(wide.traced.jaxpr)),
        _truths(subject, specs, outputs, wide, is_lifted, casts_to, x64),
        cache(lambda: _in_float32(subject, specs, own, x64)),
        cache(lambda: _primal_casts_to(subject, specs, own, x64)),
    )


def _truths(
    subject: Subject, specs: Specs, outputs: Specs, wide: Program, is_lifted: bool, casts_to: np.dtype | None, x64: bool
) -> Callable[[Working], Program]:
    """What `Prepared.truth` is. Random numbers are those that the working dtype draws, evaluated in float64."""
    if is_lifted:
        return lambda working: wide
    if draws_random_numbers(wide.traced.jaxpr):
        made: dict[str, Program] = {}

        def of_working(working: Working) -> Program:
            if working.name not in made:
                inputs = (
                    _specs(specs, working.leaves),
                    [
                        jax.ShapeDtypeStruct((COTANGENTS, *v.shape), d)
                        for v, d in zip(outputs, working.dys, strict=True)
                    ],
                )
                adapt = partial(lift_traced, inputs=inputs, x64=partial(x64_for, working.leaves, x64))
                made[working.name] = _in_float64(subject, specs, outputs, adapt)
            return made[working.name]

        return of_working
    if casts_to is None:
        return lambda working: wide
    without_casts = cache(lambda: _in_float64(subject, specs, outputs, lift))
    return lambda working: without_casts()


def _in_float32(subject: Subject, specs: Specs, own: list[np.dtype], x64: bool) -> Working | None:
    try:
        return _narrow(subject, "float32", specs, [_in(d, "float32") for d in own], x64)
    except (TypeError, ValueError):
        return None


def _primal_casts_to(subject: Subject, specs: Specs, own: list[np.dtype], x64: bool) -> np.dtype | None:
    with x64_for(own, x64):
        return narrowest(jax.make_jaxpr(subject.primal)(specs), widest_of(own))


def lifted(ready: Prepared) -> Prepared:
    """The same with every cast between floating-point dtypes left out of the float64 program."""
    specs = ready.subject.specs
    wide = _in_float64(ready.subject, specs, ready.outputs, lift)
    return ready._replace(
        primal=lift(ready.subject.primal),
        wide=wide,
        is_lifted=True,
        is_its_own_truth=True,
        truth=lambda working: wide,
    )


def _in_float64(
    subject: Subject, leaves: Sequence[Typed], outputs: Specs, adapt: Callable[[Callable], Callable] = unchanged
) -> Program:
    with jax.enable_x64(True):
        dys = [_stack(wide_spec(v)) for v in outputs]
        return trace_program(subject, [wide_spec(v) for v in leaves], dys, adapt)


def _unless_refused(subject: Subject, leaves: Sequence[Typed], outputs: Specs) -> Program | None:
    """The program in float64, or None; the error is let go, since JAX keeps the dtypes of constants in its frames."""
    try:
        made = _in_float64(subject, leaves, outputs)
    except (TypeError, ValueError):
        return None
    # JAX binds a rule with `optimize_remat` as it was traced, in float64 too
    is_typed = any(equation.primitive.name == "remat_opt" for equation in all_equations(made.traced.jaxpr))
    return None if is_typed else made


def _of_rules_inside(subject: Subject, own: list[np.dtype], x64: bool) -> tuple[bool, bool, bool]:
    """`sees_zeros`, `may_skip` and `pushes_tangents`."""
    if subject.form != INSIDE:
        return False, False, False
    with x64_for(own, x64):
        program = jax.make_jaxpr(subject.plain)(subject.specs)
    return sees_zeros(program), may_skip_a_rule(program), pushes_tangents(program)


def _is_repeatable(subject: Subject, specs: Specs, outputs: Specs, x64: bool) -> bool:
    with x64_for([v.dtype for v in specs], x64):
        return is_repeatable(subject, specs, outputs)


def draws_random_numbers(program: ClosedJaxpr) -> bool:
    return any(e.primitive.name.startswith(("random_bits", "threefry", "rng_")) for e in all_equations(program))


def widest_of(dtypes: list[np.dtype]) -> DTypeLike:
    """The floating-point dtype of the most digits among these, in which what they are in together is computed."""
    real = [d for d in dtypes if jnp.issubdtype(d, jnp.inexact)]
    return max(real, key=lambda d: jnp.finfo(d).nmant, default=jnp.float32)


def _narrowest_of(dtypes: list[np.dtype]) -> DTypeLike:
    real = [d for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    return min(real, key=lambda d: jnp.finfo(d).nmant, default=jnp.float32)


def _may_be_rounded(constant: ArrayLike) -> bool:
    """Whether a constant, such as 0.1 and not 0.5, has more digits than a number that is written as it is meant."""
    v = np.asarray(constant)
    return jnp.issubdtype(v.dtype, jnp.inexact) and not np.array_equal(
        v, v.astype(np.complex64 if np.iscomplexobj(v) else jnp.bfloat16).astype(v.dtype), equal_nan=True
    )


def _narrow(subject: Subject, name: str, specs: Specs, dtypes: list[np.dtype], x64: bool) -> Working:
    leaves = _specs(specs, dtypes)
    with x64_for(dtypes, x64):
        dys = [_stack(v) for v in jax.tree.leaves(output_shapes(subject, leaves)) if is_differentiable(v)]
        return Working(name, dtypes, [v.dtype for v in dys], trace_program(subject, leaves, dys, derivation=False))


def _specs(specs: Specs, dtypes: list[np.dtype]) -> Specs:
    return [jax.ShapeDtypeStruct(v.shape, d) for v, d in zip(specs, dtypes, strict=True)]


def x64_for(dtypes: Iterable[np.dtype], x64: bool) -> AbstractContextManager:
    """A context in which arrays of these dtypes stay what they are; where they are narrow, `x64` is the mode."""
    return jax.enable_x64(x64 or any(d in WIDE for d in dtypes))


def _callers_x64(subject: Subject) -> bool:
    """Whether the caller calls it with narrow arguments alone while 64-bit numbers are enabled."""
    return bool(jax.config.read("jax_enable_x64")) and not any(v.dtype in WIDE for v in subject.leaves)


def _stack(v: Typed) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((COTANGENTS, *v.shape), v.dtype)


def wide_spec(v: Typed) -> Typed:
    """The shape and dtype of an array in float64 or complex128."""
    if not is_differentiable(v):
        return v
    return jax.ShapeDtypeStruct(v.shape, np.complex128 if jnp.issubdtype(v.dtype, jnp.complexfloating) else np.float64)


def _in(dtype: np.dtype, working: str) -> np.dtype:
    """`dtype` in a working precision; there is no complex dtype narrower than complex64."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype(jnp.complex128 if working in ("float64", "complex128") else jnp.complex64)
    return jnp.dtype(working) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _name_of_dtypes(dtypes: list[np.dtype]) -> str:
    names = dict.fromkeys(jnp.dtype(d).name for d in dtypes if jnp.issubdtype(d, jnp.inexact))
    return "/".join(names)


def rounding_at(ready: Prepared, points: list[Point]) -> Rounding:
    """What round-off may make of each value at these points."""

    @cache
    def effect(n: int = TRIALS, beside: bool = False) -> dict[str, Effect]:
        where = [Point(a_step_away(p.leaves), p.dys) for p in points] if beside else points
        return effect_of_rounding(ready.wide, where, n)

    return effect
