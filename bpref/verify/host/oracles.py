"""What a called function is held against: numbers, or a reference that can be differentiated. Both with error bars.

At kinks and ties it has no derivative: other subgradients than the oracle's are right there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bpref.verify.examining.cross_check import stops_gradients
from bpref.verify.examining.prepare import wide_spec, x64_for
from bpref.verify.examining.program import completed, pulled
from bpref.verify.examining.subject import Entry, Subject
from bpref.verify.host.called import Called, compiled, in_dtype, widened
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.kinks import Gradients, Neighbourhood, at_kinks, jump
from bpref.verify.numbers.numerical import Numerical, numerical_cotangents
from bpref.verify.oracle import Arrays, is_differentiable, with_cotangents
from bpref.verify.programs.lift import lift, narrowest
from bpref.verify.programs.quick import quick_compilation

NUMBERS = "numerical oracle: finite differences of {}, extrapolated, with error bars"
OF_REFERENCE = "float64 oracle: the reference, differentiated"

MOVES = 3
"""How often the inputs are moved by their own rounding, to see what that does to the truth."""

MARGIN = 4
"""How many times the largest effect that was seen of that may be the error of what is right."""

Run = Callable[[Arrays, list[Arrays]], tuple[Arrays, list[list[Entry]]]]
"""`(leaves, dys) -> (y, cotangents for each dy)`; `None` for what has none."""


class Oracle(NamedTuple):
    """The truth, as far as it is known.

    Attributes:
      text: what it is, for the report.
      y: `leaves -> y` of a reference; None where the function's own primal is differentiated.
      cotangents: `(leaves, dys, rng, eps) -> one Numerical for each dy`, of float64 leaves or, where the function takes
        none, of its own; `eps` is the rounding of what will be held against it.
      run: autodiff of a reference in the dtypes that come; None where there is none.
      in_float64: the same in float64.
      differs: whether its derivative is another on purpose: it stops a gradient, or has a rule of its own.
    """

    text: str
    y: Callable[[Arrays], Arrays] | None
    cotangents: Callable[[Arrays, list[Arrays], np.random.Generator, float], list[Numerical]]
    run: Run | None = None
    in_float64: Run | None = None
    differs: Callable[[], bool] = lambda: False

    @property
    def is_exact(self) -> bool:
        """Whether its values are as sharp as float64 is, whatever dtype the function computes in."""
        return self.run is not None


def numerical(
    call: Callable[[Arrays], Arrays], differentiable: Sequence[bool], of: str, is_reference: bool, limit: int = 512
) -> Oracle:
    """Finite differences of `call`."""
    where = [i for i, keep in enumerate(differentiable) if keep]

    def cotangents(leaves: Arrays, dys: list[Arrays], rng: np.random.Generator, eps: float) -> list[Numerical]:
        wanted = [np.any([v != 0 for v in of_output], axis=0) for of_output in zip(*dys, strict=True)]

        def restricted(*chosen: np.ndarray) -> Arrays:
            values = list(leaves)
            for i, v in zip(where, chosen, strict=True):
                values[i] = v
            # An output without a cotangent, such as one that is not finite, takes no part.
            return [np.where(w, v, np.zeros((), v.dtype)) for v, w in zip(call(values), wanted, strict=True)]

        found = numerical_cotangents(restricted, tuple(leaves[i] for i in where), dys, limit=limit, rng=rng)
        return [
            Numerical(
                _spread(f.cotangents, where, len(leaves)),
                _spread(f.bars, where, len(leaves)),
                _spread(f.kinks, where, len(leaves)),
                [tuple(p) for p in _spread(f.projections, where, len(leaves), ())],
                _spread(f.chosen, where, len(leaves)),
            )
            for f in found
        ]

    return Oracle(NUMBERS.format(of), call if is_reference else None, cotangents)


def exact(text: str, run: Run, in_float64: Run, differs: Callable[[], bool]) -> Oracle:
    """Autodiff of a reference in float64; its bars are what moving the inputs by their rounding does to it."""

    def cotangents(leaves: Arrays, dys: list[Arrays], rng: np.random.Generator, eps: float) -> list[Numerical]:
        _, there = in_float64(leaves, dys)
        around = [in_float64(*nudged(leaves, dys, rng, eps))[1] for _ in range(MOVES)]
        return [
            Numerical(
                here,
                [_bar(v, [a[j][n] for a in around]) for n, v in enumerate(here)],
                [None if v is None else np.zeros(v.shape) for v in here],
                [()] * len(here),
                [None if v is None else np.arange(v.size) for v in here],
            )
            for j, here in enumerate(there)
        ]

    return Oracle(text, lambda leaves: in_float64(leaves, [])[0], cotangents, run, in_float64, differs)


def nudged(leaves: Arrays, dys: list[Arrays], rng: np.random.Generator, eps: float) -> tuple[Arrays, list[Arrays]]:
    """Every floating-point element moved by up to one unit of its last place."""

    return fresh.nudged(leaves, rng, eps), [fresh.nudged(dy, rng, eps) for dy in dys]


def of_reference(subject: Subject, differentiable: tuple[bool, ...]) -> Oracle:
    """A subject's reference: autodiff where JAX can trace and differentiate it, else its differences."""
    run, in_float64 = (_autodiff(subject.primal, lifted) for lifted in (False, True))
    specs = subject.specs
    with jax.enable_x64(True):
        wide = [wide_spec(v) for v in specs]
        try:
            jax.eval_shape(lambda leaves: pulled(subject.primal, leaves), wide)
        except Exception:
            return numerical(
                _quietly(*compiled(subject.primal, specs)),
                differentiable,
                "the reference",
                True,
            )

    def differs() -> bool:
        with jax.enable_x64(True):
            return stops_gradients(jax.make_jaxpr(subject.primal)(wide))

    return exact(OF_REFERENCE, run, in_float64, differs)


