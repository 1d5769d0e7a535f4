"""J of half-precision inputs is at least float32, as it is computed; their cotangents are of their own dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rule import Case, Rule
from bpref.rules import RULES
from bpref.verify.rules.catalogue import sizes_of
from bpref.verify.rules.draw import draw
from tests.conftest import SEED

OF_TOKENS = ("token_log_probability", "token_entropy")
"""What they give is no objective yet: a number for each token, of the logits' dtype."""

LOSSES = [r for r in RULES.values() if r.make.__module__.split(".")[-2].endswith("loss") and r.name not in OF_TOKENS]


def in_dtype(tree, dtype):
    return jax.tree.map(lambda v: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v, tree)


def example_of(rule: Rule, case: Case, dtype):
    """The layer, and its params and x in a dtype."""
    drawn = draw(rule, case, sizes_of(case), SEED)
    return drawn.layer, in_dtype((drawn.params, drawn.x), dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("rule", LOSSES, ids=lambda rule: rule.name)
def test_dtypes(rule, dtype):
    for case in rule.cases:
        layer, given = example_of(rule, case, dtype)

        def sweep(params, x, layer=layer):
            J, cache = layer.forward(params, x)
            return J, layer.backward(params, cache, J)

        J, cotangents = jax.eval_shape(sweep, *given)
        assert {v.dtype for v in jax.tree.leaves(J)} == {jnp.dtype(jnp.float32)}, case.name
        came, expected = (jax.tree.leaves(tree, is_leaf=lambda v: v is None) for tree in (cotangents, given))
        for d, v in zip(came, expected, strict=True):
            assert d is None or (d.shape, d.dtype) == (v.shape, v.dtype), case.name


@pytest.mark.parametrize("rule", LOSSES, ids=lambda rule: rule.name)
def test_it_is_as_exact_as_that_of_the_same_numbers_in_float32(rule):
    layer, given = example_of(rule, rule.cases[0], jnp.bfloat16)
    of = jax.jit(lambda params, x: layer.forward(params, x)[0])
    np.testing.assert_allclose(of(*given), of(*in_dtype(given, jnp.float32)), rtol=1e-5, atol=1e-6)


def test_a_network_in_bfloat16_has_its_objective_in_float32():
    """5.1875 is how bfloat16 would have it."""
    J = bpref.objective(network=bpref.linear(3), loss=bpref.square("batch_mean"))
    x = jnp.full((4, 2), 0.3, jnp.bfloat16), jnp.full((4, 3), 2.1, jnp.bfloat16)
    params = J.init(jax.random.key(0), x)
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    value, dparams, _ = bpref.backpropagate(J, params, x)
    assert value.dtype == jnp.float32
    assert float(value) != float(value.astype(jnp.bfloat16))
    assert {v.dtype for v in jax.tree.leaves(dparams)} == {jnp.dtype(jnp.bfloat16)}
