"""The laws that a backward obeys besides being right: linear in the cotangent, and the same however it is called."""

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr
from jax.typing import ArrayLike

from bpref.programs import Typed, all_equations
from bpref.tangents import pushed_forward
from bpref.verify.examining.held import Point, Rounding
from bpref.verify.examining.program import Program, Seen, run_eagerly, run_traced
from bpref.verify.examining.subject import Subject
from bpref.verify.oracle import Leaf, Values, is_differentiable, with_cotangents
from bpref.verify.report import Finding

TWO_ANSWERS = "called twice with the same arguments it gives two answers"

CALLBACKS = frozenset({"pure_callback", "io_callback"})
"""What calls out of JAX, to a function that may have a state."""

SLACK = 1e-7
"""How far the same derivation may be from itself: added up in another order, it still is the same."""


def linearity(seen: Seen, rounding: Rounding) -> list[Finding]:
    """b(2u - 3v) = 2 b(u) - 3 b(v) and b(0) = 0, at every point of a stacked run.

    `rounding` is called only where something looks wrong.
    """
    findings = []
    dy = "d" + next((name.split("[")[0].split(".")[0] for name in seen.y_oracle), "y")
    for name, combined in seen.combined.items():
        u, v = seen.hand[name][0::2], seen.hand[name][1::2]
        with np.errstate(invalid="ignore", over="ignore"):
            apart = np.abs((2 * u - 3 * v) - combined).reshape(len(combined), -1).max(axis=1, initial=0.0)
            # The terms may cancel: the sum is held against their size, not against its own.
            scale = np.maximum(*(np.abs(w).reshape(len(w), -1).max(axis=1, initial=0.0) for w in (2 * u, 3 * v)))
        error = np.where(apart == 0, 0.0, apart / np.maximum(scale, np.finfo(float).tiny))
        error = np.where(np.isfinite(scale), error, 0.0)
        if not np.all(error <= SLACK) and name in rounding():
            of_points = rounding()[name].either.reshape(len(error), -1).max(axis=1)
            error = np.where(error <= np.maximum(SLACK, of_points), 0.0, error)
        if not np.all(error <= SLACK):
            worst = float(np.max(error))
            findings.append(Finding(name, "nonlinear", not_linear(dy, worst), worst))
        elif np.any(np.isfinite(seen.zero[name]) & (seen.zero[name] != 0)):
            findings.append(Finding(name, "nonlinear", f"not linear in {dy}: b(0) is not 0"))
    return findings


def not_linear(dy: str, error: float) -> str:
    """What is said of a backward that is not linear in its cotangent."""
    return f"not linear in {dy}: b(2u - 3v) is {error:.1e} off 2b(u) - 3b(v)"


def form(program: Program, leaves: Sequence[Typed], names: tuple[str, ...]) -> list[Finding]:
    """Cotangents have the tree and dtypes of the arguments: what the program, traced in their dtypes, has noted."""
    misfits = [Finding(name, "structure", detail) for name, detail in program.misfits.items()]
    kept = {name: v for name, v in zip(names, leaves, strict=True) if name not in program.misfits}
    dtypes = program.traced.out_info[2]
    return misfits + [
        Finding(name, "dtype", f"its cotangent is {came.dtype}, expected {kept[name].dtype}")
        for name, came in dtypes.items()
        if name in kept and came.dtype != kept[name].dtype
    ]


def is_repeatable(subject: Subject, leaves: Sequence[Typed], dy: Sequence[Leaf]) -> bool:
    """Whether the subject, traced twice, is the same program with the same constants. Nothing is computed.

    What a callback gives no program says.
    """

    def program() -> ClosedJaxpr:
        return jax.make_jaxpr(lambda leaves, dy: run_traced(subject, leaves, dy))(leaves, dy)

    once, again = program(), program()
    text, text_again = (re.sub("0x[0-9a-f]+", "", str(p.jaxpr)) for p in (once, again))
    same = text == text_again and all(map(np.array_equal, once.consts, again.consts))
    return same and not any(e.primitive.name in CALLBACKS for e in all_equations(once))


def purity(subject: Subject, point: Point) -> list[Finding]:
    """A function gives the same answer twice: called eagerly, at a point in the dtypes of its arguments."""
    first = [v[0] for v in point.dys]
    once, again = (run_eagerly(subject, point.leaves, first) for _ in range(2))
    changing = [name for name in once if not _same(once[name], again[name])]
    # Whatever gives another output each time has no derivative that could be checked.
    spoilt = once if set(changing) - set(subject.names) else changing
    return [Finding(name, "impure", TWO_ANSWERS) for name in spoilt]


def consistency(seen: Seen) -> list[Finding]:
    """Alone and under vmap it gives the same."""
    return [
        Finding(name, "impure", "under vmap it gives another value", _apart(alone, seen.hand[name][0]))
        for name, alone in seen.alone.items()
        if not _same(alone, seen.hand[name][0])
    ]


