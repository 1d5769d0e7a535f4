"""The losses: what they refuse, and what they are where their references have nothing to say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

ONES = jnp.ones((8, 1))
LOGITS = jnp.zeros((8, 10))
LABELS = jnp.zeros(8, jnp.int32)

BAD_CALLS = {
    "square: the batch is empty, its mean is not defined": (
        lambda: bpref.square().forward((), (jnp.ones((0, 1)), jnp.ones((0, 1))))
    ),
    "square: reduction is 'batchmean', expected one of mean, sum, none, batch_mean": lambda: bpref.square("batchmean"),
    "huber: delta is 0.0, expected a positive number": lambda: bpref.huber(0.0),
    "softmax_cross_entropy: smoothing is 1.5, expected a number from 0 to 1": (
        lambda: bpref.softmax_cross_entropy(smoothing=1.5)
    ),
    "softmax_cross_entropy: z_loss is -1.0, expected a number of at least 0": (
        lambda: bpref.softmax_cross_entropy(z_loss=-1.0)
    ),
    "log_cosh: the batch is empty, its mean is not defined": (
        lambda: bpref.log_cosh().forward((), (jnp.ones(0), jnp.ones(0)))
    ),
    "quantile: tau is -0.5, expected a number from 0 to 1": lambda: bpref.quantile((0.5, -0.5)),
    "quantile: tau is (), expected a number from 0 to 1, or several": lambda: bpref.quantile(()),
    "quantile: prediction has shape (4, 3), expected (4, 3, 2), by target (4, 3) and 2 taus": (
        lambda: bpref.quantile((0.1, 0.9)).forward((), (jnp.ones((4, 3)), jnp.ones((4, 3))))
    ),
    "quantile: tau is 1.5, expected a number from 0 to 1": lambda: bpref.quantile(1.5),
    "focal: gamma is -1.0, expected a number of at least 0": lambda: bpref.focal(gamma=-1.0),
    "focal: alpha is 2.0, expected a number from 0 to 1, or None": lambda: bpref.focal(alpha=2.0),
    "softmax_cross_entropy: class_weights is (1.0, -1.0), expected C numbers of at least 0, not all 0": (
        lambda: bpref.softmax_cross_entropy(class_weights=(1.0, -1.0))
    ),
    "softmax_cross_entropy: logits has 10 classes C, class_weights has 2": (
        lambda: bpref.softmax_cross_entropy(class_weights=(1.0, 2.0)).forward((), (LOGITS, LABELS))
    ),
    "sigmoid_cross_entropy: positive_weight is 0.0, expected a positive number, or one for each C": (
        lambda: bpref.sigmoid_cross_entropy(0.0)
    ),
    "sigmoid_cross_entropy: logits has shape (8, 1), expected (..., 2): positive_weight has 2": (
        lambda: bpref.sigmoid_cross_entropy((1.0, 2.0)).forward((), (ONES, ONES))
    ),
    "elu: alpha is 0.0, expected a positive number": lambda: bpref.elu(0.0),
    "celu: alpha is -1.0, expected a positive number": lambda: bpref.celu(-1.0),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(loss, prediction, target):
    J, _, (dprediction, _) = backpropagate(loss, (), (prediction, target))
    return float(J), np.asarray(dprediction)


def test_the_mean_of_the_batch_is_in_the_loss():
    """Twice the batch, the same J, half the gradient of each example."""
    rng = np.random.default_rng(0)
    y_hat, y = (jnp.asarray(rng.normal(size=(5, 2)), jnp.float32) for _ in range(2))
    square = bpref.square("batch_mean")
    J, dy_hat = sweep(square, y_hat, y)
    J_twice, dy_hat_twice = sweep(square, jnp.concatenate([y_hat] * 2), jnp.concatenate([y] * 2))
    assert pytest.approx(J, rel=1e-6) == J_twice
    np.testing.assert_allclose(dy_hat_twice[:5], dy_hat / 2, rtol=1e-6)
    assert pytest.approx(float(jnp.sum((y_hat - y) ** 2) / 10), rel=1e-6) == J
    np.testing.assert_allclose(dy_hat, (y_hat - y) / 5, rtol=1e-6)


@pytest.mark.parametrize("name", ["absolute", "focal", "hinge", "huber", "poisson", "quantile", "square"])
def test_every_reduction_is_made_of_the_terms(name):
    """And its gradient is that of the terms, where each has the cotangent that the reduction gives it."""
    rng = np.random.default_rng(0)
    x = tuple(jnp.asarray(rng.uniform(0.1, 0.9, (4, 3)), jnp.float32) for _ in range(2))
    make = bpref.RULES[name].make
    terms, _, (d, _) = backpropagate(make(reduction="none"), (), x)
    assert terms.shape == (4, 3)
    for reduction, divisor in {"mean": 12, "sum": 1, "batch_mean": 4}.items():
        J, dx = sweep(make(reduction=reduction), *x)
        assert pytest.approx(float(terms.sum()) / divisor, rel=1e-6) == J
        np.testing.assert_allclose(dx, d / divisor, rtol=1e-6)


def test_terms_of_half_precision_are_in_float32_and_may_be_none_at_all():
    x = (jnp.ones((3, 2), jnp.bfloat16), jnp.zeros((3, 2), jnp.bfloat16))
    terms, _, (dx, _) = backpropagate(bpref.square("none"), (), x)
    assert (terms.dtype, dx.dtype) == (jnp.float32, jnp.bfloat16)
    nothing = (jnp.ones((0, 2)), jnp.ones((0, 2)))
    assert bpref.square("none").forward((), nothing)[0].shape == (0, 2)
    assert bpref.square("sum").forward((), nothing)[0] == 0


def test_a_weighted_mean_is_divided_by_the_weights_and_an_ignored_term_is_zero():
    w, labels = (1.0, 2.0, 4.0), jnp.array([0, 1, -1, 2])
    of = {
        r: sweep(bpref.softmax_cross_entropy(ignored=-1, class_weights=w, reduction=r), jnp.zeros((4, 3)), labels)[0]
        for r in ("mean", "sum", "batch_mean")
    }
    terms, _ = bpref.softmax_cross_entropy(ignored=-1, class_weights=w, reduction="none").forward(
        (), (jnp.zeros((4, 3)), labels)
    )
    np.testing.assert_allclose(terms, np.log(3) * np.array([1, 2, 0, 4]), rtol=1e-6)
    np.testing.assert_allclose(
        [of["mean"], of["sum"], of["batch_mean"]], np.log(3) * np.array([1, 7, 7 / 4]), rtol=1e-6
    )


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


def test_at_the_kink_of_an_absolute_value_the_slope_is_the_middle_one():
    zero = jnp.zeros(1)
    assert sweep(bpref.absolute(), zero, zero)[1] == 0
    np.testing.assert_allclose(sweep(bpref.quantile(0.9), zero, zero)[1], -0.4, rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_several_quantiles_are_the_sum_of_each(shape):
    y_hat, y = jnp.sin(jnp.arange(float(np.prod(shape) * 2))).reshape(*shape, 2), jnp.full(shape, 0.2)
    J, _, (dy_hat, dy) = backpropagate(bpref.quantile((0.1, 0.7), "batch_mean"), (), (y_hat, y))
    each = [
        backpropagate(bpref.quantile(t, "batch_mean"), (), (y_hat[..., k], y), jnp.ones(()))
        for k, t in enumerate((0.1, 0.7))
    ]
    np.testing.assert_allclose(J, sum(J for J, _, _ in each), rtol=1e-6)
    np.testing.assert_allclose(dy_hat, np.stack([dx[0] for _, _, dx in each], -1), rtol=1e-6)
    np.testing.assert_allclose(dy, sum(dx[1] for _, _, dx in each), rtol=1e-6, atol=1e-7)


def test_a_quantile_weighs_what_lies_above_by_tau():
    """Targets 1 above and 1 below: 0.9 and 0.1, and their slopes over N = 2."""
    J, dy_hat = sweep(bpref.quantile(0.9), jnp.zeros(2), jnp.array([1.0, -1.0]))
    assert pytest.approx(0.5, rel=1e-6) == J
    np.testing.assert_allclose(dy_hat, [-0.45, 0.05], rtol=1e-6)


def test_log_cosh_is_half_a_square_for_a_small_error():
    J, dy_hat = sweep(bpref.log_cosh(), jnp.array([1e-4]), jnp.zeros(1))
    assert pytest.approx(5e-9, rel=1e-6) == J
    np.testing.assert_allclose(dy_hat, [1e-4], rtol=1e-6)


def test_no_count_at_a_rate_of_zero_is_no_loss():
    J, drate = sweep(bpref.poisson(log_input=False), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    assert (J, drate) == (0, 1)


def test_a_gaussian_of_the_right_variance_has_no_slope_in_it():
    (J, _, ((dm, dv), dy)) = backpropagate(
        bpref.gaussian(log_variance=False), (), ((jnp.array([2.0]), jnp.array([4.0])), jnp.zeros(1))
    )
    assert pytest.approx(0.5 * (np.log(4) + 1), rel=1e-6) == float(J)
    np.testing.assert_allclose([dm[0], dv[0], dy[0]], [0.5, 0, -0.5], atol=1e-7)


def test_focal_with_no_gamma_is_cross_entropy():
    x, t = jnp.array([-200.0, -3.0, 0.0, 2.0, 200.0]), jnp.array([1, 0, 1, 1, 1])
    J, dx = sweep(bpref.focal(gamma=0.0), x, t)
    plain, dplain = sweep(bpref.sigmoid_cross_entropy(), x, t)
    assert pytest.approx(plain, rel=1e-6) == J
    np.testing.assert_allclose(dx, dplain, rtol=1e-6)


def test_a_sure_answer_has_no_focal_loss_and_no_slope_even_where_gamma_is_below_one():
    J, dx = sweep(bpref.focal(gamma=0.5), jnp.array([200.0, -200.0]), jnp.array([1, 0]))
    assert J == 0
    np.testing.assert_array_equal(dx, 0)


def test_a_class_that_is_impossible_on_both_sides_has_no_part_in_a_divergence():
    p = jnp.array([[0.5, 0.5, 0.0]])
    z = jnp.log(jnp.array([[0.25, 0.75, 0.0]]))
    plain, dplain = sweep(bpref.kl_divergence(), z[:, :2], p[:, :2])
    for layer, target in ((bpref.kl_divergence(), p), (bpref.kl_divergence(log_target=True), jnp.log(p))):
        J, dz = sweep(layer, z, target)
        assert pytest.approx(plain, rel=1e-6) == J
        np.testing.assert_allclose(dz, np.append(dplain, [[0]], 1), rtol=1e-6)
    plain, dplain = sweep(bpref.jensen_shannon(), z[:, :2], jnp.log(p[:, :2]))
    J, dz = sweep(bpref.jensen_shannon(), z, jnp.log(p))
    assert pytest.approx(plain, rel=1e-6) == J
    np.testing.assert_allclose(dz, np.append(dplain, [[0]], 1), rtol=1e-5)


def test_jensen_shannon_lies_between_zero_and_log_two():
    apart = jnp.array([[100.0, -100.0]])
    assert sweep(bpref.jensen_shannon(), apart, -apart)[0] == pytest.approx(np.log(2), rel=1e-6)
    assert sweep(bpref.jensen_shannon(), apart, apart)[0] == 0


def test_a_label_without_weight_counts_for_nothing():
    """Weights (1, 0, 2): the mean is over a weight of 3, and the label 1 leaves no trace."""
    logits = jnp.array([[0.0, 1.0, 2.0]] * 3)
    J, dlogits = sweep(bpref.softmax_cross_entropy(class_weights=(1.0, 0.0, 2.0)), logits, jnp.array([0, 1, 2]))
    total = np.log(1 + np.e + np.e**2)
    assert pytest.approx((total + 2 * (total - 2)) / 3, rel=1e-6) == J
    np.testing.assert_array_equal(dlogits[1], 0)


def test_a_label_that_is_no_class_spoils_no_other_position_though_it_is_weighted():
    layer = bpref.softmax_cross_entropy(class_weights=(1.0,) * 10)
    J, dlogits = sweep(layer, LOGITS, LABELS.at[3].set(10))
    assert np.isnan(J)
    assert np.isnan(dlogits[3]).all()
    assert np.isfinite(np.delete(dlogits, 3, 0)).all()


@pytest.mark.parametrize("C", [1, 2, 7, 9, 12, 66, 899])
def test_the_label_may_lie_in_any_block_of_classes(C):
    """Each label in turn, far ahead of the others: 1 - p is their sum, and so small that 1 - p in float32 is 0."""
    logits = jnp.where(jnp.eye(C, dtype=bool), 20.0, jnp.tile(jnp.linspace(-1, 1, C), (C, 1)))
    J, dlogits = sweep(bpref.softmax_cross_entropy(), logits, jnp.arange(C))
    z = np.asarray(logits, np.float64)
    others = np.where(np.eye(C, dtype=bool), 0, np.exp(z - 20)).sum(1)
    np.testing.assert_allclose(J, np.log1p(others).mean(), rtol=1e-5)
    np.testing.assert_allclose(np.diag(dlogits), -others / (1 + others) / C, rtol=1e-5)


def test_a_number_of_classes_without_factors_of_2_takes_no_more_memory():
    """899 = 29 x 31: the exponentials of all classes are never kept."""
    layer, logits, label = bpref.softmax_cross_entropy(), jnp.zeros((64, 899)), jnp.zeros(64, jnp.int32)

    def both(logits):
        J, cache = layer.forward((), (logits, label))
        return J, layer.backward((), cache, jnp.ones(()))

    used = jax.jit(both).lower(logits).compile().memory_analysis()
    assert used.temp_size_in_bytes < logits.nbytes / 2
