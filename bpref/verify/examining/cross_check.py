"""Who checks the oracle? Finite differences of the very function that autodiff was taken of, with their error bars.

Autodiff of a formula is the derivative of the formula, branch by branch. Where a branch was chosen for its value alone,
where a value was rounded, or where a gradient was stopped, that is not the derivative of the function.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr
from jaxtyping import PyTree

from bpref.programs import all_equations
from bpref.verify.examining.held import Point
from bpref.verify.examining.program import completed
from bpref.verify.numbers.numerical import Numerical, numerical_cotangents
from bpref.verify.numbers.points import generator, is_key
from bpref.verify.oracle import Values, is_differentiable
from bpref.verify.programs.running import in_float64
from bpref.verify.report import Finding

ELEMENTS, DIRECTIONS = 4, 1
"""How many elements of each argument are looked at, and along how many directions through all of them."""

MARGIN = 10
"""How many error bars apart is apart."""

ROUND_OFF = 1e-7
"""The relative difference that is none, whatever the bars."""


def disagreements(
    primal: Callable[[Values], PyTree],
    names: Sequence[str],
    point: Point,
    oracle: dict[str, np.ndarray],
    torn: dict[str, np.ndarray],
    key: int,
) -> list[Finding]:
    """The arguments whose cotangents, by the oracle at this point, are not what finite differences of `primal` say.

    Args:
      primal: `leaves -> y` in float64, what the oracle differentiates.
      names: the names of the leaves.
      point: the leaves, and the cotangents of y that `oracle` was made with.
      oracle: the oracle's cotangents by name, stacked as `point.dys` are.
      torn: by name, the elements at kinks, where the hand was held against what is beside them and not the oracle.
      key: which elements are looked at.

    Nothing is said of a function that JAX cannot run so, of one that stops gradients on purpose, nor where a bar is
    too wide to tell.
    """
    if any(is_key(v) for v in point.leaves):
        return []
    with jax.enable_x64(True):
        traced = jax.jit(primal).trace([jax.ShapeDtypeStruct(v.shape, v.dtype) for v in point.leaves])
        if stops_gradients(traced.jaxpr):
            return []
        run, *_ = in_float64(traced)
        y = run(list(point.leaves))
        dys = [completed([v[k] for v in point.dys], y) for k in range(len(point.dys[0]) if point.dys else 0)]
        found = numerical_cotangents(
            lambda *leaves: run(list(leaves)),
            tuple(point.leaves),
            [_without_float0(dy) for dy in dys],
            limit=ELEMENTS,
            directions=DIRECTIONS,
            rng=generator(key, 21),
            complex_step=False,
        )
    findings = []
    for n, (name, leaf) in enumerate(zip(names, point.leaves, strict=True)):
        if is_differentiable(leaf):
            skipped = torn.get(name, np.zeros(oracle[name].shape, bool))
            parts = (apart(found[k], n, oracle[name][k], skipped[k]) for k in range(len(found)))
            findings += [Finding(name, "oracle", detail) for detail in parts if detail][:1]
    return findings


def _without_float0(dy: PyTree) -> PyTree:
    return jax.tree.map(lambda v: np.zeros(v.shape) if v.dtype == jax.dtypes.float0 else v, dy)


def stops_gradients(program: ClosedJaxpr) -> bool:
    """Whether the derivative that JAX gives of a program is another on purpose: a gradient stopped, a custom rule."""
    return any(e.primitive.name in ("stop_gradient", "custom_vjp_call") for e in all_equations(program))


def apart(numbers: Numerical, n: int, oracle: np.ndarray, skipped: np.ndarray) -> str:
    """Where the oracle's cotangent of leaf number n is not within the error bars; empty where it is."""
    values, bars = numbers.cotangents[n], numbers.bars[n]
    size = np.max(np.abs(oracle), initial=0.0, where=np.isfinite(oracle))
    with np.errstate(invalid="ignore"):
        off = np.isfinite(oracle) & ~skipped & (np.abs(values - oracle) > MARGIN * bars + ROUND_OFF * size)
    if off.any():
        index = tuple(np.argwhere(off)[0].tolist())
        said = f"{oracle[index]:.4g}, finite differences {values[index]:.4g}, sure to {bars[index]:.0e}"
        return f"at {list(index)} the oracle says {said}"
    for p in numbers.projections[n] if not skipped.any() and np.isfinite(oracle).all() else ():
        along = float(np.sum(oracle * p.direction).real)
        if abs(along - p.value) > MARGIN * p.bar + ROUND_OFF * float(np.sum(np.abs(oracle * p.direction))):
            said = f"{along:.4g}, finite differences {p.value:.4g}, sure to {p.bar:.0e}"
            return f"along a direction through it the oracle says {said}"
    return ""
