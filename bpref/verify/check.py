"""check: is a hand-derived gradient right, and if not, where and why?"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.layer import Layer
from bpref.verify.diagnosis.judge import Evidence, judge, residuals, unscaled
from bpref.verify.examining import precision
from bpref.verify.examining.cross_check import disagreements
from bpref.verify.examining.held import ROUND_OFF, Held, Point, Rounding, hold, run_in_float64, stacked
from bpref.verify.examining.laws import batching, consistency, eagerness, linearity, partiality, purity, stillness
from bpref.verify.examining.prepare import Prepared, lifted, prepared, rounding_at
from bpref.verify.examining.program import COTANGENTS, POINTS, SCALES, Seen, swept
from bpref.verify.examining.refusals import NeedsNumbers, Refused, refuse_eager, refused
from bpref.verify.examining.subject import OWN_PRIMAL, Subject, as_subject
from bpref.verify.host.check import check_numerically
from bpref.verify.numbers import points as fresh
from bpref.verify.numbers.kinks import Neighbourhood
from bpref.verify.numbers.measure import widened
from bpref.verify.options import require_flags, require_functions, seed_of, working_dtypes
from bpref.verify.oracle import is_differentiable
from bpref.verify.programs.running import as_if_at_home, collecting_nothing, ran_interpreted
from bpref.verify.programs.sites import sites
from bpref.verify.report import Finding, Precision, Report
from bpref.verify.torch_front import is_torch


@as_if_at_home
def check(
    fun: Callable | Layer,
    *args: PyTree,
    reference: Callable[..., PyTree] | None = None,
    backward: Callable[[tuple, PyTree], tuple] | None = None,
    key: int | Array | None = None,
    dtypes: DTypeLike | Sequence[DTypeLike] | None = None,
    linear: bool = True,
    eager: bool = False,
    cross_check: bool = False,
) -> Report:
    """Hold a hand-derived gradient against an oracle, and say for each argument whether it is right.

    Args:
      fun: a `jax.custom_vjp` or `jax.custom_jvp` function, a function that contains such rules, a `Layer` (then
        `args` are its params and x), or, with `backward`, any function: JAX, NumPy, PyTorch, a compiled kernel.
      args: what `fun` is called with: pytrees of arrays, or of `jax.ShapeDtypeStruct`s, which are filled with random
        values. Strings, integers and functions among them are held fixed.
      reference: a function of the same arguments that the oracle differentiates; left out, it differentiates `fun`
        itself with every custom rule stripped (`strip_custom_rules`).
      backward: `(args, dy) -> cotangents of args`, a tuple with `None` for what has no cotangent.
      key: the seed of every random draw, a whole number or a `jax.random.key`; left out, a new one, which the report
        names.
      dtypes: the floating-point dtypes in which the precision is measured, of complex numbers those of their parts;
        one, or a sequence; left out, those of `args`.
      linear: False for a backward that is meant not to be linear in the cotangent, such as one that clips it; it is
        then held against the oracle for small cotangents.
      eager: whether to call it operation by operation too, without jit, and compare. Slow the first time. For functions
        that JAX traces.
      cross_check: whether to hold the oracle itself against finite differences, at a few elements of each argument.

    Returns:
      A `Report`: printed, a table; `.ok` where everything is right.

    Example:
      >>> bpref.check(jnp.sin, jnp.ones(3), backward=lambda args, dy: (dy * jnp.cos(args[0]),)).ok
      True
      >>> wrong = bpref.check(jnp.sin, jnp.ones(3), backward=lambda args, dy: (-dy * jnp.cos(args[0]),))
      >>> wrong.ok, wrong.findings[0].kind
      (False, 'sign')

    Raises:
      TypeError, ValueError: a call that cannot be checked; the message says whether `fun` or the call is at fault.
    """
    key = seed_of("check", key)
    dtypes = working_dtypes("check", dtypes)
    require_functions("check", fun, reference=reference, backward=backward)
    require_flags("check", linear=linear, eager=eager, cross_check=cross_check)
    if is_torch(fun, args):
        from bpref.verify.torch_front.check import check_torch  # which imports torch, as the caller has

        return check_torch(fun, args, reference, backward, key, dtypes, linear, eager, cross_check)
    subject = as_subject(fun, args, reference, backward)
    try:
        ready = prepared(subject, dtypes)
    except NeedsNumbers as reason:
        refuse_eager(eager, subject.name, f"called as it is: {reason}")
        report = check_numerically(subject, key, str(reason), dtypes, linear, cross_check)
        return report._replace(notes=(*report.notes, *_interpreted(subject)))
    except Refused as reason:
        return refused(subject, key, str(reason))
    return _report(ready, key, linear, eager, cross_check)


def assert_gradient(fun: Callable | Layer, *args: PyTree, **options: Any) -> None:
    """`check`, for a test: raises `AssertionError` with the report unless everything is right.

    Example:
      >>> bpref.assert_gradient(jnp.sin, jnp.ones(3), backward=lambda args, dy: (dy * jnp.cos(args[0]),))
    """
    report = check(fun, *args, **options)
    if not report.ok:
        raise AssertionError(f"\n{report}")


@collecting_nothing()
def _report(ready: Prepared, key: int, linear: bool, eager: bool, cross_check: bool) -> Report:
    narrow, wide, seen = _sample(ready, key, linear)
    rounding, held, nonlinear = _looked_at(ready, wide, seen, linear)
    if ready.casts_to and not ready.is_lifted and (nonlinear or any(h.is_wrong for h in held.values())):
        ready = lifted(ready)
        seen = run_in_float64(ready.wide.run, wide)
        rounding, held, nonlinear = _looked_at(ready, wide, seen, linear)
    together = stacked(seen)
    impure = _impure(ready, narrow[0], wide, seen, rounding, eager)
    moving = stillness(ready.subject, wide[0], seen[0]) if ready.pushes_tangents and not ready.is_lifted else []
    said = [*ready.formal, *_absent(ready, together), *impure, *nonlinear, *moving]
    drawn = _scales(linear) if linear else (1.0,) * len(narrow)
    of_itself = set(together.y_oracle) if ready.subject.oracle == OWN_PRIMAL else set()
    accused = {f.where for f in said} | {name for name, h in held.items() if h.is_wrong}
    judged = [
        name
        for name in (*together.y_oracle, *(n for n in ready.subject.names if n in together.oracle or n in accused))
        if name not in of_itself or name in accused
    ]
    looked_at = {name: held[name] for name in judged if name in held}
    rows = _precision(ready, narrow, wide, looked_at, together.y_oracle | unscaled(together.oracle, drawn))
    oracles = _oracle_looked_at(ready, wide[0], seen[0], held, key) if cross_check else []
    residual_of = residuals(ready, wide, together, _scales(linear), {f.where for f in said if f.kind == "nonlinear"})
    verdicts, findings = [], []
    for name in judged:
        in_dtypes, faults = rows.get(name, ((), ()))
        of_name = tuple(f for f in said if f.where == name)
        residual = partial(residual_of, name, held.get(name))
        of_oracle = tuple(f for f in oracles if f.where == name)
        verdict, found = judge(Evidence(name, held.get(name), of_name, residual, in_dtypes, faults, of_oracle))
        verdicts.append(verdict)
        findings += found
    oracle = f"float64 oracle: {ready.subject.oracle}"
    return Report(
        ready.subject.name, oracle, key, tuple(verdicts), tuple(findings), (*_notes(ready), *_not_run(ready, narrow))
    )


def _oracle_looked_at(ready: Prepared, point: Point, seen: Seen, held: dict[str, Held], key: int) -> list[Finding]:
    torn = {name: held[name].torn for name in seen.oracle if name in held}
    return disagreements(ready.primal, ready.subject.names, point, seen.oracle, torn, key)


def _absent(ready: Prepared, seen: Seen) -> list[Finding]:
    detail = "the backward returned None for it, which stands for zero, and it is not zero"
    return [Finding(name, "structure", detail) for name in ready.wide.absent if np.any(seen.oracle[name])]


def _impure(
    ready: Prepared, narrow: Point, wide: list[Point], seen: list[Seen], rounding: Callable[[], dict], eager: bool
) -> list[Finding]:
    """What differs between ways to call it, by more than rounding explains."""
    changing = [] if ready.is_repeatable() else purity(ready.subject, narrow)
    found = consistency(seen[0])
    if not ready.is_lifted:
        found += eagerness(ready.subject, wide[0], seen[0]) if eager else []
        found += partiality(ready.subject, wide[0], seen[0]) if ready.sees_zeros else []
        found += batching(ready.subject, wide, seen) if ready.batches_itself and not ready.wide.unbatched else []
    coarse = 1e3 * float(jnp.finfo(ready.casts_to).eps) if ready.casts_to else 0.0
    return changing + [f for f in found if f.error > max(coarse, np.max(rounding()[f.where].either, initial=0.0))]


def _looked_at(
    ready: Prepared, points: list[Point], seen: list[Seen], linear: bool
) -> tuple[Rounding, dict[str, Held], list[Finding]]:
    """What round-off may make of each value, each held against the oracle's, and those that are not linear in dy."""
    rounding = rounding_at(ready, points)
    # Values that nobody chose lie on no kink.
    chosen = any(is_differentiable(v) and not fresh.is_specification(v) for v in ready.subject.leaves)
    neighbours = Neighbourhood(ready.wide.gradients, points, ready.wide.names, special=(0,) if chosen else ())
    held = hold(ready.wide, points, seen, rounding, ready.round_off, neighbours)
    return rounding, {h.where: h for h in held}, linearity(stacked(seen), rounding) if linear else []


