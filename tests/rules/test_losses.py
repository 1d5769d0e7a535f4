"""The losses: what they refuse, and what they are where their references have nothing to say."""

import jax.numpy as jnp
import numpy as np
import pytest

import bpref

pytestmark = pytest.mark.quick

ONES = jnp.ones((8, 1))
LOGITS = jnp.zeros((8, 10))
LABELS = jnp.zeros(8, jnp.int32)

BAD_CALLS = {
    "square of two shapes": (
        lambda: bpref.square().forward((), (ONES, jnp.ones(8))),
        ValueError,
        "square: prediction has shape (8, 1), target (8,); expected one shape",
    ),
    "square of two dtypes": (
        lambda: bpref.square().forward((), (ONES, ONES.astype(jnp.bfloat16))),
        TypeError,
        "square: prediction has dtype float32, target bfloat16; cast one to the other's",
    ),
    "square of integers": (
        lambda: bpref.square().forward((), (LABELS, LABELS)),
        TypeError,
        "square: prediction has dtype int32, expected a floating-point dtype such as float32",
    ),
    "square of nothing": (
        lambda: bpref.square().forward((), (jnp.ones((0, 1)), jnp.ones((0, 1)))),
        ValueError,
        "square: the batch is empty, its mean is not defined",
    ),
    "square of no pair": (
        lambda: bpref.square().forward((), ONES),
        TypeError,
        "square: x is of type ArrayImpl, expected a pair (prediction, target)",
    ),
    "huber with no delta": (lambda: bpref.huber(0.0), ValueError, "huber: delta is 0.0, expected a positive number"),
    "labels of another length": (
        lambda: bpref.softmax_cross_entropy().forward((), (LOGITS, LABELS[:7])),
        ValueError,
        "softmax_cross_entropy: target has shape (7,), expected (8,), logits' shape (8, 10) without its last axis C",
    ),
    "smoothing beyond 1": (
        lambda: bpref.softmax_cross_entropy(smoothing=1.5),
        ValueError,
        "softmax_cross_entropy: smoothing is 1.5, expected a number from 0 to 1",
    ),
    "negative z-loss": (
        lambda: bpref.softmax_cross_entropy(z_loss=-1.0),
        ValueError,
        "softmax_cross_entropy: z_loss is -1.0, expected a number of at least 0",
    ),
    "sigmoid of another shape": (
        lambda: bpref.sigmoid_cross_entropy().forward((), (ONES, jnp.ones(8))),
        ValueError,
        "sigmoid_cross_entropy: logits has shape (8, 1), target (8,); expected one shape",
    ),
    "elu with no alpha": (lambda: bpref.elu(0.0), ValueError, "elu: alpha is 0.0, expected a positive number"),
    "celu with no alpha": (lambda: bpref.celu(-1.0), ValueError, "celu: alpha is -1.0, expected a positive number"),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_calls_are_refused(call, kind, message):
    with pytest.raises(kind) as refused:
        call()
    assert str(refused.value) == message


def sweep(loss, prediction, target):
    J, _, (dprediction, _) = bpref.backpropagate(loss, (), (prediction, target))
    return float(J), np.asarray(dprediction)


def test_the_mean_of_the_batch_is_in_the_loss():
    """Twice the batch, the same J, half the gradient of each example."""
    rng = np.random.default_rng(0)
    y_hat, y = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))
    J, dy_hat = sweep(bpref.square(), y_hat, y)
    J_twice, dy_hat_twice = sweep(bpref.square(), jnp.concatenate([y_hat] * 2), jnp.concatenate([y] * 2))
    assert pytest.approx(J, rel=1e-6) == J_twice
    np.testing.assert_allclose(dy_hat_twice[:5], dy_hat / 2, rtol=1e-6)
    assert pytest.approx(float(jnp.sum((y_hat - y) ** 2) / 10), rel=1e-6) == J
    np.testing.assert_allclose(dy_hat, (y_hat - y) / 5, rtol=1e-6)


def test_a_label_that_is_no_class_is_never_silent():
    J, dlogits = sweep(bpref.softmax_cross_entropy(), LOGITS, LABELS.at[3].set(10))
    assert np.isnan(J)
    assert np.isnan(dlogits[3]).all()
    assert np.isfinite(np.delete(dlogits, 3, 0)).all()


def test_nothing_but_ignored_labels_is_no_loss_and_no_gradient():
    J, dlogits = sweep(bpref.softmax_cross_entropy(ignored=-1, z_loss=0.1), LOGITS + 1, jnp.full(8, -1))
    assert J == 0
    np.testing.assert_array_equal(dlogits, 0)


def test_a_confident_prediction_keeps_its_gradient():
    """logits (30, 0): p_y - 1 is -exp(-30) / (1 + exp(-30)), which 1 - softmax rounds to 0 in float32."""
    J, dlogits = sweep(bpref.softmax_cross_entropy(), jnp.array([[30.0, 0.0]]), jnp.array([0]))
    assert pytest.approx(np.exp(-30), rel=1e-5) == J
    np.testing.assert_allclose(dlogits, [[-np.exp(-30), np.exp(-30)]], rtol=1e-5)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_logits_of_any_size_give_finite_numbers(size):
    J, dlogits = sweep(bpref.softmax_cross_entropy(), jnp.array([[size, -size, 0.0]]), jnp.array([1]))
    assert pytest.approx(2 * size, rel=1e-6) == J
    np.testing.assert_array_equal(dlogits, [[1, -1, 0]])


def test_a_masked_class_takes_no_part():
    """A logit of -inf, as masking makes it: probability 0, gradient 0, in both kinds of target."""
    logits = jnp.array([[1.0, -jnp.inf, 2.0]])
    for target in (jnp.array([2]), jnp.array([[0.0, 0.0, 1.0]])):
        J, dlogits = sweep(bpref.softmax_cross_entropy(), logits, target)
        plain, dplain = sweep(bpref.softmax_cross_entropy(), logits[:, ::2], jnp.array([1]))
        assert pytest.approx(plain, rel=1e-6) == J
        np.testing.assert_allclose(dlogits[:, ::2], dplain, rtol=1e-6)
        assert dlogits[0, 1] == 0


def test_nan_in_a_prediction_is_not_swallowed():
    for make in (bpref.relu, bpref.relu6, bpref.hard_tanh, bpref.elu, bpref.selu, bpref.leaky_relu, bpref.softplus):
        y = make().forward((), jnp.array([jnp.nan, 1.0]))[0]
        assert np.isnan(y[0]), make.__name__
        assert np.isfinite(y[1]), make.__name__
