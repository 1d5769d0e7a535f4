"""Lengths, labels, ids, indices and sizes in few bits: whatever integers say in int32 they say in a narrow dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.dtypes import widen_integers
from bpref.rule import Case, Integer, Rule
from bpref.rules import RULES
from bpref.verify.rules.draw import all_of_size, draw, is_spec, sized
from tests.conftest import SEED
from tests.rules.sweeping import forward, in_one_program


def integers_of(case: Case) -> list[Integer]:
    specs = jax.tree.leaves((case.x, case.params), is_leaf=is_spec)
    return [spec for spec in specs if isinstance(spec, Integer)]


WITH_INTEGERS = [(rule, case) for rule in RULES.values() for case in rule.cases if integers_of(case)]
NAMES = [f"{rule.name}-{case.name}" for rule, case in WITH_INTEGERS]
FIRST = [(rule, case) for i, (rule, case) in enumerate(WITH_INTEGERS) if rule is not WITH_INTEGERS[i - 1][0]]


def assert_the_same_in(rule: Rule, case: Case, sizes: dict[str, int], dtypes: tuple[Any, ...]) -> None:
    """Bit for bit, of values that the dtype holds: those that the case asks for, and the dtype's ends."""
    example = draw(rule, case, sized(case, all_of_size(case, 2) | sizes), SEED)

    def is_integer(v):
        return np.issubdtype(v.dtype, np.integer) and v.dtype != np.uint32

    def sweep(params, x):
        y, cache = example.layer.forward(params, x)
        outputs, tree = jax.tree.flatten(y)
        dys = zip(tree.flatten_up_to(example.dys), outputs, strict=True)
        dy = tree.unflatten([None if d is None else d[0].astype(v.dtype) for d, v in dys])
        return y, example.layer.backward(params, cache, dy)

    run, given = in_one_program(sweep), (example.params, example.x)
    single = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
    for dtype in dtypes:
        ends = np.iinfo(dtype)

        def held(v, ends=ends):
            return np.clip(v, ends.min, ends.max) if is_integer(v) else v

        def at_the_ends(v, ends=ends):
            return np.resize(np.array([ends.max, ends.min, -1 if ends.min else 0]), v.shape) if is_integer(v) else v

        for values in (held, at_the_ends):
            wide = jax.tree.map(lambda v, of=values: np.asarray(of(v), single.get(v.dtype, v.dtype)), given)
            narrow = jax.tree.map(lambda v, dtype=dtype: v.astype(dtype) if is_integer(v) else v, wide)
            jax.tree.map(np.testing.assert_array_equal, run(*narrow), run(*wide))


@pytest.mark.parametrize(("rule", "case"), WITH_INTEGERS, ids=NAMES)
def test_eight_bits_name_what_they_can_of_260(rule: Rule, case: Case):
    sizes = {spec.high: 260 for spec in integers_of(case) if isinstance(spec.high, str)}
    assert_the_same_in(rule, case, sizes, (np.int8, np.uint8))


@pytest.mark.parametrize(("rule", "case"), FIRST, ids=[rule.name for rule, _ in FIRST])
def test_sixteen_bits_name_what_they_can_of_40000(rule: Rule, case: Case):
    named = [spec.high for spec in integers_of(case) if isinstance(spec.high, str) and spec.high not in case.fixed]
    assert_the_same_in(rule, case, dict.fromkeys(named[-1:], 40000), (np.int16,))


def test_group_sizes_are_summed_with_room():
    """100 + 100 + 100 is 44 in eight bits."""
    x = jnp.ones((300, 2))
    layer = bpref.grouped_matmul(1)
    params = layer.init(jax.random.key(0), (x, jnp.zeros(3, jnp.int32)))
    narrow, wide = (forward(layer, params, (x, np.full(3, 100, dtype))) for dtype in (np.uint8, np.int32))
    assert int(jnp.sum(narrow != 0)) == 300
    np.testing.assert_array_equal(narrow, wide)


def test_what_an_unsigned_dtype_holds_beyond_a_signed_one_is_the_largest():
    assert widen_integers(jnp.array([1, 2**32 - 1], jnp.uint32)).tolist() == [1, 2**31 - 1]
    assert widen_integers(np.array([-1], np.int8)).dtype == jnp.int32
