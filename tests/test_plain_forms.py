"""A plain form that stands for a reference in the benchmark of rules gives the same values."""

import jax
import numpy as np
import pytest

from benchmarks.bench_rules import SEED, plain_form, timed_case
from benchmarks.plain_forms import PLAIN
from bpref.rules import RULES
from bpref.verify.rules.draw import draw


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_form_is_the_reference_in_a_faster_form(name: str):
    rule = RULES[name]
    case = timed_case(rule)
    small = {axis: n if case.fixed.get(axis) == n else min(n, 32) for axis, n in case.timed.items()}
    example = draw(rule, case, small, SEED)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        forms = plain_form(rule, example), example.reference
        got, expected = (jax.tree.leaves(jax.jit(f)(example.params, example.x)) for f in forms)
    # JAX's own attention has its logits in float32, whatever it is given.
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, float(np.max(np.abs(b)))))
