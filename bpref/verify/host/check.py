"""Functions that JAX cannot trace or differentiate: the hand's backward held against what is known with error bars.

Whatever takes and returns array-likes can be checked so: NumPy, PyTorch, a compiled kernel, a JAX function around a
callback. The oracle is autodiff of the reference, where there is one that can be differentiated, else finite
differences (`bpref.verify.numbers.numerical`). Where its bars are too wide to decide, the verdict is 'cannot tell'.
"""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bpref.programs import Typed
from bpref.verify.examining.cross_check import ELEMENTS, apart
from bpref.verify.examining.laws import SLACK, TWO_ANSWERS, not_linear
from bpref.verify.examining.prepare import x64_for
from bpref.verify.examining.program import COTANGENTS, SCALES
from bpref.verify.examining.rows import Row, text
from bpref.verify.examining.subject import REFERENCE, Entry, Misfit, Subject
from bpref.verify.host.called import Called, called, copies, in_dtype, widened
from bpref.verify.host.judged import BARS, DOUBLE, Judged, judge_argument, judge_output
from bpref.verify.host.oracles import MARGIN, Oracle, numerical, of_reference
from bpref.verify.host.precision import Compared, compared, roughness, sweeps, terms, value_and_effect
from bpref.verify.host.sampling import POINTS, Sample, cotangent, eps_of, point, sampled, widest
from bpref.verify.naming import first_line
from bpref.verify.numbers import points as fresh
from bpref.verify.oracle import Arrays, is_differentiable
from bpref.verify.report import CANNOT_TELL, IMPRECISE, OK, WRONG, Finding, Report, Verdict


def check_numerically(
    subject: Subject, key: int, why: str, dtypes: Sequence[DTypeLike] | None, linear: bool, cross_check: bool
) -> Report:
    """The report of a subject that JAX cannot examine; `why` is a note for the reader, the rest as in `check`."""
    c = called(subject)
    if subject.oracle == REFERENCE:
        oracle = of_reference(subject, c.differentiable)
    else:
        oracle = numerical(c.plain, c.differentiable, "its own primal", False)
    if not _is_repeatable(c, key):
        return of_two_answers(c, oracle, key, (why,) if why else ())
    findings = disagreements(c, oracle, key) if cross_check and not oracle.differs() else []
    return check_called(c, oracle, key, dtypes, linear, (why,) if why else (), tuple(findings))


def check_called(
    c: Called,
    oracle: Oracle,
    key: int,
    dtypes: Sequence[DTypeLike] | None,
    linear: bool,
    notes: tuple[str, ...] = (),
    findings: tuple[Finding, ...] = (),
) -> Report:
    """The report of a function that is called; an oracle that calls something wrong is held against differences first.

    Args:
      c, oracle: what is checked, and what it is held against.
      key, dtypes, linear: as in `check`.
      notes: what else a reader should know.
      findings: what is known to be wrong already, with the oracle or by the value's name.
    """
    # What clips is right for small cotangents.
    c = c if linear else c._replace(scale=SCALES[-1])
    samples, judged = judge_called(c, oracle, key)
    if any(j.verdict.verdict == WRONG for j in judged.values()) and not oracle.differs():
        findings += tuple(f for i in range(POINTS) for f in disagreements(c, oracle, key, i))
    for f in [*findings, *(_nonlinear(c, oracle, samples, key) if linear else ())]:
        if f.kind == "oracle":
            judged[f.where] = _of_wrong_oracle(judged[f.where], f)
        elif judged[f.where].verdict.verdict in (OK, CANNOT_TELL):
            judged[f.where] = Judged(Verdict(f.where, WRONG, f.detail, f.error), f)
    right = {name for name, j in judged.items() if j.verdict.verdict == OK}
    chosen = _working(c, dtypes)
    rows, unmeasured = _precision(c, oracle, key, chosen, right, in_double=eps_of(samples[0].y) < 1e-10)
    if not _is_as_at_first(c, samples[0]):
        return of_two_answers(c, oracle, key, notes)
    final = [_with_precision(j, rows.get(name, [])) for name, j in judged.items()]
    found = tuple(j.finding for j in final if j.finding)
    return Report(c.name, oracle.text, key, tuple(j.verdict for j in final), found, (*notes, *unmeasured))


