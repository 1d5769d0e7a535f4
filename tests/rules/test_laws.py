"""The laws of DESIGN, each for every rule and each of its cases: a new rule gets all of them without a line here."""

import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

import bpref
from bpref.bridge import as_function
from bpref.cotangents import has_cotangent, is_differentiable, with_zeros
from bpref.rule import Case, Interval, Real, Rule, Size
from bpref.rules import RULES
from bpref.verify import oracle
from bpref.verify.examining.held import ROUND_OFF
from bpref.verify.examining.prepare import Prepared
from bpref.verify.rules.catalogue import (
    WORKING,
    broken_laws,
    cache_bytes,
    check_laws,
    imprecise,
    passed,
    prepare_example,
    rows_of,
    rows_of_case,
    run,
    sabotages,
    sizes_of,
)
from bpref.verify.rules.draw import Example, all_of_size, axes_of, draw, hyperparameters, is_spec
from tests import comparing
from tests.conftest import SEED, SLOW_TO_COMPILE
from tests.rules.drawing import drawn
from tests.rules.sweeping import as_users_compile, compiled, in_one_program, narrow_program, wide_values_in

EVERY_RULE = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def every_case(marks_of_the_first=()):
    """A test for each rule's every case. The laws of one case run one after the other and share its programs."""
    params = [
        pytest.param(r, c, id=f"{r.name}-{c.name}", marks=marks_of_the_first if c is r.cases[0] else ())
        for r in RULES.values()
        for c in r.cases
    ]
    return pytest.mark.parametrize(("rule", "case"), params, scope="module")


assert_same = partial(comparing.assert_same, tolerance=ROUND_OFF)

EVERY_CASE = every_case()
EVERY_CASE_THE_FIRST_QUICK = every_case(pytest.mark.quick)


class Swept(NamedTuple):
    """One forward and its backward."""

    y: Any
    params: Any
    x: Any


def small(rule: Rule, case: Case, seed: int = SEED) -> Example:
    return draw(rule, case, all_of_size(case, 3), seed)


def without_points(case: Case) -> Case:
    """The case away from its kinks and far ends, where second derivatives are what the formula says."""
    plain = jax.tree.map(
        lambda spec: spec._replace(points=()) if isinstance(spec, Real) else spec, case.x, is_leaf=is_spec
    )
    return case._replace(x=plain)


def sweep(layer):
    """The hand's forward and one backward, as a function of arrays alone."""

    def run(params, x, dy):
        y, cache = layer.forward(params, x)
        return Swept(y, *layer.backward(params, cache, dy))

    return run


def kept_for_the_case(f: Callable[[Rule, Case], Any]) -> Callable[[Rule, Case], Any]:
    """`f`, of which the last two results are kept."""
    kept = lru_cache(maxsize=2)(lambda name, index: f(RULES[name], RULES[name].cases[index]))
    return lambda rule, case: kept(rule.name, rule.cases.index(case))


@kept_for_the_case
def prepared(rule: Rule, case: Case) -> Prepared:
    """The case's programs at the sizes it is verified with, in float64 and in the working dtypes."""
    return prepare_example(draw(rule, case, sizes_of(case), SEED), WORKING)


@kept_for_the_case
def compiled_sweep(rule: Rule, case: Case) -> Callable[..., Swept]:
    """`sweep` of the small case under jit, which may be traced once, whoever calls it."""
    run = sweep(small(rule, case).layer)
    chex.clear_trace_counter()  # it counts by name and address, and the address may have been another's
    return compiled(chex.assert_max_traces(run, n=1))


def named_tuples_in(tree: Any) -> Iterator[type]:
    """The types of the named tuples that a tree is made of."""
    if isinstance(tree, tuple):
        if hasattr(tree, "_fields"):
            yield type(tree)
        for part in tree:
            yield from named_tuples_in(part)


@EVERY_RULE
def test_laws_1_to_5_on_whatever_hypothesis_draws(rule: Rule):
    """Forward, backward, linearity and structure in float64; precision in float32 or bfloat16.

    A router of equal logits takes an order in which no x nearby would put them, and autodiff of the formula the same:
    the law is that both agree.
    """

    @settings(SLOW_TO_COMPILE, max_examples=8)
    @given(st.data())
    def property_of(data):
        example, snippet = data.draw(drawn(rule))
        working = data.draw(st.sampled_from(WORKING))
        note(f"To reproduce:\n{snippet}")
        ready = prepare_example(example, (working,))
        assert [f for f in check_laws(example, ready)[0] if f.kind != "oracle"] == []
        assert [row for rows in rows_of([example], ready).values() for row in rows if row.is_coarse] == []

    property_of()


