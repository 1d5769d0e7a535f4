"""Every change of one step of a program: a flat list of numbered equations, of which all but the changed are shared."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from jax.typing import ArrayLike

from bpref.programs import Atom, Typed, is_literal, types_of, value_of
from bpref.verify.mutating.arithmetic import Mutation, Step
from bpref.verify.mutating.mutations import mutations
from bpref.verify.oracle import Specs
from bpref.verify.programs.rewrite import CONTROL_FLOW, as_it_is
from bpref.verify.programs.strip import called

NOT_THE_USERS = (str(Path(jax.__file__).parent), str(Path(__file__).parents[1]))
"""Where code is that calls the user's: JAX's, and the verifier's."""


LOOPS = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr"), "cond": ("branches",)}
"""The primitives whose bodies are mutated too, and the parameters that hold these."""


class Node(NamedTuple):
    """One equation of a flat program: which values it reads and makes, by number, and where its code is.

    Attributes:
      line: file and line, for a reader.
      place: the exact place in the code, through all calls: shared by the equations of an unrolled loop.
    """

    equation: JaxprEqn
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    line: str
    place: tuple


class Flat(NamedTuple):
    """A program with all calls inlined. Values are numbered; its inputs come first.

    Attributes:
      types: shape and dtype of every value.
      constants: those values that are known.
      nodes: the equations, in order.
      outputs: the values that it returns.
    """

    types: Specs
    constants: dict[int, ArrayLike]
    nodes: list[Node]
    outputs: list[int]


def flattened(program: ClosedJaxpr, line: str = "") -> Flat:
    """A closed jaxpr with the calls in it inlined; `line` is said of an equation that has none of its own."""
    flat = Flat([], {}, [], [])

    def new(aval: Typed) -> int:
        flat.types.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        return len(flat.types) - 1

    def constant(aval: Typed, value: ArrayLike) -> int:
        flat.constants[number := new(aval)] = value
        return number

    def walk(program: ClosedJaxpr, inputs: Sequence[int], line: str, place: tuple) -> list[int]:
        jaxpr = program.jaxpr
        of = dict(zip(jaxpr.invars, inputs, strict=True))
        of.update((v, constant(v.aval, c)) for v, c in zip(jaxpr.constvars, program.consts, strict=True))

        def number(v: Atom) -> int:
            return constant(types_of([v])[0], value_of(v)) if is_literal(v) else of[v]

        for equation in jaxpr.eqns:
            ins, name = [number(v) for v in equation.invars], equation.primitive.name
            own_line, own_place = origin(equation)
            here = (own_line or line, place + own_place)
            if (inner := called(equation)) is not None:
                outs = walk(inner, ins, *here)
            elif name == "convert_element_type" and ins[0] in flat.constants:
                aval = equation.outvars[0].aval
                outs = [constant(aval, np.asarray(flat.constants[ins[0]]).astype(aval.dtype))]
            else:
                outs = [new(v.aval) for v in equation.outvars]
                flat.nodes.append(Node(equation, tuple(ins), tuple(outs), *here))
            of.update(zip(equation.outvars, outs, strict=True))
        return [number(v) for v in jaxpr.outvars]

    flat.outputs.extend(walk(program, [new(v.aval) for v in program.jaxpr.invars], line, ()))
    return flat


def values_of(program: Flat, inputs: Sequence[ArrayLike]) -> dict[int, ArrayLike]:
    """Every value of a program."""
    values = dict(enumerate(inputs)) | program.constants
    for node in program.nodes:
        values.update(zip(node.outs, as_it_is(node.equation, [values[i] for i in node.ins]), strict=True))
    return values


def outputs_with(
    program: Flat, values: dict[int, ArrayLike], at: int, apply: Callable[..., Sequence[ArrayLike]]
) -> list[ArrayLike]:
    """The outputs where the node `at` computes `apply`; only what depends on it is computed again."""
    node = program.nodes[at]
    new = dict(zip(node.outs, apply(*(values[i] for i in node.ins)), strict=True))
    for later in program.nodes[at + 1 :]:
        if any(i in new for i in later.ins):
            operands = [new.get(i, values[i]) for i in later.ins]
            new.update(zip(later.outs, as_it_is(later.equation, operands), strict=True))
    return [new.get(i, values[i]) for i in program.outputs]


def used_values(program: Flat) -> set[int]:
    """The values on which an output depends."""
    used = set(program.outputs)
    for node in reversed(program.nodes):
        if used.intersection(node.outs):
            used.update(node.ins)
    return used


