"""How what runs a few times only is compiled: quickly, unless one run would take longer than compiling it well."""

from collections.abc import Iterable
from functools import cache
from math import prod
from typing import Any

import jax

from bpref.verify.programs.operations import Equation

QUICK_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


Options = dict[str, Any]
"""Of XLA, by name; JAX's annotation leaves out the integers among them."""


@cache
def quick_compilation() -> Options:
    """Options for the same arithmetic in slower code, those of them that this version of XLA knows.

    An examination runs each program a few times, and compiling it is the cost: they save four fifths of it.
    """

    def is_known(name: str, value: int | bool) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in QUICK_OPTIONS.items() if is_known(name, value)}


MANY = 1_000_000
"""More products of a convolution than this take a few milliseconds, and quickly compiled sixty times that."""


def compilation_of(equations: Iterable[Equation]) -> Options:
    """Options for a program of these equations: quick ones, unless it convolves much."""
    return {} if any(products(equation) > MANY for equation in equations) else quick_compilation()


def products(equation: Equation) -> int:
    """How many products of numbers a convolution in float64 adds up, which is run more often than one in less.

    0 of any other operation, whose loops XLA does not nest.
    """
    if equation.primitive.name != "conv_general_dilated" or equation.outvars[0].aval.dtype.itemsize < 8:
        return 0
    y, (_, W) = equation.outvars[0], equation.invars
    outputs = equation.params["dimension_numbers"].rhs_spec[0]
    return prod(y.aval.shape) * prod(W.aval.shape) // W.aval.shape[outputs]