@EVERY_CASE_THE_FIRST_QUICK
def test_laws_1_2_4_5_derivation_in_float64(rule: Rule, case: Case):
    findings, error = check_laws(draw(rule, case, sizes_of(case), SEED), prepared(rule, case))
    assert findings == []
    assert error <= ROUND_OFF


@EVERY_CASE
def test_law_3_no_less_precise_than_autodiff(rule: Rule, case: Case):
    rows = rows_of_case(rule, case, SEED + 1, prepared(rule, case))
    assert {dtype for dtype, seen in rows.items() if seen} == set(WORKING)
    assert [f for of_dtype in rows.values() for row in of_dtype for f in imprecise(row)] == []


@EVERY_CASE
def test_law_6_jit_equals_eager_and_does_not_retrace(rule: Rule, case: Case):
    """Traced with other values than those compared: one kept from the trace would show. The first as users compile."""
    example = small(rule, case)
    again = small(rule, case, SEED + 1)
    run = compiled_sweep(rule, case)
    with jax.enable_x64(True):
        if case is rule.cases[0]:
            inputs = again.params, again.x, again.dy
            assert_same(as_users_compile(sweep(again.layer))(*inputs), run(*inputs))
        run(again.params, again.x, again.dy)
        inputs = example.params, example.x, example.dy
        assert_same(run(*inputs), sweep(example.layer)(*inputs))


@EVERY_CASE
def test_an_output_that_is_not_used_has_none_for_zero(rule: Rule, case: Case):
    """For every choice of them; where none is used, params have zeros, x has `None`, and nothing is computed."""
    example = small(rule, case)
    layer, args, dy = example.layer, (example.params, example.x), example.dy
    with jax.enable_x64(True):
        swept = compiled_sweep(rule, case)(*args, dy)
        cache = layer.forward(*args)[1] if layer.parts else ()
        dparams, dx = layer.backward(args[0], cache, None)
        assert dx is None
        assert_zeros_like(dparams, swept.params)
        outputs, tree = jax.tree.flatten(swept.y)
        used = [is_differentiable(v) for v in outputs]
        if sum(used) == 1:
            return
        cache = in_one_program(layer.forward)(*args)[1]
        pull = in_one_program(layer.backward)
        for choice in list(product(*((True, False) if u else (False,) for u in used)))[1:-1]:
            chosen = list(zip(tree.flatten_up_to(dy), outputs, choice, used, strict=True))
            none, zero = (
                jax.tree.unflatten(tree, [d if c else of_v(v) if u else None for d, v, c, u in chosen])
                for of_v in (lambda v: None, jnp.zeros_like)
            )
            came, expected = pull(args[0], cache, none), pull(args[0], cache, zero)
            assert_same(*(with_zeros(d, args) for d in (came, expected)))
            assert has_cotangent(args[0], came[0]) == has_cotangent(args[0], expected[0])


def assert_zeros_like(dparams: Any, expected: Any) -> None:
    form = jax.tree.map(lambda v: (v.shape, v.dtype), (dparams, expected))
    assert form[0] == form[1]
    assert not any(np.any(d) for d in jax.tree.leaves(dparams))


@EVERY_CASE
def test_law_7_vmap_equals_a_loop(rule: Rule, case: Case):
    run = sweep(small(rule, case).layer)
    examples = [small(rule, case, SEED + i) for i in range(3)]
    inputs = [(e.params, e.x, e.dy) for e in examples]
    with jax.enable_x64(True):
        together = in_one_program(jax.vmap(run))(*jax.tree.map(lambda *v: np.stack(v), *inputs))
        one_by_one = jax.tree.map(lambda *v: np.stack(v), *(compiled_sweep(rule, case)(*i) for i in inputs))
    assert_same(together, one_by_one)


@EVERY_CASE
def test_law_8_empty_axes_work_or_are_refused_by_name(rule: Rule, case: Case):
    for axis in axes_of(case):
        sizes = all_of_size(case, 3) | {axis: 0}
        if axis in case.fixed:
            continue
        if axis in case.never_empty or axis in case.least:
            with pytest.raises(ValueError, match=f"^{rule.name}"):
                draw(rule, case, sizes, SEED)
        else:
            assert check_laws(draw(rule, case, sizes, SEED))[0] == [], axis


@EVERY_CASE
def test_law_8_one_of_everything(rule: Rule, case: Case):
    assert check_laws(draw(rule, case, all_of_size(case, 1), SEED))[0] == []


@EVERY_CASE
def test_law_8_strided_and_broadcast_inputs(rule: Rule, case: Case):
    example = small(rule, case)
    run = compiled_sweep(rule, case)

    def strided(v):
        return np.repeat(v, 2, axis=-1)[..., ::2] if v.ndim else v

    def repeated(v):
        return np.broadcast_to(v[:1], v.shape) if v.ndim else v

    with jax.enable_x64(True):
        for changed in (strided, repeated):
            x = jax.tree.map(changed, example.x)
            dense = jax.tree.map(np.array, x)
            dy = example.dy
            assert_same(run(example.params, x, dy), run(example.params, dense, dy), tolerance=0.0)


