"""Evaluating a program equation by equation, with a say in each: what stripping, lifting and auditing are made of.

`evaluate` walks a closed jaxpr, and hands every equation to a function that may answer with outputs of its own.
Where that answers `NotImplemented`, an equation that holds programs is traced again through JAX's public function
for it (`CONTROL_FLOW`), so that the equations inside are handed over too, and any other is bound as it is. The
result can be traced in its turn, and so runs under jit, vmap and autodiff.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NotImplementedType
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import Atom, all_equations, closed, is_literal
from bpref.verify.naming import place


def as_it_is(equation: JaxprEqn, inputs: Sequence[ArrayLike], **changed: object) -> list:
    """The outputs of an equation bound as it is, a custom rule with its rule; `changed` replaces parameters."""
    parameters = equation.primitive.get_bind_params(equation.params | changed)
    outputs = equation.primitive.bind(*inputs, **parameters)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def constants_and_carry(scan: Mapping) -> tuple[int, int]:
    """Of a scan's inputs, how many come first and stay, and how many follow and are carried on; by its parameters."""
    if "ft_in" in scan:  # since JAX 0.11
        constants, carry, _ = scan["ft_in"].unpack()
        return len(constants), len(carry)
    return scan["num_consts"], scan["num_carry"]


def retrace_scan(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """`lax.scan` over the same axis, in the same direction; the inputs are constants, carry and what is scanned."""
    p = equation.params
    consts, init, xs = split(inputs, *constants_and_carry(p))

    def body(carry, x):
        outputs = recurse(p["jaxpr"], [*consts, *carry, *x])
        return strong(outputs[: len(init)]), outputs[len(init) :]

    carry, ys = lax.scan(body, strong(init), xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"])
    return [*carry, *ys]


def retrace_while(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """`lax.while_loop`, from the same parts."""
    return lax.while_loop(*parts_of_while(equation, inputs, recurse))


def parts_of_while(
    equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable
) -> tuple[Callable, Callable, list]:
    """A loop's predicate, its body and its first carry.

    A predicate with a shape, as vmap makes it, is true while any element goes on; the body then keeps the others.
    """
    p = equation.params
    of_cond, of_body, init = split(inputs, p["cond_nconsts"], p["body_nconsts"])

    def each_going(carry):
        return recurse(p["cond_jaxpr"], [*of_cond, *carry])[0]

    def body(carry):
        return strong(recurse(p["body_jaxpr"], [*of_body, *carry]))

    def body_where_going(carry):
        on = each_going(carry)
        return [_select(on, new, old) for new, old in zip(body(carry), carry, strict=True)]

    if p["cond_jaxpr"].out_avals[0].shape:
        return lambda carry: jnp.any(each_going(carry)), body_where_going, strong(init)
    return each_going, body, strong(init)


def retrace_cond(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """`lax.switch`; the branches of `lax.platform_dependent` are called through the same function again."""
    index, *operands = inputs
    branches = [lambda *xs, b=b: strong(recurse(b, xs)) for b in equation.params["branches"]]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        return lax.switch(index, branches, *operands)
    named = {p: b for ps, b in zip(platforms, branches, strict=True) if ps is not None for p in ps}
    default = branches[platforms.index(None)] if None in platforms else None
    return lax.platform_dependent(*operands, default=default, **named)


def retrace_remat(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """`jax.checkpoint`, with its policy."""
    p = equation.params
    body = closed(p["jaxpr"])
    again = jax.checkpoint(lambda *xs: recurse(body, xs), policy=p["policy"], prevent_cse=p["prevent_cse"])
    return again(*inputs)


def retrace_linear_solve(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """`lax.custom_linear_solve`: its derivative solves the same equation again, and is JAX's own, no user's rule."""
    if "jaxprs" not in equation.params:  # another library's primitive of this name, such as lineax's
        return as_it_is(equation, inputs)
    programs, lengths = equation.params["jaxprs"], equation.params["const_lengths"]
    *consts, b = split(inputs, *lengths)
    of = dict(zip(programs._fields, zip(programs, consts, strict=True), strict=True))

    def call(name: str, v: Sequence[ArrayLike]) -> list | tuple[list, list]:
        program, constants = of[name]
        outputs = recurse(program, [*constants, *v])
        return (outputs[: len(b)], outputs[len(b) :]) if "solve" in name and has_aux else outputs

    has_aux = len(programs.solve.out_avals) > len(b)
    outputs = lax.custom_linear_solve(
        lambda v: call("matvec", v),
        list(b),
        lambda _, v: call("solve", v),
        None if programs.transpose_solve is None else lambda _, v: call("transpose_solve", v),
        symmetric=programs.vecmat is programs.matvec,
        has_aux=has_aux,
    )
    return [*outputs[0], *outputs[1]] if has_aux else list(outputs)


def retrace_shard_map(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Callable) -> list:
    """`jax.shard_map` over the same axes of the same devices; `jax.pmap` is made of it."""
    p = equation.params
    body = closed(p["jaxpr"])
    again = jax.shard_map(
        lambda *xs: tuple(recurse(body, xs)),
        mesh=p["mesh"],
        in_specs=tuple(p["in_specs"]),
        out_specs=tuple(p["out_specs"]),
        axis_names=p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"],
        check_vma=p["check_vma"],
    )
    return list(again(*inputs))


def inline(name: str) -> Callable[..., list]:
    """Evaluates the program that is the parameter `name` in its place."""
    return lambda equation, inputs, recurse: recurse(closed(equation.params[name]), inputs)


CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr",
    "checkpoint": "jaxpr", "custom_vmap_call": "call",
}  # fmt: skip
"""The primitives that do no more than call the program in this parameter."""

CONTROL_FLOW: dict[str, Callable[..., list]] = {
    **{name: inline(parameter) for name, parameter in CALLS.items()},
    "scan": retrace_scan,
    "while": retrace_while,
    "cond": retrace_cond,
    "remat2": retrace_remat,
    "checkpoint": retrace_remat,
    "custom_linear_solve": retrace_linear_solve,
    "linear_solve": retrace_linear_solve,
    "shard_map": retrace_shard_map,
    "remat_opt": inline("fwd_jaxpr"),
}
"""How each primitive that holds programs is traced again, by its name."""


T = TypeVar("T")


def split(values: Sequence[T], *lengths: int) -> list[list[T]]:
    """Runs of these lengths from the front of a list, and the rest."""
    runs, start = [], 0
    for n in lengths:
        runs.append(list(values[start : start + n]))
        start += n
    return [*runs, list(values[start:])]


def strong(values: Sequence[ArrayLike]) -> list[Array]:
    """The same arrays, none weakly typed: a carry must leave a body as it came in, and branches must agree."""
    return [
        lax.convert_element_type(v, v.dtype) if getattr(v, "weak_type", False) else v for v in map(jnp.asarray, values)
    ]


def _select(on: Array, new: Array, old: Array) -> Array:
    return jnp.where(jnp.reshape(on, on.shape + (1,) * (new.ndim - on.ndim)), new, old)


Recurse = Callable[[ClosedJaxpr, Sequence[ArrayLike]], list]
"""`(program, inputs) -> outputs`: evaluates an inner program with the same `on_equation`."""

OnEquation = Callable[[JaxprEqn, list, Recurse], list | NotImplementedType]
"""`(equation, inputs, recurse) -> outputs`, a list, or `NotImplemented`."""


def evaluate(
    program: ClosedJaxpr,
    inputs: Sequence[ArrayLike],
    on_equation: OnEquation,
    on_constant: Callable[[ArrayLike], ArrayLike] = lambda v: v,
) -> list:
    """The outputs of `program`, with every equation in it first offered to `on_equation`.

    Args:
      program: a closed jaxpr.
      inputs: one array, traced or not, for each of its arguments.
      on_equation: the outputs of an equation, or `NotImplemented` for those that it has by itself.
      on_constant: takes each constant of the program, inner ones too, to the value that is used for it.
    """

    def recurse(inner: ClosedJaxpr, inputs: Sequence[ArrayLike]) -> list:
        return evaluate(inner, inputs, on_equation, on_constant)

    def read(v: Atom) -> ArrayLike:
        return on_constant(v.val) if is_literal(v) else values[v]

    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, map(on_constant, program.consts), strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(v) for v in equation.invars]
        with as_written(equation):
            outputs = on_equation(equation, operands, recurse)
            if outputs is NotImplemented:
                outputs = as_it_does(equation, operands, recurse)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


@contextmanager
def as_written(equation: JaxprEqn) -> Iterator[None]:
    """Lets what is traced inside have the source of `equation`; where that is JAX's own, of the equation around it."""
    source = equation.source_info
    names = source_info_util.current_name_stack() + source.name_stack
    known = source.traceback if place(source)[0] else None
    with source_info_util.user_context(known, name_stack=names), equation.ctx.manager:
        yield


def as_it_does(equation: JaxprEqn, inputs: Sequence[ArrayLike], recurse: Recurse) -> list:
    """What an equation computes, with `recurse` for the programs that it holds."""
    retrace = CONTROL_FLOW.get(equation.primitive.name)
    return retrace(equation, inputs, recurse) if retrace else as_it_is(equation, inputs)


def constants_of(program: ClosedJaxpr) -> Iterator[ArrayLike]:
    """The values that are written into a program, and into those in it."""
    yield from program.consts
    for equation in all_equations(program):
        yield from (v.val for v in equation.invars if is_literal(v))


def traced(fun: Callable, args: tuple, kwargs: dict) -> tuple[ClosedJaxpr, list, Callable[[Sequence], PyTree]]:
    """The program of `fun(*args, **kwargs)`, its inputs, and how a list of its outputs becomes the tree of `fun`'s.

    The inputs are the JAX arrays among the leaves, traced ones included. All else (numbers, strings, functions, NumPy
    arrays) is constant in JAX's eyes too, and stays what it is: a static argument stays static.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    where = [i for i, v in enumerate(leaves) if isinstance(v, jax.Array)]

    def of_arrays(*arrays):
        filled = dict(enumerate(leaves)) | dict(zip(where, arrays, strict=True))
        args, kwargs = jax.tree.unflatten(tree, list(filled.values()))
        return fun(*args, **kwargs)

    inputs = [leaves[i] for i in where]
    program, outputs = jax.make_jaxpr(of_arrays, return_shape=True)(*inputs)
    structure = jax.tree.structure(outputs)
    return program, inputs, lambda flat: jax.tree.unflatten(structure, flat)