def _notes(ready: Prepared) -> tuple[str, ...]:
    casts = f"it casts down to {ready.casts_to} inside; the derivation was judged without those casts"
    loops = f"vmap was not used: {ready.wide.unbatched}"
    coarse = (
        f"it runs in its own dtypes alone, whose constants are rounded: errors below {ready.round_off:.0e} may pass"
    )
    notes = (casts, ready.casts_to), (loops, ready.wide.unbatched), (coarse, ready.round_off > ROUND_OFF)
    return (*(note for note, applies in notes if applies), *_interpreted(ready.subject))


def _not_run(ready: Prepared, points: list[Point]) -> tuple[str, ...]:
    """A note for each rule inside that ran at none of the points: nothing was seen of it."""
    if not ready.may_skip:
        return ()
    ran: dict[str, bool] = {}
    for p in points:
        for site in sites(lambda *leaves: ready.subject.plain(list(leaves)), *p.leaves):
            where = f"{site.name} at {site.file}:{site.line}" if site.file else site.name
            ran[where] = ran.get(where, False) or site.ran
    return tuple(f"the rule {where} did not run, and was not judged" for where, has in ran.items() if not has)


def _interpreted(subject: Subject) -> tuple[str, ...]:
    return ran_interpreted(lambda leaves: swept(subject.sweep, leaves), subject.specs)