@EVERY_CASE
def test_law_9_differentiable_once_more(rule: Rule, case: Case):
    example = small(rule, without_points(case))
    weights = small(rule, without_points(case), SEED + 1)

    def second(f):
        def projected(params, x, dy):
            y, cotangents_of = oracle.with_cotangents(f, params, x)
            cotangents = cotangents_of(oracle.as_cotangent(dy, y))
            chosen = jax.tree.leaves(((weights.params, weights.x), cotangents))
            half = len(jax.tree.leaves(cotangents))
            directions = [v for v in chosen[:-half] if oracle.is_differentiable(v)]
            return sum(jnp.vdot(u, v) for u, v in zip(directions, chosen[-half:], strict=True))

        return in_one_program(oracle.gradient(projected))

    with jax.enable_x64(True):
        inputs = example.params, example.x, example.dy
        by_hand, by_oracle = second(as_function(example.layer))(*inputs), second(example.reference)(*inputs)
    assert_same(Swept(by_hand[2], *by_hand[:2]), Swept(by_oracle[2], *by_oracle[:2]))


@EVERY_CASE
def test_the_forwards_own_autodiff_agrees_at_kinks_and_far_ends(rule: Rule, case: Case):
    """What `checked` compares with: it has no reference, and must accuse no right layer at any value."""
    example = draw(rule, case, sizes_of(case), SEED)
    assert check_laws(example._replace(reference=lambda params, x: example.layer.forward(params, x)[0]))[0] == []


@EVERY_CASE
@pytest.mark.parametrize("narrow", WORKING)
def test_x64_changes_nothing_for_narrow_inputs(rule: Rule, case: Case, narrow: str):
    """Outputs, what is kept and cotangents have the dtypes that they have without x64; nothing is widened on the way.

    JAX's defaults are 64 bits wide then: a NumPy scalar or a default dtype shows here, and a Python number, whose type
    is weak, where it is not promoted.
    """
    example = small(rule, case)

    def traced(x64):
        with jax.enable_x64(x64):
            program, out = narrow_program(example, narrow)
        return program, jax.tree.map(lambda v: str(v.dtype), out)

    (_, expected), (program, came) = traced(False), traced(True)
    assert came == expected
    assert wide_values_in(program) == []


@EVERY_CASE
def test_hyperparameters_may_be_scalars_of_numpy(rule: Rule, case: Case):
    """As a grid of values has them: with x64 one of 64 bits was promoted with a narrow x, or refused beside it."""
    defaults = {k: p.default for k, p in inspect.signature(rule.make).parameters.items() if p.default is not p.empty}
    kinds = {float: np.float64, int: np.int64}
    sizes = all_of_size(case, 3)
    given = {k: kinds.get(type(v), lambda v: v)(v) for k, v in (defaults | hyperparameters(case, sizes)).items()}
    example = draw(rule, case, sizes, SEED, hyper=given)
    with jax.enable_x64(True):
        program, _ = narrow_program(example, "float32")
    assert wide_values_in(program) == []


@EVERY_RULE
def test_every_type_that_a_call_needs_is_a_public_name(rule: Rule):
    """What params, x, y and hyperparameters are made of: a caller builds them, and messages ask for them by name."""
    for case in rule.cases:
        example = small(rule, case)
        with jax.enable_x64(True):
            y = jax.eval_shape(example.layer.forward, example.params, example.x)[0]
        for kind in named_tuples_in((example.params, example.x, y, *case.hyper.values())):
            if not issubclass(kind, Interval | Size):
                assert getattr(bpref, kind.__name__) is kind


LARGER = {
    ("grid_sample", "zeros"): "it keeps the images, and autodiff the four pixels of each point, fewer than theirs here",
    ("linear_recurrence", "complex, with a start"): "it keeps the start beside h, which is y itself; autodiff copies h",
}
"""The cases whose cache is larger than what autodiff keeps, and why."""


@EVERY_CASE
def test_law_10_the_cache_is_no_larger_than_autodiffs(rule: Rule, case: Case):
    hand, autodiff = cache_bytes(draw(rule, case, sizes_of(case), SEED))
    assert (hand > autodiff) == ((rule.name, case.name) in LARGER)


@EVERY_CASE
def test_law_11_sabotage_is_rejected(rule: Rule, case: Case):
    example = small(rule, without_points(case))
    ready = prepare_example(example)
    point, seen = run(example, ready)
    assert broken_laws(ready, point, seen)[0] == []
    tried = list(sabotages(seen))
    assert {s.where for s in tried} == set(seen.combined), "a cotangent could not be spoiled"
    assert passed(ready, point, tried) == []
