"""Sites: every custom derivative rule that runs inside a function, with the values that really flow into it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from types import NotImplementedType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, jaxpr_as_fun
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import Atom, all_equations, programs_in, types_of, value_of
from bpref.verify.naming import place, place_of, telling_name
from bpref.verify.oracle import Leaf, as_cotangent, with_cotangents
from bpref.verify.programs.lift import as_traced
from bpref.verify.programs.rewrite import (
    CALLS,
    OnEquation,
    Recurse,
    as_it_is,
    as_written,
    constants_and_carry,
    evaluate,
    is_literal,
    parts_of_while,
    split,
    traced,
)
from bpref.verify.programs.strip import RULES_OF_JAX, body_of_rule, is_opaque, is_rule, owner_of_rule, without_rule

LOOKED_AT = 3
"""How many calls of a site are kept, and how many iterations of a loop are looked at: first, middle and last."""


class Site(NamedTuple):
    """A custom derivative rule in a program, at one place, for one set of shapes.

    Attributes:
      name: of the function that the rule belongs to.
      kind: `custom_vjp`, `custom_jvp`, `linear_call` or `call_hi_primitive`, or `primitive of PACKAGE`.
      file, line: where that function is called; the file is empty where it is unknown.
      defined: `file:line` of the rule (the backward, or the tangents'), or of the function; empty where unknown.
      calls: for each call that was kept, the inputs as NumPy arrays; none where the rule did not run.
      bound: `(*inputs) -> outputs`, a list: the call as it is, with its rule.
      primal: the same by the function's body, all rules stripped; None for a primitive, which has none.
      operands: for each input, its shape and dtype, or its value where it is a constant.
      arguments: the name of each input, where each argument is one array; else empty.
      fixed: for each input, whether JAX asks for no cotangent of it: what the function has closed over, and Python
        numbers.
    """

    name: str
    kind: str
    file: str
    line: int
    defined: str
    calls: tuple[tuple[ArrayLike, ...], ...]
    bound: Callable[..., list]
    primal: Callable[..., list] | None
    operands: tuple[Leaf, ...]
    arguments: tuple[str, ...]
    fixed: tuple[bool, ...]

    @property
    def ran(self) -> bool:
        return bool(self.calls)


def sites(fun: Callable[..., PyTree], *args: PyTree) -> list[Site]:
    """Every custom rule in `fun(*args)`, in the order in which they first run; those that did not run come last.

    `fun` is evaluated equation by equation at these values, into jit, scan, while, cond, remat and the bodies of
    other rules. Of a loop's iterations the first, the middle and the last are looked at. Calls of one rule from one
    line with the same shapes are one site, of which the first call and the two last are kept. A rule in a branch that
    was not taken, or inside a primitive that is not looked into, is listed without calls; so is a primitive to which
    another package has given a derivative rule.
    """
    found: dict[tuple, Site] = {}
    program, inputs, _ = traced(fun, tuple(map(_arrays, args)), {})
    evaluate(program, inputs, _recorder(found))
    return sorted(found.values(), key=lambda site: not site.ran)


def _recorder(found: dict[tuple, Site]) -> OnEquation:
    """For `evaluate`: puts the rules that it meets into `found`, and goes into whatever holds any."""

    def on_equation(equation: JaxprEqn, inputs: Sequence[Array], recurse: Recurse) -> list | NotImplementedType:
        name = equation.primitive.name
        if is_rule(equation):
            _add(found, equation, [tuple(map(_host, inputs))])
            return recurse(body_of_rule(equation), inputs)
        if _has_own_rule(equation):
            _add_primitive(found, equation)
        if not any(is_rule(inner) or _has_own_rule(inner) for inner in _equations_inside(equation)):
            return as_it_is(equation, inputs)
        if name in CALLS:
            return recurse(next(programs_in(equation)), inputs)
        outputs = EAGERLY[name](equation, inputs, recurse) if name in EAGERLY else as_it_is(equation, inputs)
        for inner in _equations_inside(equation):
            with as_written(inner):
                if is_rule(inner):
                    _add(found, inner, [])
                elif _has_own_rule(inner):
                    _add_primitive(found, inner)
        return outputs

    return on_equation


def _equations_inside(equation: JaxprEqn) -> Iterator[JaxprEqn]:
    for program in programs_in(equation):
        yield from all_equations(program)


def _has_own_rule(equation: JaxprEqn) -> bool:
    """Whether it is a primitive of floating-point numbers to which another package has given a derivative rule."""
    avals = map(types_of, (equation.invars, equation.outvars))
    inexact = (any(jnp.issubdtype(getattr(a, "dtype", int), jnp.inexact) for a in of) for of in avals)
    return bool(owner_of_rule(equation.primitive)) and all(inexact)


def _add_primitive(found: dict[tuple, Site], equation: JaxprEqn) -> None:
    name, kind = equation.primitive.name, f"primitive of {owner_of_rule(equation.primitive)}"
    file, line = place(source_info_util.current())
    bound = partial(as_it_is, equation)
    found.setdefault(
        (name, kind, file, line), Site(name, kind, file, line, "", (), lambda *inputs: bound(inputs), None, (), (), ())
    )


def _add(found: dict[tuple, Site], equation: JaxprEqn, calls: list[tuple]) -> None:
    params, body = equation.params, body_of_rule(equation)
    name, of_function, *where = place_of(body.jaxpr.debug_info)
    name, where = telling_name(name, of_function), [of_function, *where]
    rule = params.get("bwd") or params.get("jvp_jaxpr_fun")
    _, file, line = place_of(getattr(rule, "debug_info", None))
    if file and not file.endswith("custom_derivatives.py"):  # where `defjvps` makes a rule of its own
        where = [file, line]
    file, line = place(source_info_util.current())
    kind = equation.primitive.name
    kind = kind.removesuffix("_call") if kind in RULES_OF_JAX else kind
    key = (name, kind, file, line, *where, str(body))  # the body says shapes, dtypes and static arguments
    site = found.get(key) or _site(equation, name, kind, file, line, f"{where[0]}:{where[1]}" if where[0] else "")
    kept = [*site.calls, *calls]
    found[key] = site._replace(calls=tuple(kept if len(kept) <= LOOKED_AT else [kept[0], *kept[1 - LOOKED_AT :]]))


def _site(equation: JaxprEqn, name: str, kind: str, file: str, line: int, defined: str) -> Site:
    body, fixed = body_of_rule(equation), _fixed(equation)
    opaque = _is_opaque(equation, fixed)

    def narrowed(inputs: Sequence[Array]) -> Sequence[ArrayLike]:
        return list(map(as_traced, inputs, body.in_avals)) if opaque else inputs

    return Site(
        name=name,
        kind=kind,
        file=file,
        line=line,
        defined=defined,
        calls=(),
        bound=lambda *inputs: as_it_is(equation, narrowed(inputs)),
        primal=lambda *inputs: evaluate(body, narrowed(inputs), without_rule),
        operands=tuple(map(_operand, equation.invars)),
        arguments=_arguments(equation),
        fixed=fixed,
    )


def _operand(v: Atom) -> Leaf:
    if is_literal(v):
        return value_of(v)
    (aval,) = types_of([v])
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _arguments(equation: JaxprEqn) -> tuple[str, ...]:
    names = tuple(map(str, body_of_rule(equation).jaxpr.debug_info.arg_names or ()))
    return names if len(names) == len(equation.invars) and all(map(str.isidentifier, names)) else ()


def _fixed(equation: JaxprEqn) -> tuple[bool, ...]:
    avals = types_of(equation.invars)
    numbers = [v.shape == () and getattr(v, "weak_type", False) for v in avals]
    constants = sum(equation.params.get(n, 0) for n in ("num_consts", "num_callee_consts", "num_res"))
    closed_over = [i < constants for i in range(len(avals))]
    both = tuple(n or c for n, c in zip(numbers, closed_over, strict=True))
    return tuple(closed_over) if all(both) else both


def _is_opaque(equation: JaxprEqn, fixed: Sequence[bool]) -> bool:
    """Whether there is a kernel or a callback in the function or in its rule, which takes its own dtypes alone.

    The rule's forward, or its tangents, JAX traces once: that is done here, before it is called with other dtypes.
    """
    avals = types_of(equation.invars)

    def swept(*moving):
        given = iter(moving)
        inputs = [jnp.zeros(a.shape, a.dtype) if f else next(given) for a, f in zip(avals, fixed, strict=True)]
        y, cotangents = with_cotangents(lambda *xs: as_it_is(equation, xs), *inputs)
        return cotangents(as_cotangent(y, y))

    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a, f in zip(avals, fixed, strict=True) if not f]
    program = body = body_of_rule(equation)
    with suppress(Exception):  # it will be raised, and blamed, when the rule is checked
        program = jax.make_jaxpr(swept)(*specs)
    return is_opaque(program) or is_opaque(body)


def _arrays(tree: PyTree) -> PyTree:
    """NumPy arrays as JAX arrays, which are inputs and not constants."""
    return jax.tree.map(lambda v: jnp.asarray(v) if isinstance(v, np.ndarray | np.generic) else v, tree)


def _host(v: Array | np.ndarray | bool) -> Array | np.ndarray:
    """The value on the host; random keys stay what they are. A literal may be a plain `True`."""
    return v if not isinstance(v, bool) and jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else np.asarray(v)


def _cond(equation: JaxprEqn, inputs: Sequence[Array], recurse: Recurse) -> list:
    index, *operands = inputs
    branches = equation.params["branches"]
    return recurse(branches[min(max(int(index), 0), len(branches) - 1)], operands)


def _scan(equation: JaxprEqn, inputs: Sequence[Array], recurse: Recurse) -> list:
    """The looked-at iterations one by one, and the runs between them by the scan itself."""
    p = equation.params
    consts, carry, xs = split(inputs, *constants_and_carry(p))
    pieces = []
    for start, stop in _segments(p["length"]):
        here = range(start, stop) if not p["reverse"] else range(p["length"] - stop, p["length"] - start)
        if len(here) == 1:
            outputs = recurse(p["jaxpr"], [*consts, *carry, *(x[here[0]] for x in xs)])
            outputs = [*outputs[: len(carry)], *(jnp.expand_dims(y, 0) for y in outputs[len(carry) :])]
        else:
            cut = [x[here.start : here.stop] for x in xs]
            outputs = as_it_is(equation, [*consts, *carry, *cut], length=len(here))
        carry, ys = outputs[: len(carry)], outputs[len(carry) :]
        pieces.append(ys)
    if not pieces:
        return as_it_is(equation, inputs)
    ordered = pieces[::-1] if p["reverse"] else pieces
    return [*carry, *(jnp.concatenate(parts) for parts in zip(*ordered, strict=True))]


def _while(equation: JaxprEqn, inputs: Sequence[Array], recurse: Recurse) -> list:
    """The loop is run once to count its iterations, and again up to each one that is looked at."""
    going, body, carry = parts_of_while(equation, inputs, lambda program, values: jaxpr_as_fun(program)(*values))
    looking, looking_body, _ = parts_of_while(equation, inputs, recurse)

    @jax.jit
    def run(most, carry):
        """At most so many iterations: how many there were, and the carry."""
        return lax.while_loop(
            lambda s: jnp.logical_and(s[0] < most, going(s[1])), lambda s: (s[0] + 1, body(s[1])), (jnp.int32(0), carry)
        )

    looking(carry)
    count = int(run(jnp.int32(jnp.iinfo(jnp.int32).max), carry)[0])
    for start, stop in _segments(count):
        carry = looking_body(carry) if stop - start == 1 else run(jnp.int32(stop - start), carry)[1]
    return list(carry)


EAGERLY = {"cond": _cond, "scan": _scan, "while": _while}


def _segments(length: int) -> Iterator[tuple[int, int]]:
    """The iterations, cut so that each looked at stands alone: 0; 1 to m-1; m; m+1 to n-2; n-1."""
    looked_at = {math.floor(k * (length - 1) / (LOOKED_AT - 1)) for k in range(LOOKED_AT)} if length else set()
    cuts = sorted({0, length} | looked_at | {i + 1 for i in looked_at})
    return pairwise(cuts)