def _precision(
    ready: Prepared, narrow: list[Point], wide: list[Point], held: dict[str, Held], truth: dict[str, np.ndarray]
) -> dict[str, tuple[tuple[Precision, ...], tuple[Finding, ...]]]:
    """For each value: its errors in every working dtype, and what is wrong with it there; one fault for each dtype."""
    found: dict[str, tuple[tuple[Precision, ...], tuple[Finding, ...]]] = {}
    for working in ready.narrow():
        drawn = precision.rows_in(ready, working, narrow, wide, held, truth)
        more = [
            precision.rows_in(ready, working, narrow[:1], wide[:1], held, None, draw)
            for draw in precision.DRAWS
            if draw
        ]
        for name, row in drawn.items():
            faults = [fault for r in (drawn, *more) if name in r and (fault := r[name].fault)]
            before, known = found.get(name, ((), ()))
            found[name] = (*before, row.summary()), (*known, *faults[:1])
    return found


def _scales(linear: bool) -> tuple[float, ...]:
    """What the cotangents are multiplied by at each point; all small for a backward that is not meant to be linear."""
    return SCALES if linear else (SCALES[-1],) * POINTS


def _sample(ready: Prepared, key: int, linear: bool) -> tuple[list[Point], list[Point], list[Seen]]:
    """The points of a check: in the working dtypes, in float64 as they were run, and what was seen there."""
    narrow, wide, seen = zip(
        *(_sampled_at(ready, key, i, scale) for i, scale in enumerate(_scales(linear))), strict=True
    )
    if not linear:
        narrow = [Point(p.leaves, [(v * SCALES[-1]).astype(v.dtype) for v in p.dys]) for p in narrow]
    return list(narrow), list(wide), list(seen)


def _sampled_at(ready: Prepared, key: int, i: int, scale: float) -> tuple[Point, Point, Seen]:
    """Point number i: fresh values ever nearer to the given ones, until the function is defined there."""
    attempts = (_attempt(ready, key, i, n, scale) for n in range(len(fresh.STRENGTHS)))
    tried = next(attempts)
    while not _is_defined(tried[2]) and (again := next(attempts, None)):
        tried = again
    return tried


def _attempt(ready: Prepared, key: int, i: int, attempt: int, scale: float) -> tuple[Point, Point, Seen]:
    rng = fresh.generator(key, i, attempt)
    leaves = fresh.leaves_of_point(ready.subject.leaves, rng, i, attempt, skewed=i == 1)
    point = Point(leaves, [fresh.cotangents(rng, COTANGENTS, v.shape, v.dtype, i) for v in ready.outputs])
    exact = Point([fresh.exactly(v) for v in widened(point.leaves)], [v * scale for v in widened(point.dys)])
    (values,) = run_in_float64(ready.wide.run, [exact])
    return point, exact, values


def _is_defined(seen: Seen) -> bool:
    return all(np.all(np.isfinite(v)) for v in (*seen.y_oracle.values(), *seen.oracle.values()))