def judge_called(
    c: Called, oracle: Oracle, key: int, points: Sequence[int] = tuple(range(POINTS))
) -> tuple[list[Sample], dict[str, Judged]]:
    """What came at these points, and for each value of a function the verdict on the derivation alone."""
    dtype = widest(c, key, oracle.is_exact)
    with jax.enable_x64(True):
        samples = sampled(c, oracle, key, dtype, points)

    @cache
    def in_own() -> dict[str, Compared]:
        """In the dtype that the derivation is judged in, where that is a narrow one."""
        return compared(c, oracle, key, [_own_dtype(v, dtype) for v in c.leaves], set())

    judged = {}
    if samples[0].reference is not None:
        judged |= _outputs(c, oracle, samples, key, in_own)
    differentiable = [(n, name) for n, name in enumerate(c.names) if c.differentiable[n]]
    misfits = [(n, name) for n, name in enumerate(c.names) if isinstance(samples[0].hand[n], Misfit)]
    for n, name in dict.fromkeys([*differentiable, *misfits]):
        judged[name] = judge_argument(c, n, samples, oracle, in_own)
    return samples, judged


def _outputs(
    c: Called, oracle: Oracle, samples: list[Sample], key: int, in_own: Callable[[], dict[str, Compared]]
) -> dict[str, Judged]:
    """The verdict on each output, by name."""
    points = samples[::COTANGENTS]
    eps = eps_of(samples[0].y)
    rng = fresh.generator(key, 12)
    with jax.enable_x64(True):
        effects = [value_and_effect(oracle, s.leaves, rng, eps)[1] for s in points]
    judged = {}
    for i, name in enumerate(c.outputs(len(samples[0].y))):
        if not is_differentiable(samples[0].y[i]):
            continue
        own = in_own().get(name) if oracle.is_exact and eps > 1e-10 else None
        judged[name] = judge_output(c, i, samples, [MARGIN * e[i] for e in effects], own)
    return judged


def _nonlinear(c: Called, oracle: Oracle, samples: list[Sample], key: int) -> list[Finding]:
    """b(2u - 3v) = 2 b(u) - 3 b(v), at the first point, for u and v of several sizes: a clip is met wherever it is."""
    leaves, y, rng = samples[0].leaves, samples[0].y, fresh.generator(key, 13)
    u, v = cotangent(y, rng), cotangent(y, rng)
    eps = eps_of(y)

    def swept(dy: Arrays) -> list[Entry]:
        with x64_for([v.dtype for v in leaves], c.x64):
            return c.sweep(copies(leaves))[1](copies(dy))

    @cache
    def rough() -> list[list[Entry]]:
        return roughness(sweeps(c, oracle), leaves, y, [u, v], fresh.generator(key, 15)) if eps < DOUBLE else [[]]

    def is_rounding(n: int, apart: np.ndarray, both: Arrays, scale: float) -> bool:
        least = eps * terms(y, both, leaves[n])
        inside = [v for of_dy in rough() for v in of_dy[n : n + 1] if v is not None]
        return bool(np.all(apart <= BARS * MARGIN * np.maximum(least, 3 * scale * sum(inside))))

    found = []
    of_u, of_v = swept(u), swept(v)
    # What is zero but for rounding is measured by the other cotangents.
    least = 1e-6 * max((_size(v) for v in (*of_u, *of_v) if isinstance(v, np.ndarray)), default=0.0)
    for scale in (1.0, 2.0**20) if eps < 1e-3 else (1.0,):
        both = [_times(a, 2 * scale, b, -3 * scale) for a, b in zip(u, v, strict=True)]
        for n, together in enumerate(swept(both)):
            parts = of_u[n], of_v[n], together
            if not all(isinstance(p, np.ndarray) and p.shape == together.shape for p in parts):
                continue
            sum_of_both = 2 * scale * _wide(of_u[n]) - 3 * scale * _wide(of_v[n])
            size = scale * max(_size(of_u[n]), _size(of_v[n]), least)
            with np.errstate(invalid="ignore"):
                apart = np.abs(sum_of_both - _wide(together))
            error = float(np.max(apart, initial=0.0)) / max(size, 1e-300)
            if error > max(SLACK, 1e3 * eps) and not is_rounding(n, apart, both, scale):
                found.append(Finding(c.names[n], "nonlinear", not_linear("dy", error), error))
    return found


def _size(v: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(np.nan_to_num(_wide(v))), initial=0.0))


def _times(u: np.ndarray, a: float, v: np.ndarray, b: float) -> np.ndarray:
    return (a * _wide(u) + b * _wide(v)).astype(u.dtype) if is_differentiable(u) else u


def _wide(v: np.ndarray) -> np.ndarray:
    return in_dtype(v, "float64")


def _working(c: Called, dtypes: Sequence[DTypeLike] | None) -> dict[str, list[np.dtype]]:
    """The dtypes of the leaves in which precision is measured, by name."""
    own = [v.dtype for v in c.leaves]
    if dtypes is not None:
        names = [jnp.dtype(d).name for d in dtypes]
        return {name: [_own_dtype(v, name) for v in c.leaves] for name in names}
    names = dict.fromkeys(jnp.dtype(d).name for d, keep in zip(own, c.differentiable, strict=True) if keep)
    return {"/".join(names): own}


