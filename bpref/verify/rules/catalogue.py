"""A whole rule, every case of it: what `bpref verify` shows in one line of its table."""

import itertools
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpref.rule import Case, Rule
from bpref.verify.diagnosis.diagnose import diagnose
from bpref.verify.diagnosis.judge import misled_text, residuals
from bpref.verify.examining.cross_check import disagreements
from bpref.verify.examining.held import Held, Point, Rounding, hold, run_in_float64, stacked
from bpref.verify.examining.laws import linearity
from bpref.verify.examining.precision import rows_in
from bpref.verify.examining.prepare import Prepared, programs_of, rounding_at
from bpref.verify.examining.program import Seen
from bpref.verify.examining.rows import Row, within
from bpref.verify.examining.subject import as_subject
from bpref.verify.numbers.kinks import Neighbourhood
from bpref.verify.numbers.measure import Ulps, rounded, summarise
from bpref.verify.options import came, seed_of
from bpref.verify.oracle import bytes_kept, bytes_kept_by_autodiff
from bpref.verify.report import Finding
from bpref.verify.rules.draw import Example, axes_of, draw, draw_many, sized

SIZES = (64, 24, 5, 3)
"""The sizes of a case's axes, in order: all different, and enough elements for a 99th percentile."""

WORKING = ("float32", "bfloat16")
"""The dtypes in which a rule's precision is measured."""

ENOUGH = 1000
"""Of fewer elements one sum that happens to cancel decides the 99th percentile ..."""

DRAWS = (1, 40, 200)
"""... so that where one of such a value seems imprecise, more examples of the case are judged together."""


class Errors(NamedTuple):
    """Errors in ulps of one dtype, over every value of every case: by hand, and autodiff's own."""

    hand: Ulps
    autodiff: Ulps


class RuleReport(NamedTuple):
    """What was seen of one rule.

    Attributes:
      name: the rule.
      cases: how many cases were tried.
      float64: the largest relative error of any value or cotangent.
      float32, bfloat16: errors in ulps, beside autodiff's.
      cache_bytes, autodiff_bytes: what the backward needs kept, beside what `jax.vjp` keeps, over all cases.
      findings: what is wrong, each with the name of its case; empty when the rule is right.
      seconds: how long it took.
    """

    name: str
    cases: int
    float64: float
    float32: Errors
    bfloat16: Errors
    cache_bytes: int
    autodiff_bytes: int
    findings: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.findings


def verify_rule(rule: Rule, seed: int = 0) -> RuleReport:
    """Try every case of a rule: the laws of the derivation, of precision, and of the cache's size.

    Example:
      >>> bpref.verify_rule(bpref.RULES["tanh"]).ok
      True

    Raises:
      TypeError: `rule` is no Rule, as `RULES` has them by name; `seed` is no whole number of 0 or more.
    """
    if not isinstance(rule, Rule):
        name = rule if isinstance(rule, str) else getattr(rule, "__name__", getattr(rule, "name", "tanh"))
        raise TypeError(f"verify_rule: rule is {came(rule)}, expected a Rule, such as bpref.RULES[{name!r}]")
    seed = seed_of("verify_rule", seed, "seed")
    start = time.perf_counter()
    findings: list[str] = []
    errors: list[float] = []
    rows: dict[str, list[Row]] = {name: [] for name in WORKING}
    cache = np.zeros(2, int)
    for case in rule.cases:
        example = draw(rule, case, sizes_of(case), seed)
        ready = prepare_example(example, WORKING)
        # The oracle itself is looked at once for each rule: its other cases are of the same formula.
        wrong, error = check_laws(example, ready, cross_check=case is rule.cases[0])
        errors.append(error)
        if all(f.kind != "structure" for f in wrong):
            for dtype, seen in rows_of_case(rule, case, seed, ready).items():
                wrong += [f for row in seen for f in imprecise(row)]
                rows[dtype] += seen
            cache += cache_bytes(example)
        findings += [f"{case.name}: {f}" if case.name else str(f) for f in wrong]
    if cache[0] > cache[1]:
        findings.append(f"cache: {cache[0]} bytes are kept, jax.vjp keeps {cache[1]}")
    float32, bfloat16 = (_summary(seen) for seen in rows.values())
    seconds = time.perf_counter() - start
    hand_bytes, autodiff_bytes = map(int, cache)
    return RuleReport(
        rule.name,
        len(rule.cases),
        max(errors),
        float32,
        bfloat16,
        hand_bytes,
        autodiff_bytes,
        tuple(findings),
        seconds,
    )


