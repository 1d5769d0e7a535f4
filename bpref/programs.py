"""What a traced program holds: its equations, the programs within them, and what it says of their values."""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeGuard, cast

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var


class Typed(Protocol):
    """What has a shape and a dtype: an array, a specification of one, what a program says of a value."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...


def is_typed(v: object) -> TypeGuard[Typed]:
    return hasattr(v, "dtype") and hasattr(v, "shape")


Atom = Var | Literal
"""An operand of an equation, or an output of a program: a variable, or a constant that is written into it."""


def is_literal(v: Atom) -> TypeGuard[Literal]:
    """Whether an operand in a program is a constant written into it, and not a variable."""
    return hasattr(v, "val")


def value_of(v: Literal) -> np.ndarray:
    """The constant, in its own dtype."""
    return np.asarray(v.val, cast(Typed, v.aval).dtype)


def types_of(atoms: Iterable[Atom]) -> list[Typed]:
    """The shapes and dtypes of operands or results."""
    return [cast(Typed, v.aval) for v in atoms]


def closed(program: ClosedJaxpr | Jaxpr) -> ClosedJaxpr:
    """The program, closed over no constants where it is an open one; what it lacks are then its first inputs."""
    if isinstance(program, ClosedJaxpr):
        return program
    lacking, about = program.constvars, program.debug_info
    if lacking:
        names = None if about.arg_names is None else ("",) * len(lacking) + tuple(about.arg_names)
        about = about._replace(arg_names=names)
        program = program.replace(constvars=(), invars=[*lacking, *program.invars], debug_info=about)
    return ClosedJaxpr(program, ())


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
