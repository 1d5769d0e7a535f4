"""cast_params: computed in one dtype, stored and updated in another."""

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from tests.conftest import SEED


def test_parameters_stay_in_float32_while_the_layer_computes_in_bfloat16():
    plain = bpref.serial(bpref.linear(4), bpref.tanh(), bpref.linear(2))
    mixed = bpref.map_leaves(bpref.cast_params(jnp.bfloat16), plain)
    x = jnp.asarray(np.random.default_rng(SEED).normal(size=(8, 3)), jnp.bfloat16)
    params = mixed.init(jax.random.key(SEED), x)
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y, dparams, dx = bpref.backpropagate(mixed, params, x, jnp.ones((8, 2), jnp.bfloat16))
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert {v.dtype for v in jax.tree.leaves(dparams)} == {jnp.dtype("float32")}

    rounded = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    y_rounded, dparams_rounded, _ = bpref.backpropagate(plain, rounded, x, jnp.ones((8, 2), jnp.bfloat16))
    np.testing.assert_array_equal(y, y_rounded)
    jax.tree.map(np.testing.assert_array_equal, dparams, jax.tree.map(lambda v: v.astype(jnp.float32), dparams_rounded))