def sizes_of(case: Case) -> dict[str, int]:
    """The sizes that a case is verified with."""
    return sized(case, dict(zip(axes_of(case), itertools.chain(SIZES, itertools.repeat(2)), strict=False)))


def prepare_example(example: Example, working: tuple[str, ...] = ()) -> Prepared:
    """The programs of a rule's example, the rule's own reference as the oracle. Under jit it is traced fewer times."""
    layer = example.layer._replace(forward=jax.jit(example.layer.forward), backward=jax.jit(example.layer.backward))
    with jax.enable_x64(True):
        return programs_of(as_subject(layer, (example.params, example.x), example.reference), working)


def run(example: Example, ready: Prepared) -> tuple[Point, Seen]:
    """The example as a point in float64, and what is seen there."""
    point = Point(jax.tree.leaves((example.params, example.x)), jax.tree.leaves(example.dys))
    return point, run_in_float64(ready.wide.run, [point])[0]


def check_laws(
    example: Example, ready: Prepared | None = None, cross_check: bool = False
) -> tuple[list[Finding], float]:
    """The laws of the derivation, in float64: structure, forward, backward, linearity. And the largest error seen.

    With `cross_check`, the reference's autodiff is held against finite differences of the reference as well.
    """
    ready = ready or prepare_example(example)
    if ready.formal:
        return list(ready.formal), float("inf")
    point, seen = run(example, ready)
    return broken_laws(ready, point, seen, cross_check)


def broken_laws(ready: Prepared, point: Point, seen: Seen, cross_check: bool = False) -> tuple[list[Finding], float]:
    """Which of forward, backward and linearity do not hold in what was seen in float64; and the largest error.

    `None` is the cotangent of what is held constant, such as frozen weights: the reference's must be 0 then.
    """
    held, nonlinear = weigh(ready, point, seen, rounding_at(ready, [point]))
    together = stacked([seen])
    absent = [
        Finding(name, "structure", "the backward returned None for it")
        for name in ready.wide.absent
        if np.any(seen.oracle[name])
    ]
    residual_of = residuals(ready, [point], together, (1.0,), {f.where for f in nonlinear})
    wrong = [
        Finding(h.where, *(("oracle", misled_text(h)) if h.is_misled else diagnose(residual_of(h.where, h))), h.error)
        for h in held
        if h.is_wrong and all(f.where != h.where for f in nonlinear)
    ]
    found = absent + wrong + nonlinear
    if cross_check and not found:
        torn = {h.where: h.torn for h in held}
        found = disagreements(ready.primal, ready.subject.names, point, seen.oracle, torn, key=0)
    return found, max(h.error for h in held)


def weigh(
    ready: Prepared, point: Point, seen: Seen, rounding: Rounding, neighbours: Neighbourhood | None = None
) -> tuple[list[Held], list[Finding]]:
    """What was seen in float64, each value held against the oracle's, and those that are not linear."""
    held = hold(ready.wide, [point], [seen], rounding, neighbours=neighbours)
    return held, linearity(stacked([seen]), rounding)


SPOIL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scaled by 1.001": lambda v: v * 1.001,
    "zeroed": np.zeros_like,
    "negated": lambda v: -v,
    "transposed": lambda v: np.swapaxes(v, -1, -2) if v.ndim > 1 and v.shape[-1] == v.shape[-2] else v,
    "summed over its first axis": lambda v: _summed(v, 0),
    "summed over its last axis": lambda v: _summed(v, -1),
}
"""What is done to one cotangent, by name; it stays as it is where the spoiling has no meaning for it."""


class Sabotage(NamedTuple):
    """What is seen of a right backward, made wrong in one leaf, in one way. A checker that passes it is broken."""

    where: str
    how: str
    seen: Seen


def sabotages(seen: Seen) -> Iterator[Sabotage]:
    """Every way to spoil one of the hand's cotangents that changes its value, in every backward alike."""
    for where in seen.combined:
        for how, spoil in SPOIL.items():
            right = seen.hand[where]
            wrong = np.stack([spoil(v) for v in right])
            if not np.allclose(wrong, right, rtol=1e-4, atol=0.0):
                yield Sabotage(
                    where,
                    how,
                    seen._replace(
                        hand=seen.hand | {where: wrong},
                        combined=seen.combined | {where: spoil(seen.combined[where])},
                        zero=seen.zero | {where: spoil(seen.zero[where])},
                    ),
                )


