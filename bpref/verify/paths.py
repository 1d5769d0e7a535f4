"""Paths: every way by which a value reaches the output, made to open and close by itself.

By the chain rule, the cotangent of a value that is used n times is a sum of n terms, one for each use. Closing one
path (that use sees the value, but passes no cotangent back) leaves its term out, as somebody does who has forgotten
it. What a wrong gradient equals with one path closed is what it lacks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from bpref.verify.programs.naming import place
from bpref.verify.programs.rewrite import as_it_is, as_written, evaluate, is_literal
from bpref.verify.programs.strip import without_rule


class Use(NamedTuple):
    """A value's use: by operand `operand` of equation number `equation`, or by output `operand` where that is -1."""

    equation: int
    operand: int


def split_paths(program: ClosedJaxpr, limit: int = 64) -> tuple[Callable[..., list], tuple[str, ...]]:
    """A function that computes what a program does, with every path of a value used twice or more under a mask.

    Functions under jit and bodies of custom rules are part of the program; a loop, a branch and a rematerialised
    function count as one equation each. A use that no cotangent comes back from (a comparison, a cast to integers,
    `stop_gradient`) is no path, and the output is a use. The pieces that an array is split into have their own.

    Args:
      program: a closed jaxpr.
      limit: how many uses are masked at most: those nearest the arguments.

    Returns:
      `masked(masks, *inputs) -> outputs`, a list, where use k's cotangent is multiplied by `masks[k]`, whatever it is,
      and the outputs are those of the program exactly; and what use k is, in words, for each.
    """
    flat = jax.make_jaxpr(lambda *xs: evaluate(program, xs, without_rule))(*map(_struct, program.in_avals))
    jaxpr = flat.jaxpr
    paths = _paths(flat, limit)
    named = dict(zip(jaxpr.invars, _argument_names(program), strict=True))
    made = {v: equation for equation in jaxpr.eqns for v in equation.outvars}
    number = {use: k for k, (_, use) in enumerate(paths)}

    def label(v: Any, use: Use) -> str:
        value = named.get(v) or f"the result of `{made[v].primitive.name}`{_place(made[v])}"
        if use.equation < 0:
            return f"the path of {value} into the output"
        reader = jaxpr.eqns[use.equation]
        return f"the path of {value} into `{reader.primitive.name}`{_place(reader)}"

    def masked(masks: Any, *inputs: Any) -> list:
        values = dict(zip(jaxpr.constvars, flat.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Any, use: Use) -> Any:
            value = v.val if is_literal(v) else values[v]
            return _scaled(value, masks[number[use]]) if use in number else value

        for i, equation in enumerate(jaxpr.eqns):
            with as_written(equation):
                outputs = as_it_is(equation, [read(v, Use(i, j)) for j, v in enumerate(equation.invars)])
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(v, Use(-1, j)) for j, v in enumerate(jaxpr.outvars)]

    return masked, tuple(label(v, use) for v, use in paths)


def _paths(program: ClosedJaxpr, limit: int) -> list[tuple[Any, Use]]:
    """The uses of values with several paths, those nearest the arguments first; a value's are all there, or none."""
    jaxpr = program.jaxpr
    depth: dict[Any, int] = dict.fromkeys(jaxpr.invars, 0)
    live = _reaching_the_output(program)
    uses: dict[Any, list[Use]] = {}
    for i, equation in enumerate(jaxpr.eqns):
        from_inputs = [depth[v] for v in equation.invars if not is_literal(v) and v in depth]
        if from_inputs:
            depth.update((v, 1 + min(from_inputs)) for v in equation.outvars)
        if _passes_cotangents(equation) and not live.isdisjoint(equation.outvars):
            for j, v in enumerate(equation.invars):
                if not is_literal(v) and v in depth and _is_inexact(v):
                    uses.setdefault(v, []).append(Use(i, j))
    for j, v in enumerate(jaxpr.outvars):
        if not is_literal(v) and v in depth and _is_inexact(v):
            uses.setdefault(v, []).append(Use(-1, j))
    pieces = {v for equation in jaxpr.eqns if equation.primitive.name in ("split", "unstack") for v in equation.outvars}
    several = sorted((v for v in uses if len(uses[v]) > 1 or v in pieces), key=lambda v: depth[v])
    chosen: list[tuple[Any, Use]] = []
    for v in several:
        if len(chosen) + len(uses[v]) <= limit:
            chosen += [(v, use) for use in uses[v]]
    return chosen


def _reaching_the_output(program: ClosedJaxpr) -> set:
    """The values from which a cotangent comes back: those that reach the output through floating-point numbers."""
    live = {v for v in program.jaxpr.outvars if not is_literal(v) and _is_inexact(v)}
    for equation in reversed(program.jaxpr.eqns):
        if _passes_cotangents(equation) and not live.isdisjoint(equation.outvars):
            live.update(v for v in equation.invars if not is_literal(v) and _is_inexact(v))
    return live


def _passes_cotangents(equation: JaxprEqn) -> bool:
    flat = ("stop_gradient", "sign", "floor", "ceil", "round")
    return equation.primitive.name not in flat and any(map(_is_inexact, equation.outvars))


def _scaled(v: Any, mask: Any) -> Any:
    """v, whose cotangent is multiplied by the mask; an infinite one, as in an attention mask, keeps its own."""
    still = lax.stop_gradient(v)
    moving = still - jnp.asarray(mask, v.dtype) * (still - v)
    return jnp.where(jnp.isfinite(still), moving, v)


def _is_inexact(v: Any) -> bool:
    return jnp.issubdtype(v.aval.dtype, jnp.inexact)


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _argument_names(program: ClosedJaxpr) -> Sequence[str]:
    names = getattr(program.jaxpr.debug_info, "arg_names", None) or ()
    names = [*names, *[""] * (len(program.jaxpr.invars) - len(names))]
    return [f"`{name}`" if name else f"argument {i}" for i, name in enumerate(names)]


def _place(equation: JaxprEqn) -> str:
    """` (norms.py:12)`, where the file is known."""
    file, line = place(equation.source_info)
    return f" ({Path(file).name}:{line})" if file else ""