def origin(equation: JaxprEqn) -> tuple[str, tuple]:
    """File and line that an equation comes from, in whoever's code calls JAX, and the exact place; empty if unknown."""
    trace = equation.source_info.traceback
    if not trace:
        return "", ()
    lines = [(f.file_name, f.line_num) for f in trace.frames if _is_users(f.file_name)]
    # Two products in one line are two places, which the line's number does not tell.
    raw = getattr(trace, "raw_frames", None)
    place = [(c.co_filename, at) for c, at in zip(*raw(), strict=True) if _is_users(c.co_filename)] if raw else lines
    return next((f"{Path(file).name}:{line}" for file, line in lines), ""), tuple(place)


def _is_users(file: str) -> bool:
    return not file.startswith(NOT_THE_USERS)


class Change(NamedTuple):
    """A mutation of one node.

    Attributes:
      key: what finds it again in the same program of other dtypes.
      name: as in `Mutant`.
      at: the index of the node.
      mutation: of that node; of a loop, the whole loop with one step of its body changed.
      harmless: why it changes nothing, as far as that is known beforehand.
      alike: what it has in common with the same change in other rounds of an unrolled loop.
    """

    key: tuple
    name: str
    at: int
    mutation: Mutation
    harmless: str
    alike: tuple


def changes_of(program: Flat, prefix: str = "") -> Iterator[Change]:
    """Every change of one step, legal or not."""
    seen: Counter[str] = Counter()
    used = used_values(program)
    for at, node in enumerate(program.nodes):
        name = node.equation.primitive.name
        address, shown = (name, seen[name]), f"{prefix}{name}[{at}]"
        seen[name] += 1
        unused = "" if used.intersection(node.outs) else "its result reaches no output"
        if name in LOOPS:
            for inner, change in _changes_in_bodies(node, shown):
                alike = (node.place, name, inner[0], change.alike)
                yield Change((address, *inner), change.name, at, change.mutation, unused or change.harmless, alike)
        elif name != "convert_element_type":
            labels: Counter[str] = Counter()
            for mutation in mutations(_step(program, node)):
                labels[mutation.label] += 1
                again = f" ({labels[mutation.label]})" if labels[mutation.label] > 1 else ""
                full = f"{mutation.label} {shown}{mutation.detail}{again}{node.line and f' ({node.line})'}"
                alike = (node.place, name, mutation.label + again)
                yield Change((address, mutation.label + again), full, at, mutation, unused, alike)


def is_legal(program: Flat, change: Change) -> bool:
    """Whether the changed step can be traced, and gives what the step gives: same number, shapes and dtypes."""
    node = program.nodes[change.at]
    try:
        results = jax.eval_shape(change.mutation.apply, *(program.types[i] for i in node.ins))
    except (TypeError, ValueError, IndexError, KeyError, NotImplementedError, AssertionError, ZeroDivisionError):
        return False
    expected = [(program.types[i].shape, program.types[i].dtype) for i in node.outs]
    return [(v.shape, v.dtype) for v in results] == expected


def _changes_in_bodies(node: Node, shown: str) -> Iterator[tuple[tuple, Change]]:
    """The changes of the programs that a loop holds, as changes of the loop."""
    params = node.equation.params
    bodies = [v for name in LOOPS[node.equation.primitive.name] for v in _as_tuple(params[name])]
    for n, body in enumerate(bodies):
        flat = flattened(body, node.line)
        for change in changes_of(flat, f"{shown}."):
            if not is_legal(flat, change):
                continue

            def apply(*operands, change=change, flat=flat, body=body):
                def recurse(inner, inputs):
                    if inner is body:
                        return outputs_with(flat, values_of(flat, inputs), change.at, change.mutation.apply)
                    return jaxpr_as_fun(inner)(*inputs)

                return CONTROL_FLOW[node.equation.primitive.name](node.equation, operands, recurse)

            yield (n, *change.key), change._replace(mutation=change.mutation._replace(apply=apply))


def _as_tuple(v: object) -> tuple:
    return v if isinstance(v, tuple) else (v,)


def _step(program: Flat, node: Node) -> Step:
    def bind(operands, **changed):
        return as_it_is(node.equation, operands, **changed)

    known = {n: program.constants[i] for n, i in enumerate(node.ins) if i in program.constants}
    single = {n: v for n, v in known.items() if np.size(v) == 1}
    operands = tuple(program.types[i] for i in node.ins)
    return Step(node.equation.primitive.name, bind, node.equation.params, operands, single)


def rounds_apart(changes: Sequence[Change]) -> list[Change]:
    """Without the changes in an unrolled loop's inner rounds: those in the first and in the last are left."""
    rounds: defaultdict[tuple, list[Change]] = defaultdict(list)
    for change in changes:
        rounds[change.alike].append(change)
    kept = {c.key for alike in rounds.values() for c in (alike[0], alike[-1])}
    return [c for c in changes if c.key in kept]
