"""lenet and vit: the published sizes, and the gradient of what they are composed of, written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from benchmarks import plain_models
from tests.rules.sweeping import by_oracle, compiled


def size_of(network, *shape):
    params = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return sum(p.size for p in jax.tree.leaves(params))


def test_lenet_has_as_many_parameters_as_is_taught():
    assert size_of(bpref.lenet(), 1, 28, 28, 1) == 61_706


def test_vit_b_16_has_as_many_parameters_but_for_the_token_of_the_class():
    """torchvision's has 86,567,656, with the token and a position of its own."""
    assert size_of(bpref.vit(196, 16, 1000, 768, 12, 12), 1, 224, 224, 3) == 86_567_656 - 2 * 768


@pytest.mark.parametrize(
    ("network", "plain", "shape"),
    [
        (bpref.lenet(), plain_models.lenet, (2, 28, 28, 1)),
        (bpref.vit(12, 2, 5, 8, 2, 2), partial(plain_models.vit, heads=2, patch=2), (2, 6, 8, 3)),
    ],
    ids=["lenet", "vit"],
)
def test_it_is_the_plain_form_and_its_gradient_autodiffs(network, plain, shape):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.normal(size=shape)
        params = jax.tree.map(
            lambda p: p + 0.1 * rng.normal(size=p.shape), compiled(network.init)(jax.random.key(0), x)
        )
        dy = rng.normal(size=jax.eval_shape(network.forward, params, x)[0].shape)
        y, *came = compiled(partial(bpref.backpropagate, network))(params, x, dy)
        expected, truth = by_oracle(plain, params, x, dy=dy)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(jax.tree.leaves(came), jax.tree.leaves(truth), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)