def eagerness(subject: Subject, point: Point, seen: Seen) -> list[Finding]:
    """Operation by operation it gives the same as under jit. Slow the first time, as every operation is compiled."""
    compiled = seen.y | seen.alone
    with jax.enable_x64(True):
        eager = run_eagerly(subject, point.leaves, [v[0] for v in point.dys])
    return [
        Finding(name, "impure", "eagerly it gives another value than under jit", _apart(compiled[name], v))
        for name, v in eager.items()
        if not _same(compiled.get(name), v)
    ]


def batching(subject: Subject, points: Sequence[Point], seen: Sequence[Seen]) -> list[Finding]:
    """All points under one `vmap` give what each gives alone: asked where a function says itself what it is there."""
    leaves, dys = ([np.stack(v) for v in zip(*of, strict=True)] for of in zip(*points, strict=True))
    with jax.enable_x64(True):
        swept = jax.vmap(lambda leaves, dys: run_traced(subject, leaves, [v[0] for v in dys]))
        together = jax.device_get(jax.jit(swept)(leaves, dys))
    text = "under vmap over its arguments it gives another value"
    each = (s.y | s.alone for s in seen)
    pairs = [(name, together[name][i], v) for i, values in enumerate(each) for name, v in values.items()]
    error = {name: _apart(came, alone) for name, came, alone in pairs if not _same(alone, came)}
    return [Finding(name, "impure", text, apart) for name, apart in error.items()]


def stillness(subject: Subject, point: Point, seen: Seen) -> list[Finding]:
    """Where no argument moves no output does: so much of a tangent's linearity the reverse mode does not show."""
    chosen = [i for i, v in enumerate(point.leaves) if is_differentiable(v)]

    def outputs(moving: Values) -> list[Array]:
        leaves = [moving[chosen.index(i)] if i in chosen else v for i, v in enumerate(point.leaves)]
        return _outputs(subject, leaves)

    @jax.jit
    def tangents(leaves):
        return pushed_forward(outputs, (leaves,), (list(map(jnp.zeros_like, leaves)),))[1]

    with jax.enable_x64(True):
        moved = {
            name: float(np.max(np.abs(np.nan_to_num(v)), initial=0.0))
            for name, v in zip(seen.y, tangents([jnp.asarray(point.leaves[i]) for i in chosen]), strict=True)
        }
    text = "its custom_jvp is not linear: where no argument moves its tangent is up to {:.3g}"
    return [Finding(name, "nonlinear", text.format(v), v) for name, v in moved.items() if v]


def partiality(subject: Subject, point: Point, seen: Seen) -> list[Finding]:
    """Where one argument alone is differentiated, or one output alone is used, it gives the same in float64.

    A rule with `symbolic_zeros=True` is told so, and may do something else.
    """
    leaves, dy = list(map(jnp.asarray, point.leaves)), [jnp.asarray(v[0]) for v in point.dys]
    moving = [i for i, v in enumerate(leaves) if is_differentiable(v)]

    def of_argument(i: int) -> dict[str, Array]:
        _, pull = with_cotangents(lambda v: _outputs(subject, [*leaves[:i], v, *leaves[i + 1 :]]), leaves[i])
        return {subject.names[i]: pull(dy)[0]}

    def of_output(j: int, alone: bool) -> dict[str, Array]:
        def used(values: Values) -> Array | list[Array]:
            y = _outputs(subject, values)
            return y[j] if alone else y

        _, pull = with_cotangents(used, leaves)
        found = pull(dy[j] if alone else [v if i == j else jnp.zeros_like(v) for i, v in enumerate(dy)])[0]
        return {name: v for name, v in zip(subject.names, found, strict=True) if v is not None}

    def differing(alone: dict[str, Array], usual: Mapping[str, ArrayLike], text: str) -> list[Finding]:
        pairs = {name: (np.asarray(v), np.asarray(usual[name])) for name, v in alone.items()}
        return [Finding(name, "impure", text, _apart(*pair)) for name, pair in pairs.items() if not _same(*pair)]

    findings = []
    with jax.enable_x64(True):
        for i in moving if len(moving) > 1 else ():
            text = f"where {subject.names[i]} alone is differentiated it gives another value"
            findings += differing(jax.jit(of_argument, static_argnums=0)(i), seen.alone, text)
        for j, name in enumerate(seen.y if len(dy) > 1 else ()):
            text = f"where {name} alone is used it gives another value than beside cotangents of zeros"
            alone, beside = (jax.jit(of_output, static_argnums=(0, 1))(j, v) for v in (True, False))
            findings += differing(alone, beside, text)
    return findings


def _outputs(subject: Subject, leaves: Values) -> list[Array]:
    """The outputs that have a cotangent."""
    return [v for v in jax.tree.leaves(subject.plain(leaves)) if is_differentiable(v)]


def _same(v: np.ndarray | None, w: np.ndarray) -> bool:
    """Equal to `SLACK`, or not comparable: of another shape, or not finite."""
    if v is None or v.shape != w.shape or not (np.all(np.isfinite(v)) and np.all(np.isfinite(w))):
        return True
    return _apart(v, w) <= SLACK


def _apart(v: np.ndarray, w: np.ndarray) -> float:
    apart = float(np.max(np.abs(v - w), initial=0.0))
    return apart / float(np.max(np.abs(w))) if apart else 0.0
