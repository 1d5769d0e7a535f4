"""The terms of the chain rule: what each path through the primal contributes to a cotangent.

A wrong derivation often is the right one without one of them, or with its sign reversed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import Atom, Typed, is_literal, types_of
from bpref.verify.examining.held import Point
from bpref.verify.examining.program import completed
from bpref.verify.naming import place
from bpref.verify.oracle import Values, with_cotangents
from bpref.verify.programs.rewrite import as_it_is, as_written, evaluate
from bpref.verify.programs.running import in_float64
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

    def label(v: Atom, use: Use) -> str:
        value = named.get(v) or f"the result of `{made[v].primitive.name}`{where(made[v])}"
        if use.equation < 0:
            return f"the path of {value} into the output"
        reader = jaxpr.eqns[use.equation]
        return f"the path of {value} into `{reader.primitive.name}`{where(reader)}"

    def masked(masks: Array, *inputs: Array) -> list:
        values = dict(zip(jaxpr.constvars, flat.consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))

        def read(v: Atom, use: Use) -> ArrayLike:
            value = v.val if is_literal(v) else values[v]
            return _scaled(value, masks[number[use]]) if use in number else value

        for i, equation in enumerate(jaxpr.eqns):
            with as_written(equation):
                outputs = as_it_is(equation, [read(v, Use(i, j)) for j, v in enumerate(equation.invars)])
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(v, Use(-1, j)) for j, v in enumerate(jaxpr.outvars)]

    return masked, tuple(label(v, use) for v, use in paths)


def _paths(program: ClosedJaxpr, limit: int) -> list[tuple[Atom, Use]]:
    """The uses of values with several paths, those nearest the arguments first; a value's are all there, or none."""
    jaxpr = program.jaxpr
    depth: dict[Atom, int] = dict.fromkeys(jaxpr.invars, 0)
    live = _reaching_the_output(program)
    uses: dict[Atom, list[Use]] = {}
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
    chosen: list[tuple[Atom, Use]] = []
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


def _scaled(v: Array, mask: Array) -> Array:
    """v, whose cotangent is multiplied by the mask; an infinite one, as in an attention mask, keeps its own."""
    still = lax.stop_gradient(v)
    moving = still - jnp.asarray(mask, v.dtype) * (still - v)
    return jnp.where(jnp.isfinite(still), moving, v)


def _is_inexact(v: Atom) -> bool:
    return jnp.issubdtype(types_of([v])[0].dtype, jnp.inexact)


def _struct(aval: Typed) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


def _argument_names(program: ClosedJaxpr) -> Sequence[str]:
    names = getattr(program.jaxpr.debug_info, "arg_names", None) or ()
    names = [*names, *[""] * (len(program.jaxpr.invars) - len(names))]
    return [f"`{name}`" if name else f"argument {i}" for i, name in enumerate(names)]


def where(equation: JaxprEqn) -> str:
    """` (norms.py:12)`, where the file is known."""
    file, line = place(equation.source_info)
    return f" ({Path(file).name}:{line})" if file else ""


def contributions(
    primal: Callable[[Values], PyTree], names: Sequence[str], points: Sequence[Point]
) -> dict[str, dict[str, np.ndarray]]:
    """For every differentiable argument by name: each path's label, and its term in the oracle's cotangent.

    `primal` takes the leaves with these names, and can be traced in float64.

    A term has shape (samples, *shape of the argument), a sample for each point and cotangent, in float64. Paths with
    the same label (several uses in one line) are one term together, and one each. Paths that contribute nothing by
    themselves, such as that of the maximum which a softmax is shifted by, are closed before the others are measured:
    beside a closed path they would contribute.
    """
    with jax.enable_x64(True):
        leaves = points[0].leaves
        program = jax.make_jaxpr(lambda values: jax.tree.leaves(primal(values)))(leaves)
        masked, labels = split_paths(program)
        if not labels:
            return {name: {} for name in names}

        def with_closed(closed: np.ndarray) -> dict[str, np.ndarray]:
            """Cotangents with all paths open, and then with each row's closed; (samples, 1 + rows, *shape)."""
            return run(1.0 - np.concatenate([np.zeros((1, len(labels))), closed]))

        groups = grouped(labels, "use")
        closed = np.stack([np.isin(np.arange(len(labels)), paths) for paths in groups.values()]).astype(float)
        run = by_row(masked, np.ones((1 + len(groups), len(labels))), names, points)
        joined = with_closed(closed)
        idle = [all(_is_nothing(v[:, 0] - v[:, k + 1], v[:, 0]) for v in joined.values()) for k in range(len(groups))]
        if any(idle):
            joined = with_closed(np.maximum(closed, closed[idle].max(axis=0)))
    return {
        name: {with_names(label, names): v[:, 0] - v[:, k + 1] for k, label in enumerate(groups) if not idle[k]}
        for name, v in joined.items()
    }


def by_row(
    switched: Callable[..., list], like: np.ndarray, names: Sequence[str], points: Sequence[Point]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Cotangents of `switched(row, *leaves)` by name, (samples, rows, *shape), of rows that are like these."""

    def cotangents(row, leaves, dy):
        y, pull = with_cotangents(lambda leaves: switched(row, *leaves), leaves)
        return {n: c for n, c in zip(names, pull(completed(dy, y))[0], strict=True) if c is not None}

    of_all = jax.vmap(jax.vmap(cotangents, (0, None, None)), (None, None, 0))
    run, *_ = in_float64(jax.jit(of_all).trace(like, points[0].leaves, points[0].dys))

    def of(rows: np.ndarray) -> dict[str, np.ndarray]:
        seen = [run(rows, p.leaves, p.dys) for p in points]
        return {name: np.concatenate([s[name] for s in seen]) for name in seen[0]}

    return of


def grouped(labels: Sequence[str], one: str) -> dict[str, list[int]]:
    """What is tried together: each by itself, and all those that have the same label, several in one line."""
    alike = {label: [i for i, other in enumerate(labels) if other == label] for label in labels}
    several = {label: places for label, places in alike.items() if len(places) > 1}
    each = {
        f"{label}, {one} {k + 1} of {len(places)}": [i]
        for label, places in several.items()
        for k, i in enumerate(places)
    }
    return alike | each


def _is_nothing(term: np.ndarray, whole: np.ndarray) -> bool:
    return bool(np.max(np.abs(term), initial=0.0) <= 1e-12 * np.max(np.abs(whole), initial=0.0))


def with_names(label: str, names: Sequence[str]) -> str:
    """The argument that a label calls by its place in the list of leaves, by its name."""
    for i, name in enumerate(names):
        label = label.replace(f"`values[{i}]`", f"`{name}`")
    return label
