"""The steps of a back-propagation by hand, beside what each should be: programs, and their values at some points."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Compiled
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref.programs import Typed
from bpref.verify.examining.held import ROUND_OFF
from bpref.verify.examining.program import POINTS
from bpref.verify.examining.subject import as_subject
from bpref.verify.naming import describe
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.measure import widened
from bpref.verify.oracle import Arrays, Leaf, is_differentiable
from bpref.verify.programs.lift import for_float64, lift, narrowest
from bpref.verify.programs.quick import quick_compilation
from bpref.verify.steps.names import cotangents_by_name, direct_uses, require_names, shapes_of_names

MOVES = 8
"""How often everything is moved by its own rounding, to see how much that changes each cotangent."""

ByName = dict[str, np.ndarray]

Named = Mapping[str, ArrayLike | None]

Cotangents = Named | Callable[[tuple, PyTree], Named]
"""Somebody's cotangents by name, or the function of (args, dy) that gives them."""


class Values(NamedTuple):
    """The named values at one point, their cotangents, and what one step of back-propagation makes of the hand's."""

    values: ByName
    total: ByName
    step: ByName


class Sample(NamedTuple):
    """One point in float64, and what is known there.

    Attributes:
      leaves, dy: the array leaves of the arguments, and the cotangent of the output.
      hand: the hand's cotangents, by name; `misshapen`: those that are not of their value's shape.
      values, total, step: as in `Values`.
      moved: the same after rounding errors of the working dtype.
    """

    leaves: list[np.ndarray]
    dy: PyTree
    hand: ByName
    misshapen: ByName
    values: ByName
    total: ByName
    step: ByName
    moved: list[Values]


class Steps(NamedTuple):
    """A forward with named values, and somebody's cotangents of them.

    Attributes:
      names, leaves: the array leaves of the arguments, and what they are called.
      outputs: the shapes and dtypes of the output, a tree.
      shapes: those of the named values that the hand gives cotangents of, in the order of computation.
      uses: the named values that each one is directly used for; `live`: those that anything is computed from.
      misfits: what came in place of a cotangent of a value's shape, by name.
      hand: `(leaves, dy) -> cotangents by name`.
      is_function: whether the hand's can be had at any point, and not only at the given one.
      dy: the cotangent of the output that was given, or None.
      dtype: the precision by which the hand is judged.
      wide: `(leaves, dy, shifts, hand) -> Values` in float64; `narrow`: as JAX computes it in the working dtypes.
      notes: what else a reader should know.
    """

    names: tuple[str, ...]
    leaves: list[Leaf]
    outputs: PyTree
    shapes: dict[str, jax.ShapeDtypeStruct]
    uses: dict[str, list[str]]
    live: set[str]
    misfits: dict[str, str]
    hand: Callable[[Arrays, PyTree], ByName]
    is_function: bool
    dy: PyTree
    dtype: np.dtype
    wide: Callable[..., Values]
    narrow: Callable[..., Values] | None
    notes: tuple[str, ...]

    @property
    def round_off(self) -> float:
        """How far arrays that are equal may be apart in the working dtype, relatively."""
        return max(ROUND_OFF, min(0.1, 100 * float(jnp.finfo(self.dtype).eps)))


