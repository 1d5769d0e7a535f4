"""A slope is wrong: the derivative of an elementwise function is left out, taken elsewhere, or another function's.

With u = g(v) of every element, a derivation multiplies by g'(v). What stands there instead is tried for each such
function of the primal, wherever it is called, and for all calls of one function together.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import is_literal, programs_in, types_of
from bpref.verify.diagnosis.residual import Diagnosis, Residual, agree, is_clear
from bpref.verify.diagnosis.terms import by_row, grouped, where, with_names
from bpref.verify.examining.held import Point
from bpref.verify.oracle import Values, with_cotangents
from bpref.verify.programs.rewrite import Recurse, as_it_is, evaluate
from bpref.verify.programs.strip import without_rule

Function = Callable[[Array], Array]

STANDS_IN: dict[str, Callable[[Function, Array, Array], ArrayLike]] = {
    "left out": lambda slope, v, u: jnp.ones_like(v),
    "applied twice": lambda slope, v, u: slope(v) ** 2,
    "taken of its output": lambda slope, v, u: slope(u),
    "1 over what it is": lambda slope, v, u: 1 / slope(v),
    "the function itself": lambda slope, v, u: u,
    "1 - v^2 of its input v, as tanh's is of the output": lambda slope, v, u: 1 - v**2,
    "v (1 - v) of its input v, as sigmoid's is of the output": lambda slope, v, u: v * (1 - v),
    "1 - u^2 of its output u, which is tanh's": lambda slope, v, u: 1 - u**2,
    "u (1 - u) of its output u, which is sigmoid's": lambda slope, v, u: u * (1 - u),
    "1 - u of its output u, of tanh's 1 - u^2 or sigmoid's u (1 - u)": lambda slope, v, u: 1 - u,
}
"""What may stand for g'(v), by how it is said: of the slope as a function, of v, and of u."""

ELEMENTWISE = frozenset(
    {"acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "cos", "cosh", "digamma", "erf", "erf_inv", "erfc"}
    | {"exp", "exp2", "expm1", "integer_pow", "lgamma", "log", "log1p", "logistic", "max", "min", "pow", "rsqrt", "sin"}
    | {"sinh", "sqrt", "square", "tan", "tanh"}
)
"""Primitives of one array, and of constants beside it."""

MOST = 24
"""How many functions are tried, one by one and together."""

MOST_NUMBERS = 10**7
"""How many numbers the cotangents of all that is tried may be; of larger arrays less is tried."""


def slope(r: Residual) -> Diagnosis | None:
    """The oracle with another slope of one function, or of all that are the same."""
    if r.slopes is None or not is_clear(r, r.hand - r.oracle, r.oracle):
        return None
    for label, v in r.slopes().items():
        if v.shape == r.oracle.shape and np.isfinite(v).all() and agree(r, v):
            return Diagnosis("slope", label)
    return None


def with_other_slopes(
    primal: Callable[[Values], PyTree], names: Sequence[str], points: Sequence[Point]
) -> dict[str, dict[str, np.ndarray]]:
    """For every differentiable argument by name: what is tried, in words, and the cotangent that it makes.

    `primal` and the cotangents' shapes are as in `contributions`.
    """
    with jax.enable_x64(True):
        program = jax.make_jaxpr(lambda values: jax.tree.leaves(primal(values)))(points[0].leaves)
        number, groups = _functions(program)
        tried = [(label, calls, k + 1) for label, calls in groups.items() for k in range(len(STANDS_IN))]
        numbers = sum(np.size(v) for v in points[0].leaves) * len(points) * len(points[0].dys[0])
        tried = tried[: MOST_NUMBERS // max(numbers, 1)]
        if not tried:
            return {name: {} for name in names}
        rows = np.zeros((len(tried), len(number)), np.int32)
        for row, (_, calls, k) in zip(rows, tried, strict=True):
            row[calls] = k
        of_rows = by_row(lambda row, *leaves: _switched(program, number, row, leaves), rows, names, points)(rows)
    said = [f"{with_names(label, names)} is {list(STANDS_IN)[k - 1]}" for label, _, k in tried]
    return {name: {text: v[:, k] for k, text in enumerate(said)} for name, v in of_rows.items()}


def _functions(program: ClosedJaxpr) -> tuple[dict[int, int], dict[str, list[int]]]:
    """A number for each call of an elementwise function, by the equation's id; and which calls are tried together."""
    equations = list(islice(_elementwise(program), MOST))
    number = {id(equation): k for k, equation in enumerate(equations)}
    names = [f"the slope of `{equation.primitive.name}`" for equation in equations]
    groups = grouped([name + where(equation) for name, equation in zip(names, equations, strict=True)], "call")
    every = {f"{name} of every call": [k for k, other in enumerate(names) if other == name] for name in names}
    return number, groups | {label: calls for label, calls in every.items() if calls not in groups.values()}


def _elementwise(program: ClosedJaxpr) -> Iterator[JaxprEqn]:
    for equation in program.jaxpr.eqns:
        if _is_elementwise(equation):
            yield equation
        for inner in programs_in(equation):
            yield from _elementwise(inner)


def _is_elementwise(equation: JaxprEqn) -> bool:
    arrays = [v for v in equation.invars if not is_literal(v)]
    if equation.primitive.name not in ELEMENTWISE or len(arrays) != 1:
        return False
    v, u = types_of([*arrays, *equation.outvars])
    return v.shape == u.shape and jnp.issubdtype(v.dtype, jnp.floating)


def _switched(program: ClosedJaxpr, number: dict[int, int], which: Array, inputs: Sequence[Array]) -> list:
    """The program's outputs; where `which` is not 0 for a function, that of `STANDS_IN` is its slope."""

    def on_equation(equation: JaxprEqn, inputs: list, recurse: Recurse):
        k = number.get(id(equation))
        if k is None:
            return without_rule(equation, inputs, recurse)
        at = next(i for i, v in enumerate(equation.invars) if not is_literal(v))

        def g(v: Array) -> Array:
            return as_it_is(equation, [*inputs[:at], v, *inputs[at + 1 :]])[0]

        def of(v: Array) -> Array:
            u, pull = with_cotangents(g, v)
            return pull(jnp.ones_like(u))[0]

        still = lax.stop_gradient(inputs[at])
        u = g(still)
        slopes = jnp.stack([of(still), *(jnp.asarray(f(of, still, u), u.dtype) for f in STANDS_IN.values())])
        return [u + lax.stop_gradient(slopes[which[k]]) * (inputs[at] - still)]

    return evaluate(program, inputs, on_equation)
