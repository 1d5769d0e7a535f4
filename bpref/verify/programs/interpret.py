"""Running a small program without compiling it: its equations one by one, in NumPy, in float64.

An examination runs a program a few dozen times, and XLA takes longer to compile a small one than NumPy does to run it
so often. A program is laid out as a list of steps over numbered values: functions under jit and the bodies of custom
rules are part of it, what is computed in the same way from the same values is computed once, and loops and branches
are steps that hold lists of their own.
"""

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive
from jaxtyping import PyTree

from bpref.programs import Atom, Typed, is_literal, programs_in, types_of, value_of
from bpref.verify.programs.operations import ELEMENTWISE, WITH_PARAMETERS, Equation, Operation
from bpref.verify.programs.quick import compilation_of, products
from bpref.verify.programs.rewrite import constants_and_carry, split
from bpref.verify.programs.strip import OPAQUE, called

COSTLY = 20_000
"""What a program costs at most that is not compiled, in microseconds of a run."""

DTYPES = frozenset(map(np.dtype, ("bool", "int32", "int64", "uint8", "uint32", "uint64", "float64", "complex128")))
"""What NumPy computes with as JAX does on every device."""

OnResult = Callable[[np.ndarray, int, str], np.ndarray]
"""`(array, place, primitive) -> array`: what an operation's result is taken for; `place` is the same at each run."""


class CannotInterpret(Exception):
    """A program that is to be compiled; the message says why."""


class Instruction(NamedTuple):
    primitive: str
    run: Operation
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_one: bool
    is_loop: bool


class Interpreted:
    """A program laid out to be run."""

    def __init__(self, program: ClosedJaxpr):
        self.constants: dict[int, np.ndarray] = {}
        self.steps: list[Instruction] = []
        self.cost = 0.0
        self._count = len(program.jaxpr.invars)
        self._known: dict[Hashable, tuple[int, ...]] = {}
        for v in program.jaxpr.invars:
            _require(v.aval)
        self.outputs = self._lay_out(program, range(self._count))
        self._known.clear()

    def run(self, inputs: Sequence[np.ndarray], on_result: OnResult | None = None) -> list[np.ndarray]:
        """The outputs, arrays of NumPy."""
        values: dict[int, np.ndarray] = dict(enumerate(inputs)) | self.constants
        for step in self.steps:
            operands = [values[i] for i in step.inputs]
            results = step.run(on_result, *operands) if step.is_loop else step.run(*operands)
            results = (results,) if step.is_one else results
            for i, v in zip(step.outputs, results, strict=True):
                values[i] = v if on_result is None or step.is_loop else on_result(v, i, step.primitive)
        return [np.asarray(values[i]) for i in self.outputs]

    def only(self, places: Sequence[int]) -> "Interpreted":
        """The same with some of the outputs, and no more steps than these need."""
        part = copy(self)
        part.outputs = [self.outputs[i] for i in places]
        needed, kept = set(part.outputs), []
        for step in reversed(self.steps):
            if not needed.isdisjoint(step.outputs):
                needed.update(step.inputs)
                kept.append(step)
        part.steps = kept[::-1]
        return part

    def _lay_out(self, program: ClosedJaxpr, inputs: Sequence[int]) -> list[int]:
        jaxpr = program.jaxpr
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        numbers.update((v, self._constant(c)) for v, c in zip(jaxpr.constvars, program.consts, strict=True))

        def number(v: Atom) -> int:
            return self._constant(value_of(v)) if is_literal(v) else numbers[v]

        for equation in jaxpr.eqns:
            operands = tuple(map(number, equation.invars))
            name = equation.primitive.name
            if (inner := called(equation)) is not None:
                found = self._lay_out(inner, operands)
            elif name == "custom_linear_solve":
                of, lengths = equation.params["jaxprs"], equation.params["const_lengths"]
                *consts, b = split(operands, *lengths)
                found = self._lay_out(of.solve, [*dict(zip(of._fields, consts, strict=True))["solve"], *b])
            else:
                found = self._step(equation, operands)
            numbers.update(zip(equation.outvars, found, strict=True))
        return [number(v) for v in jaxpr.outvars]

    def _constant(self, v: Array | np.ndarray) -> int:
        _require(v)
        v = np.asarray(v)
        return self._once(
            ("constant", v.dtype, v.shape, v.tobytes()), 1, lambda out: self.constants.update({out[0]: v})
        )[0]

    def _step(self, equation: JaxprEqn, operands: tuple[int, ...]) -> tuple[int, ...]:
        name = equation.primitive.name
        if equation.effects or name in OPAQUE:
            raise CannotInterpret(f"{name} is not one of NumPy's")
        sizes = [_require(v) for v in types_of(equation.outvars)]
        loop = LOOPS.get(name)
        if loop is None and name not in WITH_PARAMETERS and any(True for _ in programs_in(equation)):
            raise CannotInterpret(f"{name} holds programs")
        run, cost = (
            loop(equation) if loop else (_operation(equation), 2 + 1e-3 * sum(sizes) + 3e-4 * products(equation))
        )

        def add(outputs: tuple[int, ...]) -> None:
            self.cost += cost
            if self.cost > COSTLY:
                raise CannotInterpret("it is large")
            self.steps.append(
                Instruction(name, run, operands, outputs, not equation.primitive.multiple_results, bool(loop))
            )

        parameters = tuple((k, str(v) if isinstance(v, Jaxpr | ClosedJaxpr) else v) for k, v in equation.params.items())
        return self._once((name, parameters, operands), len(sizes), add)

    def _once(
        self, what: Hashable, n: int, make: Callable[[tuple[int, ...]], None] = lambda _: None
    ) -> tuple[int, ...]:
        """The numbers of `n` values; where they were made in the same way before, theirs."""
        try:
            if what in self._known:
                return self._known[what]
        except TypeError:  # a parameter that has no hash
            what = object()
        self._known[what] = numbers = tuple(range(self._count, self._count + n))
        self._count += n
        make(numbers)
        return numbers