def _own_dtype(v: Typed, dtype: str) -> np.dtype:
    return in_dtype(np.zeros(0, v.dtype), dtype).dtype if dtype and is_differentiable(v) else v.dtype


def _precision(
    c: Called, oracle: Oracle, key: int, chosen: dict[str, list[np.dtype]], right: set[str], in_double: bool
) -> tuple[dict[str, list[Row]], list[str]]:
    """For each value that is right, its errors in every working dtype and whether they are too large; and notes."""
    rows: dict[str, list[Row]] = {}
    notes = []
    for label, dtypes in chosen.items():
        if label in ("float64", "complex128") or not right or not (oracle.is_exact or in_double):
            continue
        try:
            found = compared(c, oracle, key, dtypes, right)
        except Exception as error:
            why = first_line(error, type(error).__name__)
            notes.append(f"it does not run in {label}, so its precision there is not known ({why})")
            continue
        for name in right & found.keys():
            rows.setdefault(name, []).append(found[name].row(name))
    return rows, notes


def _with_precision(judged: Judged, rows: list[Row]) -> Judged:
    v = judged.verdict
    precision = tuple(row.summary() for row in rows)
    undefined = [row.fault for row in rows if row.fault and row.fault.kind == "undefined"]
    faults = [row.fault for row in rows if row.fault and row.fault not in undefined]
    if undefined and not faults:
        detail = "\n".join(f.detail for f in undefined)
        return Judged(Verdict(v.where, CANNOT_TELL, detail, v.error, precision), undefined[0])
    if faults:
        detail = "\n".join(f.detail for f in faults)
        found = Finding(v.where, "imprecise", detail, max(f.error for f in faults))
        return Judged(Verdict(v.where, IMPRECISE, detail, v.error, precision), found)
    detail = "; ".join([v.detail, *map(text, precision)])
    return Judged(v._replace(detail=detail, precision=precision), judged.finding)


def _is_repeatable(c: Called, key: int) -> bool:
    leaves = point(c, key, 0)
    once, again = (c.plain(copies(leaves)) for _ in range(2))
    return all(np.array_equal(v, w, equal_nan=is_differentiable(v)) for v, w in zip(once, again, strict=True))


def _is_as_at_first(c: Called, first: Sample) -> bool:
    """Whether the first call's cotangents, asked for once more at the end of all calls, are the same but for rounding:
    what counts its calls, or fills a cache, is found."""
    with x64_for([v.dtype for v in first.leaves], c.x64):
        again = c.sweep(copies(first.leaves))[1](copies(first.dy))
    both = ((_wide(v), _wide(w)) for v, w in zip(first.hand, again, strict=True) if isinstance(v, np.ndarray))
    slack = max(SLACK, 1e3 * eps_of(first.y))
    return all(v.shape == w.shape and _size(v - w) <= slack * _size(v) for v, w in both)


def of_two_answers(c: Called, oracle: Oracle, key: int, notes: tuple[str, ...]) -> Report:
    """The report of a function that is not the same when it is called again."""
    names = [name for name, d in zip(c.names, c.differentiable, strict=True) if d]
    verdicts = tuple(Verdict(name, CANNOT_TELL, TWO_ANSWERS, np.inf) for name in names)
    findings = tuple(Finding(name, "impure", TWO_ANSWERS) for name in names)
    return Report(c.name, oracle.text, key, verdicts, findings, notes)


def disagreements(c: Called, oracle: Oracle, key: int, i: int = 0) -> list[Finding]:
    """The arguments whose cotangents by autodiff are not what finite differences say, at a few elements of point `i`.

    Nothing is said of a numerical oracle, which is finite differences itself.
    """
    if oracle.in_float64 is None:
        return []
    in_float64, rng = oracle.in_float64, fresh.generator(key, 21)
    leaves = widened(point(c, key, i), c.differentiable)

    def values(leaves: Arrays) -> Arrays:
        return in_float64(leaves, [])[0]

    dys = [cotangent(values(leaves), rng)]
    (truth,) = in_float64(leaves, dys)[1]
    (found,) = numerical(values, c.differentiable, "it", False, ELEMENTS).cotangents(leaves, dys, rng, 0.0)
    chosen = [(n, name) for n, name in enumerate(c.names) if found.cotangents[n] is not None]
    details = {name: apart(found, n, truth[n], np.zeros(truth[n].shape, bool)) for n, name in chosen}
    return [Finding(name, "oracle", detail) for name, detail in details.items() if detail]


def _of_wrong_oracle(judged: Judged, found: Finding) -> Judged:
    """What is known of an argument whose oracle is wrong: no more than the form of its cotangent."""
    if judged.finding and judged.finding.kind in ("structure", "dtype"):
        return judged
    return Judged(Verdict(found.where, CANNOT_TELL, found.detail, np.inf), found)
