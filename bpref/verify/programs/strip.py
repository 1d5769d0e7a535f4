"""Stripping custom derivative rules: a function's own primal, for autodiff to differentiate.

What a rule computes is the body that it decorates. Where a rule's derivative was chosen, not derived, its body may
have another: without its rule `jax.nn.relu` is `max(x, 0)`, whose derivative at the tie x = 0 is 1/2 and not 0.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import NotImplementedType
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Primitive
from jax.interpreters import ad
from jax.typing import ArrayLike

from bpref.programs import all_equations, closed, programs_in, types_of
from bpref.tangents import BY_DECISION
from bpref.verify.naming import MACHINERY, place_of
from bpref.verify.options import require_callable
from bpref.verify.programs.rewrite import CALLS, Recurse, evaluate, traced

F = TypeVar("F", bound=Callable)

RULES_OF_JAX = ("custom_jvp_call", "custom_vjp_call")
"""The primitives that carry a custom derivative rule."""

OTHER_RULES = ("linear_call", "call_hi_primitive")
"""The primitives that carry another: the transpose of `linear_call`, and `VJPHiPrimitive`'s."""

EXEMPT = "_custom_root at ", BY_DECISION
"""Sources of rules that say what the derivative is: JAX's of `lax.custom_root`, and an estimator's by decision."""

OPAQUE = frozenset({"pallas_call", "pure_callback", "io_callback", "ffi_call", "triton_kernel_call", "tpu_custom_call"})
"""What JAX cannot differentiate: a rule over one of these is all the derivative that there is."""


def strip_custom_rules(fun: F) -> F:
    """The function that computes what `fun` does, without any `custom_jvp` or `custom_vjp` rule in it.

    It takes and returns what `fun` takes and returns, under jit, vmap and autodiff. Rules are taken out wherever they
    are: inside jit, scan, while, cond, remat and shard_map, and inside other rules' bodies. Arguments that are not JAX
    arrays (numbers, strings, functions, as `nondiff_argnums` has them) reach `fun` as they are.

    A rule that is applied while `fun` is traced cannot be seen: of `jax.grad(g)` inside `fun` only the result is left,
    with whatever rules g has. Two more things stay. A rule over a Pallas kernel or a callback, which JAX cannot
    differentiate: `has_custom_rules` tells that one is left. `lax.custom_linear_solve` and `lax.custom_root`, whose
    derivatives are those of the equation that they solve.

    Reverse-mode differentiation of a body with `lax.while_loop` in it fails without its rule, and JAX says so.

    Example:
      >>> f = jax.custom_vjp(jnp.sin)
      >>> f.defvjp(lambda x: (jnp.sin(x), ()), lambda _, dy: (7 * dy,))
      >>> float(jax.grad(f)(0.0)), float(jax.grad(bpref.strip_custom_rules(f))(0.0))
      (7.0, 1.0)
    """

    require_callable("strip_custom_rules", "fun", fun)

    @wraps(fun)
    def stripped(*args, **kwargs):
        program, inputs, to_tree = traced(fun, args, kwargs)
        return to_tree(evaluate(program, inputs, without_rule))

    return stripped  # type: ignore[return-value]


def without_rule(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Recurse) -> list | NotImplementedType:
    """For `evaluate`: the body of a custom rule in its place."""
    if is_rule(equation) and not is_opaque(body := body_of_rule(equation)):
        return recurse(body, inputs)
    return NotImplemented


def has_custom_rules(program: ClosedJaxpr) -> bool:
    """Whether a custom derivative rule is anywhere in a program, or in the programs in it.

    `lax.custom_root` counts as none, since its rule is JAX's own; rules in the function whose root is taken do. Nor
    does what has another derivative by decision (`bpref.tangents.by_decision`).
    """
    return any(map(is_rule, all_equations(program)))


def called(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The program that an equation does no more than call, of a custom rule its primal's body; None for any other."""
    name = equation.primitive.name
    parameter = "call_jaxpr" if name in RULES_OF_JAX else CALLS.get(name)
    return None if parameter is None else closed(equation.params[parameter])


def is_rule(equation: JaxprEqn) -> bool:
    """Whether an equation carries a custom derivative rule that is judged: another than those of `EXEMPT`."""
    name = equation.primitive.name
    if name not in RULES_OF_JAX:
        return name in OTHER_RULES
    return not str(equation.params["call_jaxpr"].jaxpr.debug_info.func_src_info).startswith(EXEMPT)


def sees_zeros(program: ClosedJaxpr) -> bool:
    """Whether a rule in it is told which arguments are differentiated, and which cotangents are symbolic zeros."""
    return any(
        e.params.get("symbolic_zeros") is True or e.primitive.name == "call_hi_primitive"
        for e in all_equations(program)
    )


def pushes_tangents(program: ClosedJaxpr) -> bool:
    """Whether somebody's own `custom_jvp` is in it: JAX's are JAX's affair."""
    rules = (e for e in all_equations(program) if e.primitive.name == "custom_jvp_call" and is_rule(e))
    return any(not MACHINERY.match(place_of(getattr(e.params["jvp_jaxpr_fun"], "debug_info", None))[1]) for e in rules)


def batches_itself(program: ClosedJaxpr) -> bool:
    """Whether a function in it says itself what it is under `vmap`."""
    return any(e.primitive.name == "custom_vmap_call" for e in all_equations(program))


def may_skip_a_rule(program: ClosedJaxpr) -> bool:
    """Whether a rule is in a branch or in a loop that may be left out."""
    held = (e for e in all_equations(program) if e.primitive.name in ("cond", "while"))
    return any(has_custom_rules(inner) for e in held for inner in programs_in(e))


def body_of_rule(equation: JaxprEqn) -> ClosedJaxpr:
    """The program that a rule is the derivative of."""
    p = equation.params
    if "_prim" not in p:
        return p["callee" if "callee" in p else "call_jaxpr"]
    prim, specs = p["_prim"], [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in types_of(equation.invars)]

    @wraps(prim.expand)
    def flat(*xs):
        return jax.tree.leaves(prim.expand(*jax.tree.unflatten(prim.in_tree, xs)))

    return jax.make_jaxpr(flat)(*specs)


def owner_of_rule(primitive: Primitive) -> str:
    """The package that has given a primitive of its own a derivative rule; empty for JAX's, and where there is none."""
    rule = ad.primitive_jvps.get(primitive)
    while isinstance(rule, partial):
        rule = rule.func
    owner = str(getattr(getattr(rule, "__wrapped__", rule), "__module__", "jax")).split(".")[0]
    return "" if owner == "jax" else owner


def with_own_rule(program: ClosedJaxpr) -> str:
    """The first primitive in a program that another package has given a derivative rule, `NAME (PACKAGE)`; or empty.

    Primitives in the programs that it holds itself are not looked for.
    """
    owned = ((e.primitive, owner_of_rule(e.primitive)) for e in all_equations(program))
    return next((f"{primitive.name} ({owner})" for primitive, owner in owned if owner), "")


def is_opaque(program: ClosedJaxpr) -> bool:
    """Whether there is anything in a program that JAX cannot differentiate."""
    return any(equation.primitive.name in OPAQUE for equation in all_equations(program))


def narrow_outputs_of_opaque(program: ClosedJaxpr) -> bool:
    """Whether a kernel or a callback gives floating-point numbers of fewer than 64 bits."""
    opaque = [e for e in all_equations(program) if e.primitive.name in OPAQUE]
    return any(
        jnp.issubdtype(a.dtype, jnp.inexact) and jnp.finfo(a.dtype).bits < 64
        for e in opaque
        for a in types_of(e.outvars)
    )
