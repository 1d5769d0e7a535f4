"""The rivals of the models' benchmark compute what the models do, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from benchmarks import bench_models, library_models, model_works, plain_models
from bpref.models.gpt_config import GptConfig
from bpref.verify.oracle import gradient

GPT = GptConfig(16, 8, 2, 2, 12, 5, eps=1e-3)

SMALL = {
    "mlp": partial(model_works.mlp, 3, 6, 4),
    "gpt": partial(model_works.gpt, GPT, 2),
    "lstm": partial(model_works.text, "lstm", plain_models.lstm_block, 2, 5, 8),
    "mamba": partial(model_works.text, "mamba", plain_models.mamba, 2, 5, 8),
    "mixture": partial(model_works.mixture, 2, 5, 8),
    "gpt of blocks": partial(model_works.unrolled, 2),
    "vae": partial(model_works.vae, (4, 4, 1), 6, 2, 3),
    "unet": partial(model_works.unet, (8, 8, 1), 4, 3),
}
"""Those that classify images are in the tests of the models."""


@pytest.fixture(autouse=True)
def as_users_have_it(standard_promotion):
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_a_plain_form_of_a_model_has_its_value_and_gradient(make):
    work = make()
    with jax.enable_x64(True):
        params, x = jax.tree.map(_wide, (work.params, work.x))
        y, dparams, _ = jax.jit(partial(bpref.backpropagate, work.objective))(params, x)
        J = y[0] if isinstance(y, tuple) else y  # with the state that comes of it
        for name, form in work.forms.items():
            value = jax.jit(form)(params, x)
            expected = jax.jit(lambda params, form=form: gradient(lambda p: form(p, x))(params)[0])(params)
            # JAX's own attention has its logits in float32, whatever it is given.
            tolerance = 1e-5 if "jax.nn" in name else 1e-9
            np.testing.assert_allclose(J, value, rtol=tolerance)
            for ours, theirs in zip(jax.tree.leaves(dparams), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def _wide(v):
    return np.asarray(v, np.float64) if jnp.issubdtype(v.dtype, jnp.floating) else v


@pytest.mark.parametrize("policy", [None, *bench_models.POLICIES.values()], ids=["none", *bench_models.POLICIES])
def test_a_policy_changes_no_gradient_of_our_own_forward(policy):
    work = model_works.gpt(GPT, 2)
    form = bench_models.own_under(GPT, policy)
    expected = bpref.backpropagate(work.objective, work.params, work.x)[1]
    came = jax.jit(lambda params: gradient(lambda p: form(p, work.x))(params)[0])(work.params)
    for ours, theirs in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_another_librarys_gpt_and_mlp_have_as_many_parameters():
    """And PyTorch's, with our weights, has our J."""
    work = model_works.gpt(GPT, 2)
    for make in (library_models.nnx_gpt,):
        params = make(GPT, work.x)[1][0]
        assert _size(params) == _size(work.params)
    J = float(work.objective.forward(work.params, work.x)[0])
    assert library_models.torch_gpt(GPT, work.params, work.x)() == pytest.approx(J, rel=1e-5)
    mlp = model_works.mlp(3, 6, 4)
    assert _size(library_models.nnx_mlp([6] * 4, mlp.x)[1][0]) == _size(mlp.params)


def _size(params):
    return sum(p.size for p in jax.tree.leaves(params))