def _quietly(primal: Callable, given: Callable[[Arrays], Arrays]) -> Callable[[Arrays], Arrays]:
    def call(leaves: Arrays) -> Arrays:
        with np.errstate(all="ignore"):
            return [np.asarray(v) for v in jax.tree.leaves(primal(given(leaves)))]

    return call


def _autodiff(primal: Callable, in_float64: bool) -> Run:
    """The sweep of `jax.vjp`; in float64, with casts to a narrower dtype left out."""

    def cotangents_of(leaves: Arrays, dys: list[Arrays]) -> tuple[list[Array], list[list]]:
        y, cotangents = with_cotangents(primal, leaves)
        flat = jax.tree.leaves(y)

        def one(dy: Arrays) -> list[Array | None]:
            cast = [jnp.asarray(d).astype(v.dtype) for d, v in zip(dy, flat, strict=True) if is_differentiable(v)]
            return cotangents(completed(cast, y))[0]

        return flat, [one(dy) for dy in dys]

    compiled, lifted = (jax.jit(f, compiler_options=quick_compilation()) for f in (cotangents_of, lift(cotangents_of)))
    casts: dict[int, bool] = {}
    x64 = bool(jax.config.read("jax_enable_x64"))

    def run(leaves: Arrays, dys: list[Arrays]) -> tuple[Arrays, list[list[Entry]]]:
        if in_float64:
            leaves = [in_dtype(v, "float64") if is_differentiable(v) else v for v in leaves]
        with jax.enable_x64(True) if in_float64 else x64_for([v.dtype for v in leaves], x64):
            if in_float64 and len(dys) not in casts:
                casts[len(dys)] = narrowest(jax.make_jaxpr(cotangents_of)(leaves, dys), jnp.float64) is not None
            y, found = jax.device_get((lifted if casts.get(len(dys)) else compiled)(leaves, dys))
        return list(y), [list(f) for f in found]

    return run


def _bar(here: np.ndarray | None, around: list[np.ndarray]) -> np.ndarray | None:
    if here is None:
        return None
    with np.errstate(invalid="ignore"):
        moved = np.max([np.abs(v - here) for v in around], axis=0)
    return np.where(np.isfinite(here), MARGIN * moved, np.inf)


def _spread(values: Sequence, where: list[int], count: int, other: object = None) -> list[Entry]:
    filled: list[Entry] = [other] * count
    for i, v in zip(where, values, strict=True):
        filled[i] = v
    return filled


Points = Sequence[tuple[Arrays, list[Arrays]]]
"""The leaves and the cotangents of the output at each point."""


def settled(
    c: Called, oracle: Oracle, points: Points, n: int, hand: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The hand's cotangent of leaf `n`, with the truth where its own subgradient is as right, and the truth.

    `hand` and `truth` have a sample for each point and cotangent along the first axis; the oracle is an exact one.
    """
    name, count = c.names[n], len(hand) // len(points)
    seen = [(hand[i : i + count], truth[i : i + count]) for i in range(0, len(hand), count)]
    kinks = at_kinks(_neighbourhood(c, oracle, points, n), seen, name)
    return np.where(kinks.accepted, kinks.truth, hand), kinks.truth


def jumps(c: Called, oracle: Oracle, points: Points, n: int) -> np.ndarray:
    """How far the cotangent of leaf `n` jumps at each element, a sample for each point and cotangent; 0 off kinks."""
    neighbours = _neighbourhood(c, oracle, points, n)
    assert oracle.in_float64 is not None
    truths = [oracle.in_float64(leaves, dys)[1] for leaves, dys in neighbours.points]
    return np.stack(
        [jump(neighbours, i, c.names[n], k, of_dy[n]) for i, t in enumerate(truths) for k, of_dy in enumerate(t)]
    )


def _neighbourhood(c: Called, oracle: Oracle, points: Points, n: int) -> Neighbourhood:
    def run(leaves: Arrays, dys: list[Arrays]) -> Gradients:
        assert oracle.in_float64 is not None
        found = oracle.in_float64(leaves, dys)[1]
        return {c.names[n]: np.stack([of_dy[n] for of_dy in found])}

    wide = [(widened(leaves, c.differentiable), dys) for leaves, dys in points]
    return Neighbourhood(run, wide, c.names, special=())