def _require(v: Typed) -> int:
    """The size of an array, which NumPy has to know as JAX does."""
    if getattr(v, "dtype", None) not in DTYPES:
        raise CannotInterpret(f"it computes with {getattr(v, 'dtype', v)}")
    return int(np.prod(v.shape, dtype=int))


def _scan(equation: JaxprEqn) -> tuple[Operation, float]:
    p = equation.params
    n_constants, n_carry = constants_and_carry(p)
    body, length = Interpreted(p["jaxpr"]), p["length"]
    shapes = [(length, *v.shape) for v in p["jaxpr"].out_avals[n_carry:]]
    dtypes = [v.dtype for v in p["jaxpr"].out_avals[n_carry:]]

    def run(on_result: OnResult | None, *inputs: np.ndarray) -> list[np.ndarray]:
        constants, carry, xs = split(inputs, n_constants, n_carry)
        ys = [np.empty(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        for i in range(length)[:: -1 if p["reverse"] else 1]:
            outputs = body.run([*constants, *carry, *(x[i] for x in xs)], on_result)
            carry = outputs[:n_carry]
            for y, v in zip(ys, outputs[n_carry:], strict=True):
                y[i] = v
        return [*carry, *ys]

    return run, length * body.cost


def _cond(equation: JaxprEqn) -> tuple[Operation, float]:
    branches = [Interpreted(branch) for branch in equation.params["branches"]]

    def run(on_result: OnResult | None, index: np.ndarray, *operands: np.ndarray) -> list[np.ndarray]:
        return branches[int(np.clip(index, 0, len(branches) - 1))].run(operands, on_result)

    return run, max(branch.cost for branch in branches)


LOOPS: dict[str, Callable[[JaxprEqn], tuple[Operation, float]]] = {"scan": _scan, "cond": _cond}
"""How an equation that holds programs is run, and what that costs, by its primitive's name."""


def _operation(equation: Equation) -> Operation:
    """What an equation that holds no programs computes.

    What NumPy has not is asked of JAX, a primitive at a time, which compiles it once for each shape and keeps it.
    """
    name = equation.primitive.name
    if name in ELEMENTWISE and not _is_special(equation):
        return ELEMENTWISE[name]
    made = WITH_PARAMETERS[name](equation) if name in WITH_PARAMETERS else None
    return made or _by_jax(equation)


def _by_jax(equation: Equation) -> Operation:
    parameters = equation.primitive.get_bind_params(equation.params)
    run = _compiled(equation.primitive, tuple(parameters.items()), tuple(compilation_of([equation]).items()))

    def bound(*arrays: np.ndarray) -> np.ndarray | list[np.ndarray]:
        with jax.enable_x64(True):
            return jax.device_get(run(*arrays))

    return bound


Items = tuple[tuple[str, Hashable], ...]
"""A dict that is hashed."""


@lru_cache(512)
def _compiled(primitive: Primitive, parameters: Items, options: Items) -> Callable[..., PyTree]:
    return jax.jit(lambda *arrays: primitive.bind(*arrays, **dict(parameters)), compiler_options=dict(options))


def _is_special(equation: Equation) -> bool:
    """Whether NumPy may mean something else: quotients of integers, and accuracies that were asked for."""
    of_integers = equation.primitive.name in ("div", "rem", "sign") and equation.outvars[0].aval.dtype.kind in "iub"
    return of_integers or equation.params.get("accuracy") is not None
