"""Mutants: a backward with one step of its program changed, to see whether a checker notices.

A mutant that computes what the original does proves nothing about a checker. Those are set aside with the reason:
`equivalents` lists them.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import is_typed
from bpref.verify.mutating.arithmetic import differs_at_ties_only
from bpref.verify.mutating.changes import (
    Change,
    Flat,
    changes_of,
    flattened,
    is_legal,
    outputs_with,
    rounds_apart,
    values_of,
)
from bpref.verify.numbers.measure import relative_error, widened
from bpref.verify.numbers.points import fill, generator, is_specification, near, smallest_axis
from bpref.verify.options import require_callable, require_points
from bpref.verify.oracle import Leaf
from bpref.verify.programs.quick import quick_compilation
from bpref.verify.programs.rewrite import as_it_is
from bpref.verify.programs.running import as_if_at_home

POINTS = 5
EQUAL = 1e-13
"""The relative error in float64 up to which two results are the same."""
ROUND_OFF = 1e-10
"""The relative error in float64 up to which they cannot be told apart from two that are."""


class Mutant(NamedTuple):
    """A changed backward.

    Attributes:
      name: the change, the step with its index in the program (in a loop's body, after the loop's), and its line.
      backward: a function with the original's signature and output tree, for any dtypes, under jit and vmap.
      equivalent: empty, or why it computes what the original, or another mutant, computes.
    """

    name: str
    backward: Callable[..., PyTree]
    equivalent: str = ""


def mutants(backward: Callable[..., PyTree], *args: PyTree, points: Sequence[tuple] | None = None) -> Iterator[Mutant]:
    """Backwards with one change each, none of which computes what the original or another one does.

    A term is dropped or negated, operands are swapped, a constant, an axis, a comparison, a transposition, a reduction
    or a function is replaced by another, an index is off by one. `jit` is looked through; the bodies of `scan`,
    `while_loop` and `cond` are changed too.

    Args:
      backward: any JAX function of `args`.
      args: arrays or `jax.ShapeDtypeStruct`s, or pytrees of them; other leaves are static.
      points: tuples like `args`, at which mutants are compared with the original; random ones near `args` if None.

    Example:
      >>> def backward(x, dy):
      ...     return dy * jnp.cos(x)
      >>> next(bpref.mutants(backward, jnp.ones(3), jnp.ones(3))).name.split(" (")[0]
      'sin for cos[0]'

    Raises:
      TypeError, ValueError: `backward` is no function; `points` are no tuples like `args`, or none; at no point are all
        results finite. And whatever `backward` raises.
    """
    _require("mutants", backward, args, points)
    return (m for m in all_mutants(backward, *args, points=points) if not m.equivalent)


def equivalents(backward: Callable[..., PyTree], *args: PyTree, points: Sequence[tuple] | None = None) -> list[Mutant]:
    """The changes that `mutants` leaves out, each with the reason.

    Example:
      >>> def backward(x, dy):
      ...     return dy * jnp.cos(x) * 1.0
      >>> len(bpref.equivalents(backward, jnp.ones(3), jnp.ones(3))) >= 1
      True
    """
    _require("equivalents", backward, args, points)
    return [m for m in all_mutants(backward, *args, points=points) if m.equivalent]


def _require(caller: str, backward: object, args: tuple, points: object) -> None:
    require_callable(caller, "backward", backward)
    require_points(caller, points, len(args))


class Traced(NamedTuple):
    """A function's flat program for arguments of certain shapes and dtypes."""

    program: Flat
    changes: dict[tuple, Change]
    to_tree: Callable[[Sequence], PyTree]


