"""traced: what an optimiser computes, as far as its traced program tells, so that a run is not gone on with by another.

An optax transformation is two functions, and its hyperparameters are closed over. Traced on the run's parameters, they
stand in the program as constants: the numbers are kept one by one, so that another learning rate is named; the
operations, their order, and constant arrays are kept as a digest. What is no part of a program cannot be seen: what a
callback to Python does, and what a function that is written in several ways would do at other shapes.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.extend.core import ClosedJaxpr

from bpref.programs import Atom, is_literal, programs_in, types_of, value_of
from bpref.train.keeping.begun import Json
from bpref.train.start import Start, precision
from bpref.train.step import beside, is_key
from bpref.trained import select, trainable


class Traced(NamedTuple):
    """What an optimiser computes.

    Attributes:
      given: the dtypes and shapes of the parameters that it updates, as a digest.
      program: a digest of its operations, and of constants that are arrays.
      numbers: its constants of one element each, in order, parted by spaces.
      by: the versions of the libraries that traced it; others may do the same by other operations.
    """

    given: str
    program: str
    numbers: str
    by: str


class CannotCompare(Exception):
    """It is not known whether two optimisers are the same, and why."""


def traced(optimizer: optax.GradientTransformation, begin: Start) -> Traced:
    """What `optimizer` computes for the parameters that are trained in a run."""
    J = begin.stepper.objective
    with precision(begin.dtype):
        batch = jax.tree.map(lambda v: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype), begin.data)
        trained = select(trainable(J, begin.params, beside(J, batch, begin.state.state)), begin.params)
        state = jax.eval_shape(optimizer.init, trained)
        programs = [
            jax.make_jaxpr(optimizer.init)(trained),
            jax.make_jaxpr(lambda dparams, state, params: optimizer.update(dparams, state, params))(
                trained, state, trained
            ),
        ]
    numbers: list[str] = []
    program = _digest(line for program in programs for line in _lines(program, numbers.append))
    given = _digest(f"{v.dtype}{v.shape}" for v in jax.tree.leaves(trained))
    return Traced(
        given,
        program,
        " ".join(numbers),
        ", ".join(f"{of} {importlib.metadata.version(of)}" for of in ("jax", "optax")),
    )


def difference(before: Json, now: Traced) -> str:
    """What was otherwise in an optimiser that was traced `before`; empty where nothing was, or in what it is given.

    Raises:
      CannotCompare: other versions have traced it, and other operations.
    """
    if before.get("given") != now.given:
        return ""
    if before.get("program") != now.program:
        if before.get("by") != now.by:
            raise CannotCompare(f"the optimizer was traced by {before.get('by')} before, and is by {now.by} now")
        return "the optimizer had other operations"
    pairs = zip(str(before.get("numbers")).split(), now.numbers.split(), strict=False)
    changed = dict.fromkeys((was, is_) for was, is_ in pairs if was != is_)
    if not changed:
        return ""
    were, are = (", ".join(side) for side in zip(*changed, strict=True))
    if len(changed) == 1:
        return f"a number in the optimizer was {were}, and is {are} now"
    return f"numbers in the optimizer were {were}, and are {are} now"


def _digest(lines: Iterable[str]) -> str:
    seen = hashlib.sha256()
    for line in lines:
        seen.update(line.encode() + b"\n")
    return seen.hexdigest()[:16]


def _lines(program: ClosedJaxpr, number: Callable[[str], None]) -> Iterator[str]:
    """A program in words that are the same in every process; `number` is given its constants of one element."""
    jaxpr, names = program.jaxpr, {}

    def constant(v: Array | np.ndarray) -> str:
        v = np.asarray(jax.random.key_data(v) if is_key(v) else v)
        if v.size == 1:
            number(str(v.reshape(())))
            return f"number:{v.dtype}{v.shape}"
        return f"{v.dtype}{v.shape}:{hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()}"

    def name(v: Atom) -> str:
        return constant(value_of(v)) if is_literal(v) else names[v]

    def define(atoms: list) -> str:
        names.update({v: f"v{len(names) + i}" for i, v in enumerate(atoms)})
        return " ".join(f"{names[v]}:{t.dtype}{t.shape}" for v, t in zip(atoms, types_of(atoms), strict=True))

    yield f"given {define(jaxpr.invars)}"
    for v, c in zip(jaxpr.constvars, program.consts, strict=True):
        yield f"{define([v])} = {constant(c)}"
    for equation in jaxpr.eqns:
        operands = " ".join(map(name, equation.invars))
        parameters = ", ".join(f"{key}={_said(v)}" for key, v in sorted(equation.params.items()))
        yield f"{define(equation.outvars)} = {equation.primitive.name}[{parameters}] {operands}"
        for inner in programs_in(equation):
            yield from _lines(inner, number)
    yield f"gives {' '.join(map(name, jaxpr.outvars))}"


def _said(parameter: object) -> str:
    """A parameter of an operation; of what is no number, name or tuple of those, its kind alone."""
    if isinstance(parameter, tuple | list):
        return f"({' '.join(map(_said, parameter))})"
    plain = parameter is None or isinstance(parameter, bool | int | float | str | Enum | np.dtype)
    return str(parameter) if plain else type(parameter).__name__