def _summed(v: np.ndarray, axis: int) -> np.ndarray:
    return np.broadcast_to(np.sum(v, axis, keepdims=True), v.shape) if v.ndim else v


def passed(ready: Prepared, point: Point, sabotages: Iterable[Sabotage]) -> list[tuple[str, str]]:
    """Which sabotages, by where and how, `broken_laws` would not have rejected; it is not asked why."""
    rounding = rounding_at(ready, [point])
    neighbours = Neighbourhood(ready.wide.gradients, [point], ready.subject.names)

    def is_rejected(where: str, seen: Seen) -> bool:
        held, nonlinear = weigh(ready, point, seen, rounding, neighbours)
        return any(h.where == where and h.is_wrong for h in held) or any(f.where == where for f in nonlinear)

    return [(s.where, s.how) for s in sabotages if not is_rejected(s.where, s.seen)]


def rows_of(
    examples: Sequence[Example],
    ready: Prepared,
    chosen: Mapping[str, Container[str]] | None = None,
    with_faults: bool = True,
) -> dict[str, list[Row]]:
    """The errors of every value in each of the working dtypes, by its name; or of those that are `chosen`."""
    points, seen = zip(*(run(example, ready) for example in examples), strict=True)
    held: dict[str, Held] = {h.where: h for h in hold(ready.wide, points, seen, rounding_at(ready, list(points)))}
    found = {}
    for working in ready.narrow():
        if chosen is None or working.name in chosen:
            asked = {name: h for name, h in held.items() if chosen is None or name in chosen[working.name]}
            rows = rows_in(ready, working, points, points, asked, with_faults=with_faults)
            found[working.name] = list(rows.values())
    return found


def rows_of_case(rule: Rule, case: Case, seed: int, ready: Prepared) -> dict[str, list[Row]]:
    """`rows_of` one example of a case, for `imprecise`; of many together, where one alone says too little."""
    examples = draw_many(rule, case, sizes_of(case), range(seed, seed + 1000 * DRAWS[-1], 1000))
    rows = rows_of([next(examples)], ready, with_faults=False)
    for before, draws in itertools.pairwise(DRAWS):
        unclear = {dtype: {r.where for r in seen if _says_too_little(r)} for dtype, seen in rows.items()}
        unclear = {dtype: names for dtype, names in unclear.items() if names}
        if not unclear:
            break
        fresh = list(itertools.islice(examples, draws - before))
        for dtype, seen in rows_of(fresh, ready, unclear, with_faults=False).items():
            more = {row.where: row for row in seen}
            rows[dtype] = [_together(row, more[row.where]) if row.where in more else row for row in rows[dtype]]
    return rows


def _says_too_little(row: Row) -> bool:
    return row.hand.size < ENOUGH and bool(imprecise(row))


def _together(row: Row, more: Row) -> Row:
    """The errors of some samples and of some more."""
    hand, autodiff = (np.concatenate(both) for both in ((row.hand, more.hand), (row.autodiff, more.autodiff)))
    return row._replace(hand=hand, autodiff=autodiff)


def imprecise(row: Row) -> list[Finding]:
    """The law of precision: no worse than twice autodiff's own error, and one unit more for a rounding of ours."""
    if within(row):
        return []
    hand, autodiff = summarise(row.hand), summarise(row.autodiff)
    detail = f"{hand.p99:.1f} ulps of {row.dtype} (p99), autodiff {autodiff.p99:.1f}"
    return [Finding(row.where, "imprecise", detail, hand.p99)]


def cache_bytes(example: Example) -> tuple[int, int]:
    """What the hand's forward keeps, and what `jax.vjp` of the reference keeps, in float32."""
    params, x = rounded((example.params, example.x), jnp.float32)
    hand = bytes_kept(lambda params, x: example.layer.forward(params, x)[1], params, x)
    return hand, bytes_kept_by_autodiff(example.reference, params, x)


def _summary(rows: list[Row]) -> Errors:
    def pooled(arrays):
        return summarise(np.concatenate(arrays) if arrays else np.array([np.inf]))

    return Errors(pooled([r.hand for r in rows]), pooled([r.autodiff for r in rows]))