class _Versions:
    """The flat programs of one backward, one for each combination of shapes and dtypes that it is called with."""

    def __init__(self, backward: Callable[..., PyTree]):
        self.backward = backward
        self.known: dict[Hashable, Traced] = {}

    @np.errstate(over="ignore")  # the largest number that there is, doubled
    def of(self, args: tuple) -> tuple[Traced, list]:
        """The program for these arguments, and its inputs: the arrays among them. Other leaves are static."""
        leaves, tree = jax.tree.flatten(args)
        where = [i for i, v in enumerate(leaves) if _is_array(v)]
        static = [(i, v) for i, v in enumerate(leaves) if i not in where and isinstance(v, bool | int | float | str)]
        types = [(leaves[i].shape, leaves[i].dtype) for i in where]
        key = (tree, tuple(types), tuple(map(repr, static)), jax.config.read("jax_enable_x64"))
        if key in self.known:
            return self.known[key], [leaves[i] for i in where]
        structure = None

        def of_arrays(*arrays):
            nonlocal structure
            filled = dict(enumerate(leaves)) | dict(zip(where, arrays, strict=True))
            outputs, structure = jax.tree.flatten(self.backward(*jax.tree.unflatten(tree, list(filled.values()))))
            return outputs

        program = jax.make_jaxpr(of_arrays)(*(jax.ShapeDtypeStruct(*t) for t in types))
        flat = flattened(program)
        changes = {change.key: change for change in changes_of(flat)}
        traced = Traced(flat, changes, partial(jax.tree.unflatten, structure))
        cacheable = len(where) + len(static) == len(leaves)
        if cacheable and not any(isinstance(c, Tracer) for c in program.consts):
            self.known[key] = traced
        return traced, [leaves[i] for i in where]

    def changed(self, key: tuple, *args: PyTree) -> PyTree:
        """The backward with one change."""
        traced, inputs = self.of(args)
        if key not in traced.changes:
            raise ValueError(f"for these dtypes or shapes the backward has no step {key}, which this mutant changes")
        values = values_of(traced.program, inputs)
        change = traced.changes[key]
        return traced.to_tree(outputs_with(traced.program, values, change.at, change.mutation.apply))


@as_if_at_home
@np.errstate(over="ignore")
def all_mutants(
    backward: Callable[..., PyTree],
    *args: PyTree,
    points: Sequence[tuple] | None = None,
    chosen: Callable[[list[Change]], list[Change]] = list,
) -> list[Mutant]:
    """`mutants` and `equivalents` in one list, in the order of the program, for the work of one of them.

    Of a long program's changes only those that are `chosen` are compiled and run.
    """
    versions = _Versions(backward)
    tried = [widened(p) for p in points] if points is not None else _points(args)
    with jax.enable_x64(True):
        traced, _ = versions.of(tried[0])
        changes = rounds_apart([c for c in traced.changes.values() if c.mutation.changes])
        changes = chosen([c for c in changes if is_legal(traced.program, c)])
        seen = _seen(traced.program, changes, [versions.of(p)[1] for p in tried])
    reasons = _equivalences(traced.program, changes, seen)
    return [Mutant(c.name, partial(versions.changed, c.key), why) for c, why in zip(changes, reasons, strict=True)]


class Outputs(NamedTuple):
    """What a program gave at each point where it is finite: outputs as lists of NumPy arrays.

    Attributes:
      original: one entry for each point.
      changed: likewise, for each change that is not known to be harmless, by its key.
      disturbed: likewise, by the index of a node: its first result replaced by random values.
    """

    original: list[list[np.ndarray]]
    changed: dict[tuple, list[list[np.ndarray]]]
    disturbed: dict[int, list[list[np.ndarray]]]


def _seen(program: Flat, changes: Sequence[Change], points: Sequence[Sequence[Leaf]]) -> Outputs:
    """Everything in one compiled program, which shares what the changes leave as it is."""
    rng = generator(0, 1)
    live = [c for c in changes if not c.harmless]
    floats = {c.at for c in live if jnp.issubdtype(program.types[program.nodes[c.at].outs[0]].dtype, jnp.floating)}
    noise = {at: rng.uniform(0.5, 1.5, program.types[program.nodes[at].outs[0]].shape) for at in sorted(floats)}

    def disturbance(at: int) -> Callable[..., Sequence[Array]]:
        def apply(*operands):
            first, *others = as_it_is(program.nodes[at].equation, operands)
            r = noise[at].astype(first.dtype)
            return [first * r + (r - 1), *others]

        return apply

    @partial(jax.jit, compiler_options=quick_compilation())
    def run(inputs):
        values = values_of(program, inputs)
        changed = {c.key: outputs_with(program, values, c.at, c.mutation.apply) for c in live}
        disturbed = {at: outputs_with(program, values, at, disturbance(at)) for at in noise}
        return [values[i] for i in program.outputs], changed, disturbed

    runs = [jax.device_get(run(inputs)) for inputs in points]
    runs = [r for r in runs if all(np.all(np.isfinite(v)) for v in r[0])]
    if not runs:
        raise ValueError("at no point tried are all results of the backward finite, so no mutant can be told from it")
    return Outputs(
        [original for original, _, _ in runs],
        {c.key: [changed[c.key] for _, changed, _ in runs] for c in live},
        {at: [disturbed[at] for _, _, disturbed in runs] for at in noise},
    )


