"""Everything that is chosen by name, and what a wrong name is told."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpref.nearest import nearest
from bpref.train.network import ACTIVATIONS, LOSSES, accuracy, as_target, fully_connected, loss_named, r2
from bpref.train.optimizers import OPTIMIZERS, SCHEDULES, make_optimizer
from bpref.transforms.update_in_backward import mixes_parameters
from tests.refusing import refusals


def test_nearest_names():
    assert nearest("adamm", OPTIMIZERS)[0] == "adam"
    assert nearest("RELU", ["tanh", "relu"]) == ["relu"]
    assert nearest("zzz", ["tanh", "relu"]) == ["tanh", "relu"]


def test_rules_are_found_by_their_folder():
    assert {"relu", "tanh"} <= set(ACTIVATIONS)
    assert {"square", "huber", "softmax_cross_entropy", "sigmoid_cross_entropy"} <= set(LOSSES)
    assert "glu" not in ACTIVATIONS, "it halves a layer's width"
    assert "triplet" not in LOSSES, "it has no target"
    assert "linear" not in ACTIVATIONS


test_refused = refusals(
    {
        "unknown activation 'tanhh'; the nearest are tanh, tanh_shrink, hard_tanh": (
            lambda: fully_connected((4,), "tanhh", 1)
        ),
        "layers is '', expected the width of each hidden layer, at least 1, such as 64,64": (
            lambda: fully_connected((), "tanh", 1)
        ),
        "layers is '4,0', expected the width of each hidden layer, at least 1, such as 64,64": (
            lambda: fully_connected((4, 0), "tanh", 1)
        ),
        "unknown loss 'squared'; the nearest are square, quantile": lambda: loss_named("squared", "regression"),
        "loss softmax_cross_entropy is for classes, and this target is a quantity; there is absolute, huber, log_cosh, "
        "quantile, square": (lambda: loss_named("softmax_cross_entropy", "regression")),
        "unknown optimizer 'sdg'; the nearest is sgd": lambda: make_optimizer("sdg", steps=1),
        "unknown schedule 'cosin'; the nearest are cosine, warmup_cosine": (
            lambda: make_optimizer("sgd", steps=1, schedule="cosin")
        ),
        "learning rate is 0, expected a positive number": lambda: make_optimizer("sgd", 0.0, steps=1),
        "learning rate is -0.1, expected a positive number": lambda: make_optimizer("sgd", -0.1, steps=1),
        "learning rate is nan, expected a positive number": lambda: make_optimizer("sgd", float("nan"), steps=1),
        "learning rate is inf, expected a positive number": lambda: make_optimizer("sgd", float("inf"), steps=1),
        "weight decay is -1, expected 0 or a positive number": (
            lambda: make_optimizer("sgd", steps=1, weight_decay=-1.0)
        ),
    },
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_updates_each_parameter_by_itself(name):
    assert not mixes_parameters(make_optimizer(name, steps=10, weight_decay=0.1))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_shrinks_matrices_and_no_biases(name, standard_promotion):
    params = {"W": jnp.ones((2, 2)), "b": jnp.ones(2)}
    optimizer = make_optimizer(name, 0.5, steps=10, weight_decay=0.1)
    updates, _ = optimizer.update({"W": jnp.zeros((2, 2)), "b": jnp.zeros(2)}, optimizer.init(params), params)
    stepped = optax.apply_updates(params, updates)
    np.testing.assert_allclose(stepped["W"], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(stepped["b"], 1.0)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", (2.0, 2.0, 2.0)),
        ("linear", (2.0, 1.0, 0.0)),
        ("cosine", (2.0, 1.0, 0.0)),
        ("exponential", (2.0, 0.2, 0.02)),
        ("warmup_cosine", (0.0, 1.17364818, 0.0)),
    ],
)
def test_schedules_end_with_the_last_step(name, rates, standard_promotion):
    schedule = SCHEDULES[name](2.0, 100)
    np.testing.assert_allclose([schedule(step) for step in (0, 50, 100)], rates, rtol=1e-5, atol=1e-6)


def test_a_run_of_one_step_has_every_schedule(standard_promotion):
    assert all(np.isfinite(SCHEDULES[name](1.0, 1)(0)) for name in SCHEDULES)


def test_targets_as_the_losses_take_them():
    np.testing.assert_array_equal(as_target("square", np.array([1.0, 2.0]), 0), [[1.0], [2.0]])
    np.testing.assert_array_equal(as_target("softmax_cross_entropy", np.array([1, 0]), 3), [1, 0])
    np.testing.assert_array_equal(as_target("square", np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])


def test_scores():
    target = jnp.array([[1.0], [2.0], [3.0]])
    assert float(r2(target, target)) == 1.0
    assert float(r2(jnp.full((3, 1), 2.0), target)) == 0.0
    logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [0.0, 5.0]])
    assert float(accuracy(logits, jnp.array([0, 1, 1, 1]))) == 0.75
    assert float(accuracy(logits, jnp.eye(2)[jnp.array([0, 1, 1, 1])])) == 0.75