def steps_of(forward: Callable[..., PyTree], args: tuple, cotangents: Cotangents, dy: PyTree, key: int) -> Steps:
    """Everything that does not depend on the point; raises as `check_intermediates` does."""
    subject, rebuild = as_subject(forward, args), as_subject(lambda *args: args, args).plain
    leaves, is_function = subject.leaves, callable(cotangents)
    if not is_function and any(map(fresh.is_specification, leaves)):
        raise ValueError("check_intermediates: cotangents are arrays, so args must be the arrays they were computed at")
    outputs = jax.eval_shape(subject.plain, leaves)
    dy = None if dy is None else _as_given(dy, outputs)
    if dy is None and not is_function and not _is_scalar(outputs):
        raise ValueError(f"check_intermediates: the output is {_text(outputs)}, not a scalar; give its cotangent dy")
    own = fresh.leaves_of_point(leaves, fresh.generator(key, 0, 0), 0, 0)
    first, (f, is_lifted) = widened(own), for_float64(subject.plain, own)
    if callable(cotangents):
        hand, is_too = _calling(cotangents, rebuild, own, _cotangent(outputs, dy, fresh.generator(key, 0, 9)))
        is_lifted = is_lifted or is_too
    else:
        hand = partial(_as_they_are, cotangents)
    with jax.enable_x64(True):
        if is_function:
            outputs = jax.eval_shape(f, first)
        came = hand(first, _cotangent(outputs, dy, fresh.generator(key, 0, 9)))
        require_names(f, (first,), came)
        shapes = shapes_of_names(f, (first,), came)
        uses, live = direct_uses(f, (first,), shapes)
        cast = narrowest(jax.make_jaxpr(f)(first), np.dtype(np.float64))
    for name, v in shapes.items():
        if not is_differentiable(v):
            raise ValueError(f"check_intermediates: the value named {name!r} is {_text(v)}, which has no cotangent")
    misfits = {n: describe(v) for n, v in came.items() if v.shape != shapes[n].shape or not is_differentiable(v)}
    used = [name for name in shapes if name not in misfits]
    dtype = _precision([*leaves, *came.values()] if is_lifted or not is_function else [], cast)
    own_x64 = (is_function and not is_lifted) or jax.config.read("jax_enable_x64")
    casts = f"the forward computes in {cast} inside; judged by that precision"
    lifted = f"it cannot be traced with 64-bit numbers enabled; judged by the precision of {dtype}"
    return Steps(
        subject.names, leaves, outputs, shapes, uses, live, misfits, hand, is_function, dy, dtype,
        wide=_compiled(lift(f) if cast is not None else f, used, True),
        narrow=None if dtype == np.float64 else _compiled(subject.plain, used, own_x64),
        notes=(casts,) * (cast is not None) + (lifted,) * is_lifted,
    )  # fmt: skip


def samples(steps: Steps, key: int) -> list[Sample]:
    """The points at which the steps are looked at: the given one, and fresh ones if the hand is a function."""
    return [_sample(steps, key, i) for i in range(POINTS if steps.is_function else 1)]


def _sample(steps: Steps, key: int, i: int) -> Sample:
    attempts = len(fresh.STRENGTHS) if steps.is_function else 1
    tried = (_point(steps, key, i, attempt) for attempt in range(attempts))
    case, own = next(tried)
    while not all(np.all(np.isfinite(v)) for v in case.total.values()) and (another := next(tried, None)):
        case, own = another
    moved = [_moved(steps, case, fresh.generator(i, 4, k)) for k in range(MOVES)]
    if steps.narrow is not None:
        moved.append(steps.narrow(own, case.dy, no_shifts(steps), case.hand))
    return case._replace(moved=moved)


def _point(steps: Steps, key: int, i: int, attempt: int) -> tuple[Sample, Arrays]:
    """A case without its rounding errors, and its leaves as the narrow program takes them."""
    rng = fresh.generator(key, i, attempt)
    own = fresh.leaves_of_point(steps.leaves, rng, i, attempt)
    leaves = [fresh.exactly(v) for v in widened(own)] if steps.is_function else widened(own)
    dy = _cotangent(steps.outputs, steps.dy if i == 0 else None, rng)
    with jax.enable_x64(True):
        came = steps.hand(leaves, dy)
    hand = widened({name: v for name, v in came.items() if name not in steps.misfits})
    values, total, step = steps.wide(leaves, dy, no_shifts(steps), hand)
    misshapen = {name: came[name] for name in steps.misfits}
    return Sample(leaves, dy, hand, misshapen, values, total, step, []), leaves if steps.is_function else own


def no_shifts(steps: Steps) -> ByName:
    """Zeros of the shape of each named value, in float64 or complex128."""
    return widened({name: np.zeros(v.shape, v.dtype) for name, v in steps.shapes.items()})


def _moved(steps: Steps, case: Sample, rng: np.random.Generator) -> Values:
    """The values in float64 where every input, named value and cotangent of the hand's is off by its own rounding."""
    eps = float(jnp.finfo(steps.dtype).eps)

    def error(v):
        return v * eps * rng.uniform(-1, 1, v.shape)

    off = [v + error(v) if is_differentiable(v) else v for v in case.leaves]
    shifts = {name: error(v) for name, v in case.values.items()}
    return steps.wide(off, case.dy, shifts, {name: v + error(v) for name, v in case.hand.items()})


