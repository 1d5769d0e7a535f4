"""Lifting a function into float64: the mathematics that it says, whatever dtypes it computes in.

A function that casts down inside (to bfloat16 for a product, to float32 for a kernel) has a float64 derivative that
no float64 input shows. Lifted, every real floating value is float64 and every complex one complex128: casts between
them do nothing, and a half-precision reduction or product is done in full.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import NotImplementedType
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from bpref.programs import Typed, closed, is_literal, types_of
from bpref.verify.programs.rewrite import CONTROL_FLOW, Recurse, as_it_is, constants_and_carry, evaluate, traced
from bpref.verify.programs.strip import OPAQUE, RULES_OF_JAX, is_opaque

F = TypeVar("F", bound=Callable)


def lift(fun: F, at: DTypeLike | None = None) -> F:
    """The function that computes what `fun` says with every floating-point value in float64 or complex128.

    It is called under `jax.enable_x64(True)`, with arguments of any dtype. `fun` is traced at the dtypes that come, or
    with real arguments of dtype `at`, so that what it chooses by dtype (an epsilon, a mask's value) is chosen by those.
    A literal such as 0.1 is exact only if they are float64. Custom derivative rules stay, lifted
    themselves: forward, backward and tangents. For the primal's own derivative, lift the stripped function.

    Left alone: casts to integers; kernels and callbacks, which are given the dtypes that they were traced with, and
    rules over them. Random numbers are those of the dtype that they were drawn in.

    Raises:
      ValueError: where 64-bit numbers are not enabled.
      NotImplementedError: for a bitcast of a floating-point value, whose bits are those of one dtype.
    """

    @wraps(fun)
    def lifted(*args, **kwargs):
        if jnp.result_type(float) != jnp.float64:
            raise ValueError("lift: 64-bit numbers are not enabled; call it under jax.enable_x64(True)")
        program, _, to_tree = traced(fun, *jax.tree.map(lambda v: _real_at(v, at), (args, kwargs)))
        inputs = [wide(v) for v in jax.tree.leaves((args, kwargs)) if isinstance(v, jax.Array)]
        return to_tree(evaluate(program, inputs, in_float64, wide))

    return lifted  # type: ignore[return-value]


def lift_traced(fun: Callable, inputs: tuple, x64: Callable[[], AbstractContextManager]) -> Callable:
    """`lift(fun)`, with `fun` traced at `inputs`, specifications in its own dtypes, in the context that `x64` makes.

    For a function that cannot be traced with 64-bit numbers enabled.
    """
    with x64():
        program, outputs = jax.make_jaxpr(fun, return_shape=True)(*inputs)
    structure = jax.tree.structure(outputs)

    def lifted(*args):
        return jax.tree.unflatten(
            structure, evaluate(program, list(map(wide, jax.tree.leaves(args))), in_float64, wide)
        )

    return lifted


def for_float64(fun: Callable, *inputs: PyTree) -> tuple[Callable, bool]:
    """`fun` as it can be called with float64 in place of `inputs`, and whether it had to be lifted for that.

    It is traced in the caller's mode where it cannot be with 64-bit numbers enabled: one that closes over NumPy's int64
    or float64 arrays, which JAX keeps as 32-bit ones for as long as any program lives that was traced with them.
    """
    specs = jax.tree.map(lambda v: jax.ShapeDtypeStruct(jnp.shape(v), v.dtype), inputs)
    wide_specs = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, wide_dtype(v.dtype)), specs)
    try:
        with jax.enable_x64(True):
            jax.eval_shape(fun, *wide_specs)
    except (TypeError, ValueError):
        return lift_traced(fun, specs, nullcontext), True
    return fun, False


def wide_dtype(dtype: np.dtype) -> np.dtype:
    """float64 for a real floating dtype, complex128 for a complex one, any other as it is."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float64)
    return np.dtype(np.complex128) if jnp.issubdtype(dtype, jnp.complexfloating) else dtype


def wide(v: ArrayLike) -> ArrayLike:
    """An array of floating-point numbers, or a constant, in the wide dtype of its kind."""
    dtype = getattr(v, "dtype", None)
    if dtype is None or wide_dtype(dtype) == dtype:
        return v
    return jnp.asarray(np.asarray(v) if not isinstance(v, jax.Array) else v, wide_dtype(dtype))


def in_float64(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Recurse) -> list | NotImplementedType:
    """For `evaluate` with `wide` constants: the equation over wide values."""
    name = equation.primitive.name
    if name in RULES_OF_JAX and not is_opaque(equation.params["call_jaxpr"]):
        return lift_rule(equation, inputs, recurse)
    if name in CONTROL_FLOW:
        return NotImplemented
    if name in OPAQUE or name in RULES_OF_JAX or name == "bitcast_convert_type":
        if name == "bitcast_convert_type" and _bits(types_of(equation.invars)[0]):
            raise NotImplementedError(
                "lift: a bitcast of a floating-point value (bitcast_convert_type, as jnp.signbit, jnp.frexp and "
                "jnp.copysign do): its bits are those of one dtype, and have no meaning in float64"
            )
        narrow = list(map(as_traced, inputs, types_of(equation.invars)))
        return [wide(v) for v in as_it_is(equation, narrow)]
    if name == "reduce_precision":
        return list(inputs)
    return [wide(v) for v in as_it_is(equation, inputs, **_wide_parameters(equation, recurse))]


def narrowest(program: ClosedJaxpr, wide: DTypeLike) -> np.dtype | None:
    """The narrowest floating dtype that a value computed from the inputs is cast down to, inner programs included.

    Args:
      program: traced at inputs of dtype `wide`.
      wide: what counts as not cast down: this dtype, or one with as many bits of precision.

    Returns:
      None where nothing is cast down. Casts to integers do not count, nor do constants.
    """
    found, _ = _narrowed(program.jaxpr, [True] * len(program.jaxpr.invars))
    bits = {dtype: jnp.finfo(dtype).nmant for dtype in found if jnp.finfo(dtype).nmant < jnp.finfo(wide).nmant}
    return min(bits, key=lambda dtype: (bits[dtype], str(dtype)), default=None)


def _real_at(v: ArrayLike, dtype: DTypeLike | None) -> ArrayLike:
    real = isinstance(v, jax.Array) and jnp.issubdtype(v.dtype, jnp.floating)
    return v if dtype is None or not real else lax.convert_element_type(v, dtype)


def as_traced(x: ArrayLike, aval: Typed) -> ArrayLike:
    """A value in the floating-point dtype that it had when a program was traced."""
    return x if wide_dtype(aval.dtype) == aval.dtype else lax.convert_element_type(x, aval.dtype)


def _wide_parameters(equation: JaxprEqn, recurse: Recurse) -> dict[str, object]:
    """The parameters that name a dtype, an algorithm of one, or a scalar program (of a reduction), made wide."""

    def widened(v: object) -> object:
        if isinstance(v, np.dtype):
            return wide_dtype(v)
        if isinstance(v, lax.DotAlgorithmPreset | lax.DotAlgorithm):
            return None
        if isinstance(v, ClosedJaxpr | Jaxpr):
            inner = closed(v)
            avals = [jax.ShapeDtypeStruct(a.shape, wide_dtype(a.dtype)) for a in inner.in_avals]
            again = jax.make_jaxpr(lambda *xs: recurse(inner, xs))(*avals)
            return again if isinstance(v, ClosedJaxpr) else again.jaxpr
        return v

    return {name: widened(v) for name, v in equation.params.items()}


def _narrowed(jaxpr: Jaxpr, of_inputs: Sequence[bool]) -> tuple[set[np.dtype], list[bool]]:
    """The dtypes that values are cast down to, and which outputs depend on the inputs that `of_inputs` marks."""
    found: set[np.dtype] = set()
    depends = {v for v, mark in zip(jaxpr.invars, of_inputs, strict=True) if mark}

    for equation in jaxpr.eqns:
        marks = [not is_literal(v) and v in depends for v in equation.invars]
        inside, out_marks = _inside(equation, marks)
        found |= inside
        depends.update(v for v, mark in zip(equation.outvars, out_marks, strict=True) if mark)
        if equation.primitive.name in CONTROL_FLOW or equation.primitive.name in RULES_OF_JAX:
            continue
        bits = [_bits(a) for a, mark in zip(types_of(equation.invars), marks, strict=True) if mark and _bits(a)]
        if equation.primitive.name == "reduce_precision" and bits:
            found |= _as_precise_as(equation.params["mantissa_bits"], bits[0])
        found |= {_dtype(a) for a in types_of(equation.outvars) if bits and 0 < _bits(a) < max(bits)}
    return found, [not is_literal(v) and v in depends for v in jaxpr.outvars]


def _inside(equation: JaxprEqn, marks: Sequence[bool]) -> tuple[set[np.dtype], list[bool]]:
    """The same of the programs that an equation holds; a loop is gone through until no more of its carry depends."""
    p, name = equation.params, equation.primitive.name
    everything = [any(marks)] * len(equation.outvars)
    if name == "scan":
        return _until_settled(p["jaxpr"].jaxpr, list(marks), *constants_and_carry(p))
    if name == "while":
        c, b = p["cond_nconsts"], p["body_nconsts"]
        of_body, carry = list(marks[c : c + b]), list(marks[c + b :])
        return _until_settled(p["body_jaxpr"].jaxpr, of_body + carry, b, len(carry))
    if name == "cond":
        each = [_narrowed(branch.jaxpr, marks[1:]) for branch in p["branches"]]
        outs = [any(of_branch) for of_branch in zip(*(o for _, o in each), strict=True)]
        return set().union(*(f for f, _ in each)), outs
    inner = p.get("jaxpr") or p.get("call_jaxpr") or p.get("call")
    if (name in CONTROL_FLOW or name in RULES_OF_JAX) and inner is not None:
        return _narrowed(closed(inner).jaxpr, marks)
    return set(), everything


def _until_settled(body: Jaxpr, marks: list[bool], fixed: int, carried: int) -> tuple[set[np.dtype], list[bool]]:
    while True:
        found, outs = _narrowed(body, marks)
        carry = [a or b for a, b in zip(marks[fixed : fixed + carried], outs[:carried], strict=True)]
        if carry == marks[fixed : fixed + carried]:
            return found, outs
        marks = [*marks[:fixed], *carry, *marks[fixed + carried :]]


def _bits(aval: Typed) -> int:
    """The bits of a floating dtype's mantissa, 0 for any other."""
    return jnp.finfo(_dtype(aval)).nmant if jnp.issubdtype(_dtype(aval), jnp.inexact) else 0


def _dtype(aval: object) -> np.dtype:
    """An array's dtype; an effect's token, which has none, counts as a boolean."""
    return getattr(aval, "dtype", np.dtype(bool))


def _as_precise_as(mantissa: int, bits: int) -> set[np.dtype]:
    """The known dtype of a reduced precision, or the next more precise one."""
    known = sorted((jnp.dtype(t) for t in ("bfloat16", "float16", "float32")), key=lambda t: jnp.finfo(t).nmant)
    return {next(t for t in known if jnp.finfo(t).nmant >= mantissa)} if mantissa < bits and mantissa <= 23 else set()


def lift_rule(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """The outputs of a `custom_jvp` or `custom_vjp` call over wide inputs, with the rule that differentiates it."""
    lifted = _with_tangents if equation.primitive.name == "custom_jvp_call" else _with_cotangents
    return lifted(equation, recurse)(*inputs)


def _with_tangents(equation: JaxprEqn, recurse: Callable) -> Callable:
    _, tangents_of = equation.primitive.get_bind_params(equation.params)["subfuns"]
    body, avals = equation.params["call_jaxpr"], types_of(equation.invars)

    @jax.custom_jvp
    def rule(*xs):
        return recurse(body, xs)

    @rule.defjvp
    def _(primals, tangents):
        def flat(*values):
            both = tangents_of.call_wrapped(*values)
            return both[: len(both) // 2], _plain(both[len(both) // 2 :])

        call = _retraced(flat, [*avals, *(_tangent(a) for a in avals)], recurse)
        outputs, moved = call(*primals, *tangents)
        # the rule's `None` for an output without tangent
        return outputs, [_zeros(a) if t is None else t for t, a in zip(moved, body.out_avals, strict=True)]

    return rule


def _with_cotangents(equation: JaxprEqn, recurse: Callable) -> Callable:
    bound = equation.primitive.get_bind_params(equation.params)
    _, forward_of, backward_of = bound["subfuns"]
    body, avals = equation.params["call_jaxpr"], types_of(equation.invars)
    # JAX asks for no derivative with respect to what the rule has closed over, and raises if it is
    moving = [i >= equation.params["num_consts"] for i in range(len(avals))]
    traced_at: list = []

    def forward_flat(*xs):
        outputs = forward_of.call_wrapped(*(v for pair in zip(xs, moving, strict=True) for v in pair))
        _, of_residuals, from_inputs = bound["out_trees"]()
        own = iter(outputs)
        residuals = [next(own) if i is None else xs[i] for i in from_inputs]
        assert len(residuals) == of_residuals.num_leaves
        traced_at[:] = [jax.ShapeDtypeStruct(r.shape, r.dtype) for r in map(jnp.asarray, residuals)]
        return residuals, list(own)

    @jax.custom_vjp
    def rule(*xs):
        return recurse(body, xs)

    def forward(*xs):
        residuals, outputs = _retraced(forward_flat, avals, recurse)(*xs)
        return outputs, residuals

    def backward(residuals, cotangents):
        at = [*traced_at, *(_tangent(a) for a in body.out_avals)]
        call = _retraced(lambda *values: (_plain(_without_logs(backward_of.call_wrapped(*values))), ()), at, recurse)
        return tuple(call(*residuals, *cotangents)[0])

    rule.defvjp(forward, backward)
    return rule


def _retraced(fun: Callable, avals: Sequence[Typed], recurse: Callable) -> Callable:
    """`fun`, a pair of lists with `None` among them, traced at `avals` and evaluated anew over wide values.

    An integer's tangent (float0) is no array to trace at, and is closed over.
    """

    def call(*values):
        where = [i for i, a in enumerate(avals) if a.dtype != jax.dtypes.float0]

        def of_arrays(*arrays):
            at = dict(zip(where, arrays, strict=True))
            return fun(*(at[i] if i in at else values[i] for i in range(len(avals))))

        program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*(_struct(avals[i]) for i in where))
        return jax.tree.unflatten(jax.tree.structure(shapes), recurse(program, [values[i] for i in where]))

    return call


def _without_logs(returned: Sequence) -> Sequence:
    """A backward's cotangents; since JAX 0.11 they come with what it logs."""
    has_logs = isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], list)
    return returned[0] if has_logs else returned


def _plain(values: Sequence[object]) -> list:
    """Tangents as arrays; JAX's symbolic zeros, and those of integers, as `None`."""
    return [v if isinstance(v, jax.Array | np.ndarray) and v.dtype != jax.dtypes.float0 else None for v in values]


def _struct(aval: Typed) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _tangent(aval: Typed) -> jax.ShapeDtypeStruct:
    inexact = jnp.issubdtype(aval.dtype, jnp.inexact)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype if inexact else jax.dtypes.float0)


def _zeros(aval: Typed) -> ArrayLike:
    """The zero tangent of a wide output."""
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return np.zeros(aval.shape, jax.dtypes.float0)
    wide = jnp.complex128 if jnp.issubdtype(aval.dtype, jnp.complexfloating) else jnp.float64
    return jnp.zeros(aval.shape, wide)