def _equivalences(program: Flat, changes: Sequence[Change], seen: Outputs) -> Iterator[str]:
    """For each change, empty or the reason why it makes no mutant."""
    spacings = [float(jnp.finfo(t.dtype).eps) for t in program.types if jnp.issubdtype(t.dtype, jnp.inexact)]
    unit = max(spacings, default=0.0) / float(np.finfo(np.float64).eps)
    equal, round_off = EQUAL * unit, min(ROUND_OFF * unit, 1e-3)
    different: dict[str, np.ndarray] = {}
    directions = [generator(0, 2, i).normal(size=v.shape) for i, v in enumerate(seen.original[0])]
    count = f"{len(seen.original)} random points"
    for change in changes:
        if change.harmless:
            yield change.harmless
            continue
        outputs = seen.changed[change.key]
        error = _apart(outputs, seen.original)
        disturbed = seen.disturbed.get(change.at)
        where = program.nodes[change.at].equation.primitive.name
        if error <= round_off and disturbed and _apart(disturbed, seen.original) <= round_off:
            yield f"no output depends on this step: random values in its place give the same at {count}"
        elif error <= equal and differs_at_ties_only(where, change.mutation.label):
            yield f"differs only where the operands are equal, and gives the same at {count}"
        elif error <= equal:
            yield f"equal at {count} {'bit for bit' if error == 0 else f'to {error:.0e}'}"
        elif error <= round_off:
            yield f"within {error:.0e} of the original at {count}: not to be told from round-off"
        else:
            yield (same := _same(print_of := _fingerprint(outputs, directions), different))
            if not same:
                different[change.name] = print_of


def _apart(outputs: list[list[np.ndarray]], truth: list[list[np.ndarray]]) -> float:
    """The largest relative error over all points and outputs."""
    pairs = [(v, t) for vs, ts in zip(outputs, truth, strict=True) for v, t in zip(vs, ts, strict=True)]
    return max((float(relative_error(*map(_inexact, pair))) for pair in pairs), default=0.0)


def _inexact(v: ArrayLike) -> np.ndarray:
    v = np.asarray(v)
    return v.astype(np.complex128 if np.iscomplexobj(v) else np.float64)


def _fingerprint(outputs: list[list[np.ndarray]], directions: list[np.ndarray]) -> np.ndarray:
    """A few numbers that tell outputs apart: their projections, point by point."""
    with np.errstate(all="ignore"):
        return np.array([np.sum(_inexact(v) * d) for vs in outputs for v, d in zip(vs, directions, strict=True)])


def _same(print_of: np.ndarray, different: dict[str, np.ndarray]) -> str:
    """Which earlier mutant gives the same, or empty."""
    largest = np.max(np.abs(print_of[np.isfinite(print_of)]), initial=0)
    for name, other in different.items():
        if np.allclose(print_of, other, rtol=1e-11, atol=1e-13 * largest, equal_nan=True):
            return f"gives what another mutant gives: {name}"
    return ""


def _points(args: tuple) -> list[tuple]:
    """Arguments near the given ones, floats in double precision; specifications are filled."""
    leaves, tree = jax.tree.flatten(args)
    smallest = smallest_axis([v for v in leaves if _is_array(v)])

    def draw(rng: np.random.Generator) -> tuple:
        filled = [fill(v, rng, 0, smallest) if is_specification(v) else v for v in leaves]
        wide = jax.tree.leaves(widened(filled))
        return jax.tree.unflatten(tree, [near(v, rng, 0.3) if isinstance(v, np.ndarray) else v for v in wide])

    return [draw(generator(0, 0, i)) for i in range(POINTS)]


def _is_array(v: object) -> bool:
    return is_typed(v) and v.dtype != jax.dtypes.float0
