"""What a traced program holds: its equations, and the programs within them."""

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


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
