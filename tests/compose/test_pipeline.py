"""Stages on devices give what the layers give in series; on a mesh, `tests/rules/test_collective.py` shows it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.conftest import SEED
from tests.rules.sweeping import backpropagate

X = np.random.default_rng(SEED).normal(size=(6, 3))
BLOCK = bpref.residual(bpref.serial(bpref.l2_normalize(), bpref.linear(3), bpref.tanh()))
"""Of zeros, which a device without work has, the first layer has a gradient that is not finite."""


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 2), (2, 1), (4, 3)])
@pytest.mark.parametrize("combinator", [lambda block: block, bpref.remat], ids=["kept", "remat"])
def test_stages_are_the_layers_in_series(devices, microbatches, combinator):
    whole, staged = bpref.scan(BLOCK, 4), bpref.pipeline(combinator(BLOCK), 4, devices, microbatches)
    with jax.enable_x64(True):
        params = jax.device_get(whole.init(jax.random.key(SEED), jnp.asarray(X)))
        dy = np.random.default_rng(SEED + 1).normal(size=X.shape)
        split = jax.tree.map(lambda v: v.reshape(devices, -1, *v.shape[1:]), params)
        y, dparams, dx = backpropagate(whole, params, X, dy)
        came = backpropagate(staged, split, X, dy)
        joined = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), came[1])
        for a, b in zip(jax.tree.leaves((came[0], joined, came[2])), jax.tree.leaves((y, dparams, dx)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
        assert jax.tree.map(jnp.shape, staged.init(jax.random.key(SEED), jnp.asarray(X))) == jax.tree.map(
            jnp.shape, split
        )


def test_an_output_that_is_not_used_has_zeros_and_none():
    staged = bpref.pipeline(BLOCK, 4, 2, 3)
    params = staged.init(jax.random.key(SEED), jnp.asarray(X))
    dparams, dx = staged.backward(params, staged.forward(params, jnp.asarray(X))[1], None)
    assert dx is None
    assert not any(np.any(d) for d in jax.tree.leaves(dparams))
    assert jax.tree.map(jnp.shape, dparams) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bpref.pipeline(BLOCK, 4, 3, 2), "pipeline: length is 4, expected a multiple of 3 devices"),
        (lambda: bpref.pipeline(BLOCK, 4, 2, 4), r"pipeline: x has shape \(6, 3\), expected 4 micro-batches along its"),
        (lambda: bpref.pipeline(bpref.batch_norm(), 4, 2, 2), "pipeline: batch_norm takes .* of all examples at once"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        (layer := make()).forward(layer.init(jax.random.key(SEED), X), X)


@pytest.mark.parametrize(
    "leaf", [bpref.update_in_backward(optax.sgd(0.1)), bpref.per_example_norms, bpref.split_backward]
)
def test_what_does_not_add_up_over_micro_batches_is_refused(leaf):
    layer = bpref.map_leaves(leaf, bpref.pipeline(bpref.linear(3), 2, 2, 2))
    params = layer.init(jax.random.key(SEED), jnp.asarray(X))
    with pytest.raises(ValueError, match="pipeline: leaves put in the place of dparams what is none"):
        bpref.backpropagate(layer, params, jnp.asarray(X), jnp.asarray(X))
