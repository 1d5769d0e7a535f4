"""Updating in the backward equals a full backward and a full update, for every optimiser that can."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.conftest import SEED

BY_ITSELF = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "adagrad": optax.adagrad(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "lion": optax.lion(0.1),
    "scheduled": optax.adam(optax.cosine_decay_schedule(0.1, 10)),
    "clipped": optax.chain(optax.clip(0.01), optax.sgd(0.1)),
    "accumulated": optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
}
BY_ARRAY = {
    "lamb": optax.lamb(0.1),
    "adafactor": optax.adafactor(0.1),
    "clipped by block": optax.chain(optax.clip_by_block_rms(0.01), optax.sgd(0.1)),
}
"""Optimisers that take a norm of each array: inside `scan` that is a slice, so they are tried without one."""

MIXING = {
    "global norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "global norm, late": optax.chain(optax.sgd(0.1), optax.clip_by_global_norm(1e6)),
    "finite everywhere": optax.apply_if_finite(optax.sgd(0.1), 3),
    "prodigy": optax.contrib.prodigy(),
}


pytestmark = pytest.mark.usefixtures("standard_promotion")

BLOCK = bpref.residual(bpref.serial(bpref.linear(4), bpref.tanh()))


@pytest.mark.parametrize(
    ("optimizer", "middle"),
    [pytest.param(o, bpref.scan(BLOCK, 3), id=name) for name, o in BY_ITSELF.items()]
    + [pytest.param(o, BLOCK, id=name) for name, o in BY_ARRAY.items()],
)
def test_three_steps_equal_three_full_updates(optimizer, middle):
    objective = bpref.objective(bpref.serial(bpref.linear(4), middle, bpref.linear(2)), bpref.square("batch_mean"))
    updating = bpref.map_leaves(bpref.update_in_backward(optimizer), objective)
    rng = np.random.default_rng(SEED)
    x = tuple(jnp.asarray(rng.normal(size=(5, n)), jnp.float32) for n in (3, 2))
    params, updated = (layer.init(jax.random.key(SEED), x) for layer in (objective, updating))
    jax.tree.map(np.testing.assert_array_equal, bpref.params_of(updated), params)

    @jax.jit
    def full(params, state):
        _, dparams, _ = bpref.backpropagate(objective, params, x)
        updates, state = optimizer.update(dparams, state, params)
        return optax.apply_updates(params, updates), state

    in_backward = jax.jit(lambda updated: bpref.backpropagate(updating, updated, x)[1])
    state = optimizer.init(params)
    for _ in range(3):
        params, state = full(params, state)
        updated = in_backward(updated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), bpref.params_of(updated), params)


@pytest.mark.parametrize("name", MIXING)
def test_an_optimizer_that_mixes_parameters_is_refused(name):
    with pytest.raises(ValueError) as refused:
        bpref.update_in_backward(MIXING[name])
    assert str(refused.value) == (
        "update_in_backward: this optimizer's update of one parameter depends on another parameter's gradient "
        "(as clipping by the global norm does), so it needs the whole gradient before its first update; "
        "use the gradient of the whole network with it, or an optimizer that treats each parameter by itself"
    )


def test_an_optimizer_that_draws_random_numbers_is_refused():
    """Its state would start alike in every layer, and every layer of one shape would get the same noise."""
    with pytest.raises(ValueError) as refused:
        bpref.update_in_backward(optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)))
    assert str(refused.value) == (
        "update_in_backward: this optimizer draws random numbers, and would draw the same ones for every layer; "
        "use the gradient of the whole network with it"
    )


def test_what_is_not_trained_stays_as_it_is_and_has_no_optimizer_state():
    """A layer with a PRNG key and a running statistic among its params, whose cotangents are None."""

    def init(key, x):
        return {"scale": jnp.ones(()), "key": key, "mean": jnp.zeros(2)}

    def backward(params, cache, dy):
        return {"scale": jnp.vdot(cache, dy), "key": None, "mean": None}, dy * params["scale"]

    scale = bpref.Layer(init, lambda p, x: (x * p["scale"], x), backward, "scale")
    x = jnp.arange(6.0).reshape(3, 2)
    params = scale.init(jax.random.key(SEED), x)
    assert bpref.trainable(scale, params, x) == {"scale": True, "key": False, "mean": False}
    updating = bpref.update_in_backward(optax.adam(0.5))(scale)
    updated = updating.init(jax.random.key(SEED), x)
    assert jax.tree.structure(updated.state[0].mu) == jax.tree.structure({"scale": 0, "key": None, "mean": None})
    _, after, _ = bpref.backpropagate(updating, updated, x, x)
    assert float(after.params["scale"]) == pytest.approx(0.5, rel=1e-5)
    assert after.params["key"] == params["key"]
    np.testing.assert_array_equal(after.params["mean"], params["mean"])
    through_bridge = jax.tree.leaves(bpref.as_function(scale)(params, x))
    np.testing.assert_array_equal(through_bridge[0], x)