def _compiled(f: Callable[..., PyTree], used: list[str], x64: bool) -> Callable[..., Values]:
    @jax.jit
    def examined(leaves, dy, shifts, hand):
        return cotangents_by_name(f, (leaves,), dy, shifts, {name: hand[name] for name in used})

    compiled: list[Compiled] = []

    def run(leaves, dy, shifts, hand):
        with jax.enable_x64(x64):
            inputs = (leaves, dy, shifts, hand)
            if not compiled:
                compiled.append(examined.lower(*inputs).compile(compiler_options=quick_compilation()))
            return Values(*widened(jax.device_get(compiled[0](*inputs))))

    return run


def _calling(
    cotangents: Callable[[tuple, PyTree], Named], rebuild: Callable[[list], tuple], own: Arrays, dy: PyTree
) -> tuple[Callable[[Arrays, PyTree], ByName], bool]:
    """The hand's cotangents as a function of array leaves, under jit unless it needs to see the values.

    And whether it had to be lifted from `own` leaves and a `dy` to be traced in float64.
    """

    def call(leaves, dy):
        came = cotangents(rebuild([jnp.asarray(v) for v in leaves]), jax.tree.map(jnp.asarray, dy))
        return _without_none(came)

    try:
        in_float64, is_lifted = for_float64(call, own, dy)
    except jax.errors.JAXTypeError:
        return lambda leaves, dy: _given(call(leaves, dy)), False
    traced = jax.jit(in_float64, compiler_options=quick_compilation())
    return lambda leaves, dy: _given(traced(leaves, dy)), is_lifted


def _as_they_are(cotangents: Named, leaves: Arrays, dy: PyTree) -> ByName:
    return _given(cotangents)


def _given(cotangents: Named) -> ByName:
    """The cotangents by name, as NumPy arrays; those that are None left out."""
    return {name: np.asarray(v) for name, v in _without_none(cotangents).items()}


def _without_none(cotangents: Named) -> dict[str, ArrayLike]:
    if not isinstance(cotangents, Mapping):
        came = type(cotangents).__name__
        raise TypeError(f'check_intermediates: the cotangents are a {came}, expected a dictionary {{"Z2": dZ2, ...}}')
    return {name: v for name, v in cotangents.items() if v is not None}


def _cotangent(outputs: PyTree, dy: PyTree, rng: np.random.Generator) -> PyTree:
    """The given cotangent of the output; else 1 for a scalar, and random numbers for anything larger."""
    if dy is not None:
        return dy
    if _is_scalar(outputs):
        return jax.tree.map(lambda v: np.ones(()), outputs)

    def draw(v):
        drawn = rng.normal(size=v.shape)
        return drawn + 1j * rng.normal(size=v.shape) if jnp.issubdtype(v.dtype, jnp.complexfloating) else drawn

    return jax.tree.map(draw, outputs)


def _as_given(dy: PyTree, outputs: PyTree) -> PyTree:
    given, tree = jax.tree.flatten(dy)
    expected = jax.tree.leaves(outputs)
    if tree != jax.tree.structure(outputs) or [np.shape(v) for v in given] != [v.shape for v in expected]:
        raise ValueError(f"check_intermediates: dy is {_text(dy)}, expected the output's {_text(outputs)}")
    return jax.tree.map(lambda v: widened(np.asarray(v)), dy)


def _is_scalar(outputs: PyTree) -> bool:
    return [v.shape for v in jax.tree.leaves(outputs)] == [()]


def _precision(arrays: list[Typed], cast: np.dtype | None) -> np.dtype:
    """The coarsest of the dtypes that somebody computed in; float64 where there is none."""
    dtypes = [np.dtype(np.float64), *(v.dtype for v in arrays if is_differentiable(v)), *([cast] * (cast is not None))]
    return min(dtypes, key=lambda d: jnp.finfo(d).nmant)


def _text(tree: PyTree) -> str:
    leaves = [describe(np.asarray(v) if not hasattr(v, "dtype") else v) for v in jax.tree.leaves(tree)]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})"
