"""Stages and their loss, both ways in one sweep, give what the layers give in series."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from tests.conftest import SEED
from tests.rules.sweeping import backpropagate
from tests.simulated import on_devices

X = np.random.default_rng(SEED).normal(size=(6, 3))
Y = np.random.default_rng(SEED + 1).normal(size=(6, 3))
LABELS = np.arange(6) % 4
BLOCK = bpref.residual(bpref.serial(bpref.l2_normalize(), bpref.linear(3), bpref.tanh()))
"""Of zeros, which a device without work has, the first layer has a gradient that is not finite."""
HEAD = bpref.objective(bpref.linear(4), bpref.softmax_cross_entropy())


def made(loss=HEAD, axis=2, microbatches=2, block=BLOCK, length=4, schedule="1f1b"):
    return bpref.pipeline_objective(block, loss, length, axis, microbatches, schedule)


@pytest.mark.parametrize(("devices", "microbatches"), [(1, 2), (2, 1), (4, 3)])
@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
@pytest.mark.parametrize(
    ("combinator", "loss", "y"),
    [(lambda block: block, HEAD, LABELS), (bpref.remat, bpref.square("mean"), Y)],
    ids=["kept, a head and labels", "remat, targets"],
)
def test_stages_and_loss_are_the_layers_in_series(devices, microbatches, schedule, combinator, loss, y):
    whole = bpref.objective(bpref.scan(BLOCK, 4), loss)
    staged = made(loss, devices, microbatches, combinator(BLOCK), schedule=schedule)
    with jax.enable_x64(True):
        x, dJ = (jnp.asarray(X), jnp.asarray(y)), jnp.asarray(-0.7)
        params = jax.device_get(whole.init(jax.random.key(SEED), x))
        split = jax.tree.map(lambda v: v.reshape(devices, -1, *v.shape[1:]), params[0]), params[1]
        J, (of_blocks, of_loss), dx = backpropagate(staged, split, x, dJ)
        joined = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), of_blocks)
        came, expected = (J, (joined, of_loss), dx), backpropagate(whole, params, x, dJ)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), came, expected)
        drawn = staged.init(jax.random.key(SEED), x)
        assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, split)


def in_two_stages(params):
    """The params of `objective(scan(BLOCK, 4), ...)` as two stages have them."""
    return jax.tree.map(lambda v: v.reshape(2, 2, *v.shape[1:]), params[0]), params[1]


def test_it_is_the_loss_of_the_layers_before_it():
    x = jnp.asarray(X, jnp.float32), jnp.asarray(LABELS)
    whole = bpref.objective(bpref.linear(3), bpref.objective(bpref.scan(BLOCK, 4), HEAD))
    first, behind = whole.init(jax.random.key(SEED), x)
    J, (dfirst, _), (dX, _) = backpropagate(bpref.objective(bpref.linear(3), made()), (first, in_two_stages(behind)), x)
    expected, (dexpected, _), (dX_expected, _) = backpropagate(whole, (first, behind), x)
    came, expected = (J, dfirst, dX), (expected, dexpected, dX_expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), came, expected)


def test_of_several_targets_those_that_are_differentiable_have_cotangents():
    weighted = bpref.Layer(
        lambda key, x: (),
        lambda params, x: (jnp.mean(x[2] * x[0].sum(1)), x),
        lambda params, x, dJ: ((), (dJ / 6 * jnp.stack([x[2]] * 3, 1), None, dJ / 6 * x[0].sum(1))),
        "weighted",
    )
    x = jnp.asarray(X, jnp.float32), (jnp.asarray(LABELS), jnp.arange(6.0))
    whole = bpref.objective(bpref.scan(BLOCK, 4), weighted)
    params = whole.init(jax.random.key(SEED), x)
    _, _, (_, (of_labels, of_weights)) = backpropagate(made(weighted, microbatches=1), in_two_stages(params), x)
    _, _, (_, (_, expected)) = backpropagate(whole, params, x)
    assert of_labels is None
    np.testing.assert_allclose(of_weights, expected, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_the_checker_takes_it_for_right(schedule):
    layer, x = made(bpref.square("mean"), schedule=schedule), (jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32))
    report = bpref.check(layer, layer.init(jax.random.key(0), x), x, key=SEED)
    assert report.ok, report


def test_a_number_that_is_not_used_has_zeros_and_none():
    layer, x = made(), (jnp.asarray(X), jnp.asarray(LABELS))
    params = layer.init(jax.random.key(SEED), x)
    dparams, dx = layer.backward(params, layer.forward(params, x)[1], None)
    assert dx is None
    jax.tree.map(lambda d, v: np.testing.assert_array_equal(d, np.zeros_like(v)), dparams, params)


@pytest.fixture(scope="module")
def on_eight_devices():
    return json.loads(on_devices(8, "-m", "tests.compose.stages_on_devices"))


@pytest.mark.parametrize("devices", [4, 8])
@pytest.mark.parametrize("schedule", ["1f1b", "zero-bubble"])
def test_devices_give_the_gradient_of_one_and_send_both_ways_in_every_tick(on_eight_devices, schedule, devices):
    M, error, crosses = on_eight_devices["devices"][f"{schedule}, {devices}"]
    assert error < 1e-12
    ticks = bpref.pipeline_schedule(schedule, devices, M).ticks
    assert crosses == {"collective-permute": 2 * ticks, "all-reduce": 1}


def test_of_a_forward_alone_nothing_that_goes_down_is_left(on_eight_devices):
    ticks = bpref.pipeline_schedule("1f1b", 4, 6).ticks
    assert on_eight_devices["forward"] == {"collective-permute": ticks, "all-reduce": 1}


@pytest.mark.parametrize(("schedule", "most"), [("1f1b", 4 + 3), ("zero-bubble", 2 * 4 + 5)])
def test_caches_are_kept_of_as_many_micro_batches_as_there_are_stages(on_eight_devices, schedule, most):
    """4 stages, in caches of one: of 16 micro-batches GPipe keeps 19; twice as many cost not one cache more."""
    (gpipe,), (temp, of_twice) = (on_eight_devices["memory"][name] for name in ("gpipe", schedule))
    assert gpipe > 19
    assert temp < most
    assert of_twice - temp < 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: made(axis=3), "pipeline_objective: length is 4, expected a multiple of 3 devices"),
        (
            lambda: made(bpref.square("mean"), microbatches=4),
            r"pipeline_objective: x has shape \(6, 3\), expected 4 micro-batches along",
        ),
        (lambda: made(schedule="gpipe"), "pipeline_objective: schedule is 'gpipe', expected one of 1f1b, zero-bubble"),
        (lambda: made(microbatches=0), "pipeline_objective: microbatches is 0, expected a positive integer"),
        (lambda: made(block=bpref.batch_norm()), "pipeline_objective: batch_norm takes .* of all examples at once"),
        (lambda: made(bpref.square("none")), r"pipeline_objective: square gives an array of shape \(.*, expected one"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    x = jnp.asarray(X), jnp.asarray(Y)
    with pytest.raises(ValueError, match=message):
        (layer := make()).forward(layer.init(jax.random.key(SEED), x), x)


@pytest.mark.parametrize(
    "leaf", [bpref.update_in_backward(optax.sgd(0.1)), bpref.per_example_norms, bpref.split_backward]
)
def test_what_does_not_add_up_over_micro_batches_is_refused(leaf):
    layer, x = bpref.map_leaves(leaf, made()), (jnp.asarray(X), jnp.asarray(LABELS))
    with pytest.raises(ValueError, match="pipeline_objective: leaves put in the place of dparams what is none"):
        layer.forward(layer.init(jax.random.key(SEED), x), x)


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match="pipeline_objective: loss is a str, expected a Layer"):
        made("mean")
