"""Evaluating a program equation by equation, with a say in each: what stripping, lifting and auditing are made of.

`evaluate` walks a closed jaxpr, and hands every equation to a function that may answer with outputs of its own.
Where that answers `NotImplemented`, an equation that holds programs is traced again through JAX's public function
for it (`bpref.verify.loops`), so that the equations inside are handed over too, and any other is bound as it is.
The result can be traced in its turn, and so runs under jit, vmap and autodiff.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from bpref.verify.loops import CONTROL_FLOW, as_it_is, closed
from bpref.verify.place import place

Recurse = Callable[[ClosedJaxpr, Sequence[Any]], list]
"""`(program, inputs) -> outputs`: evaluates an inner program with the same `on_equation`."""

OnEquation = Callable[[JaxprEqn, list, Recurse], Any]
"""`(equation, inputs, recurse) -> outputs`, a list, or `NotImplemented`."""


def evaluate(
    program: ClosedJaxpr,
    inputs: Sequence[Any],
    on_equation: OnEquation,
    on_constant: Callable[[Any], Any] = lambda v: v,
) -> list:
    """The outputs of `program`, with every equation in it first offered to `on_equation`.

    Args:
      program: a closed jaxpr.
      inputs: one array, traced or not, for each of its arguments.
      on_equation: the outputs of an equation, or `NotImplemented` for those that it has by itself.
      on_constant: takes each constant of the program, inner ones too, to the value that is used for it.
    """

    def recurse(inner: ClosedJaxpr, inputs: Sequence[Any]) -> list:
        return evaluate(inner, inputs, on_equation, on_constant)

    def read(v: Any) -> Any:
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


def as_it_does(equation: JaxprEqn, inputs: Sequence[Any], recurse: Recurse) -> list:
    """What an equation computes, with `recurse` for the programs that it holds."""
    retrace = CONTROL_FLOW.get(equation.primitive.name)
    return retrace(equation, inputs, recurse) if retrace else as_it_is(equation, inputs)


def programs_in(equation: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The programs that an equation holds, in the order of its parameters; of a custom rule, its primal's body."""
    for parameter in equation.params.values():
        for v in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(v, ClosedJaxpr | Jaxpr):
                yield closed(v)


def all_equations(program: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Every equation of a program and of the programs in it, an outer one before those that it holds."""
    for equation in program.jaxpr.eqns:
        yield equation
        for inner in programs_in(equation):
            yield from all_equations(inner)


def constants_of(program: ClosedJaxpr) -> Iterator[Any]:
    """The values that are written into a program, and into those in it."""
    yield from program.consts
    for equation in all_equations(program):
        operands: list[Any] = [*equation.invars]
        yield from (v.val for v in operands if is_literal(v))


def is_literal(v: Any) -> bool:
    """Whether an operand in a program is a constant written into it, and not a variable."""
    return hasattr(v, "val")


def traced(fun: Callable, args: tuple, kwargs: dict) -> tuple[ClosedJaxpr, list, Callable[[Sequence[Any]], Any]]:
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
