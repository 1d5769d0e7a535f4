"""The norms: what they refuse, and what they do with equal features, at zero, and with running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.norm.batch_norm import BatchNormParams
from bpref.rules.norm.gated_rms_norm import GatedRmsNormParams
from bpref.rules.norm.layer_norm import LayerNormParams
from bpref.rules.norm.qk_norm import QkNormParams
from bpref.rules.norm.qk_norm_rope import HeadsInOrder
from bpref.rules.norm.rms_norm import RmsNormParams
from bpref.rules.norm.weight_standardization import WeightStandardizationParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, forward

X = jnp.ones((4, 6))
IMAGES = jnp.ones((2, 3, 3, 6))
NONE = LayerNormParams(None, None)
OF_A_BATCH = BatchNormParams(jnp.ones(6), jnp.zeros(6), jnp.zeros(6), jnp.ones(6))


def init(layer, x):
    return layer.init(jax.random.key(0), x)


BAD_CALLS = {
    "layer_norm: eps is 0.0, expected a positive number": lambda: bpref.layer_norm(eps=0.0),
    "group_norm: x has 6 channels in its last axis, not a multiple of 4 groups": (
        lambda: init(bpref.group_norm(4), IMAGES)
    ),
    "group_norm: groups is 0, expected a positive integer, or None for one channel in each": (
        lambda: bpref.group_norm(0)
    ),
    "batch_norm: x has shape (0, 6), expected (..., d) with at least one example in training": (
        lambda: bpref.batch_norm().forward(OF_A_BATCH, jnp.ones((0, 6)))
    ),
    "update_running_statistics: momentum is 1.5, expected a number from 0 to 1": (
        lambda: bpref.update_running_statistics(OF_A_BATCH, bpref.batch_norm().forward(OF_A_BATCH, X)[1], 1.5)
    ),
    "update_running_statistics: the cache holds no statistics, expected that of training=True": (
        lambda: bpref.update_running_statistics(OF_A_BATCH, bpref.batch_norm(False).forward(OF_A_BATCH, X)[1])
    ),
    "l2_normalize: p is nan, expected a number, math.inf or -math.inf": lambda: bpref.l2_normalize(p=float("nan")),
    "l2_normalize: axis is 2, x has 2 axes (x: (4, 6))": lambda: bpref.l2_normalize(2).forward((), X),
    "weight_standardization: features is 0, expected a positive integer": lambda: bpref.weight_standardization(0),
    "rms_norm: x has shape (6,), expected (..., N, d) with a scale for each of N heads": (
        lambda: init(bpref.rms_norm(per_head=True), jnp.ones(6))
    ),
    "qk_norm: l2 has one number g, expected neither zero_centred nor per_head with it": (
        lambda: bpref.qk_norm(l2=True, per_head=True)
    ),
    "gated_rms_norm: x has 6 features in its last axis, not a multiple of 4 groups": (
        lambda: bpref.gated_rms_norm(groups=4).forward(GatedRmsNormParams(jnp.ones(6)), (X, X))
    ),
    "add_norm: residual has shape (2, 6), expected (*n, d) = (4, 6) by x (4, 6)": (
        lambda: init(bpref.add_norm(), (X, X[:2]))
    ),
    "adaptive_norm: scale has shape (3, 3, 6), expected (*b, d) = (3, 6) by x (3, 3, 6)": (
        lambda: init(bpref.adaptive_norm(), (IMAGES[0], IMAGES[0], IMAGES[0]))
    ),
    "qk_norm_rope: 3 of x's 6 features are rotated, expected an even number from 2 to 6 (fraction: 0.5)": (
        lambda: bpref.qk_norm_rope(fraction=0.5).forward(
            QkNormParams(jnp.ones(6), jnp.ones(6)), HeadsInOrder(X[None, :, None], X[None, :, None])
        )
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def test_layer_norm_by_hand():
    """x = (1, 3): mean 2, var 1, and with eps = 3 rstd is 1/2; dx = (g - mean g - xhat mean(g xhat)) / 2."""
    layer = bpref.layer_norm(eps=3.0, scale=False, shift=False)
    y, _, dx = backpropagate(layer, NONE, jnp.array([1.0, 3.0]), jnp.array([0.0, 8.0]))
    np.testing.assert_array_equal(y, [-0.5, 0.5])
    # mean g = 4, mean(g xhat) = 2
    np.testing.assert_array_equal(dx, [-1.5, 1.5])


def test_equal_features_pass_the_gradient_less_its_mean():
    layer = bpref.layer_norm(1e-4, scale=False, shift=False)
    y, _, dx = backpropagate(layer, NONE, jnp.full(2, 7.0), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(y, [0, 0])
    np.testing.assert_allclose(dx, [-100, 100], rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (bpref.layer_norm(), jnp.full((2, 7), 1000.1)),
        (bpref.batch_norm(), jnp.full((7, 2), 1000.1)),
        (bpref.group_norm(1), jnp.full((2, 7, 1), 1000.1)),
    ],
    ids=["layer", "batch", "group"],
)
def test_equal_values_whose_mean_rounds_are_0_too(layer, x):
    """The mean of seven times 1000.1 misses it by 6e-5, which is 0.02 after a division by the root of eps."""
    y = forward(layer, init(layer, x), x)
    np.testing.assert_array_equal(y, 0)


def test_equal_weights_whose_mean_rounds_are_standardised_to_0():
    x, W = jnp.ones((2, 7)), jnp.full((3, 7), 1000.1)
    y = forward(bpref.weight_standardization(3, bias=False), WeightStandardizationParams(W, None, None), x)
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_layer_norm_is_precise_where_eps_is_all_there_is(spread):
    """Features whose variance is at most 0.1 eps: float32 beside float64 from the same numbers."""
    rng = np.random.default_rng(0)
    x, dy = (spread * rng.normal(size=(50, 32))).astype(np.float32), rng.normal(size=(50, 32)).astype(np.float32)
    layer = bpref.layer_norm(scale=False, shift=False)
    dx = np.asarray(backpropagate(layer, NONE, jnp.asarray(x), jnp.asarray(dy))[2], float)
    with jax.enable_x64(True):
        true = np.asarray(backpropagate(layer, NONE, *(jnp.asarray(v.astype(np.float64)) for v in (x, dy)))[2])
    assert np.max(np.abs(dx - true)) <= 5e-7 * np.max(np.abs(true))


def test_rms_norm_at_zero():
    y, _, dx = backpropagate(
        bpref.rms_norm(1e-4, scale=False), RmsNormParams(None), jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])
    )
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_allclose(dx, [100, 200, 300], rtol=1e-6)


def test_a_length_that_is_zero_or_short():
    """Below eps x is divided by eps, and so is dy: at 0 there is no NaN."""
    x = jnp.array([[0.0, 0.0], [0.03, 0.04], [3.0, 4.0]])
    y, _, dx = backpropagate(bpref.l2_normalize(eps=0.1), (), x, jnp.ones((3, 2)))
    np.testing.assert_allclose(y, [[0, 0], [0.3, 0.4], [0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(dx, [[10, 10], [10, 10], [0.032, -0.024]], rtol=1e-5)


def test_a_number_that_is_none_makes_its_whole_vector_none():
    """And not a vector of length eps."""
    y, _, dx = backpropagate(bpref.l2_normalize(), (), jnp.array([[jnp.nan, 1.0], [3.0, 4.0]]), jnp.ones((2, 2)))
    np.testing.assert_array_equal(jnp.isnan(y), [[True, True], [False, False]])
    np.testing.assert_array_equal(jnp.isnan(dx), [[True, True], [False, False]])


def test_instance_norm_is_group_norm_with_a_channel_in_each_group():
    x = jax.random.normal(jax.random.key(1), IMAGES.shape)
    dy = jax.random.normal(jax.random.key(2), IMAGES.shape)
    params = init(bpref.group_norm(None), x)
    of_channels, of_groups = (backpropagate(bpref.group_norm(g), params, x, dy) for g in (None, 6))
    jax.tree.map(np.testing.assert_array_equal, of_channels, of_groups)


def test_one_group_of_an_example_without_positions_is_layer_norm():
    x, dy = (jax.random.normal(jax.random.key(i), (4, 6)) for i in range(2))
    by_group = backpropagate(bpref.group_norm(1), init(bpref.group_norm(1), x), x, dy)
    by_layer = backpropagate(bpref.layer_norm(), init(bpref.layer_norm(), x), x, dy)
    for ours, theirs in zip(jax.tree.leaves(by_group), jax.tree.leaves(by_layer), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_running_statistics_follow_the_batch():
    """Of (1, 3) the mean is 2 and the unbiased variance 2; a tenth of it goes into 0 and 1."""
    x = jnp.array([[1.0], [3.0]])
    layer = bpref.batch_norm()
    params = init(layer, x)
    updated = bpref.update_running_statistics(params, layer.forward(params, x)[1], momentum=0.9)
    np.testing.assert_allclose((updated.mean[0], updated.var[0]), (0.2, 1.1), rtol=1e-6)
    assert updated.scale is params.scale
    y, _, dx = backpropagate(bpref.batch_norm(training=False, eps=1e-9), updated, x, jnp.ones((2, 1)))
    np.testing.assert_allclose(y[:, 0], [0.8 / 1.1**0.5, 2.8 / 1.1**0.5], rtol=1e-6)
    np.testing.assert_allclose(dx[:, 0], 1.1**-0.5, rtol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_not_trained(training):
    layer = bpref.batch_norm(training)
    assert bpref.trainable(layer, OF_A_BATCH, X) == BatchNormParams(True, True, False, False)


def test_a_batch_of_one_leaves_a_variance_that_is_finite():
    layer = bpref.batch_norm()
    updated = bpref.update_running_statistics(OF_A_BATCH, layer.forward(OF_A_BATCH, X[:1])[1], momentum=0.5)
    np.testing.assert_array_equal(updated.mean, 0.5)
    np.testing.assert_array_equal(updated.var, 0.5)


def test_standardised_weights_never_learn_their_mean():
    layer = bpref.weight_standardization(3, scale=True)
    x = jax.random.normal(jax.random.key(1), (8, 5))
    params = init(layer, x)
    _, dparams, _ = backpropagate(layer, params, x, jax.random.normal(jax.random.key(2), (8, 3)))
    np.testing.assert_allclose(jnp.sum(dparams.W, 1), 0, atol=1e-5)
    np.testing.assert_allclose(params.scale, 5**-0.5, rtol=1e-6)


def test_logits_of_normalised_heads_are_cosines():
    q, k = (jax.random.normal(jax.random.key(i), (2, 3, 4, 5)) for i in range(2))
    layer = bpref.qk_norm(l2=True)
    params = init(layer, (q, k))
    assert float(params.q_scale) == pytest.approx(np.log2(6), rel=1e-6)
    assert params.k_scale is None
    q_hat, k_hat = layer.forward(params, (q, k))[0]
    np.testing.assert_allclose(jnp.linalg.norm(q_hat, axis=-1), np.log2(6), rtol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(k_hat, axis=-1), 1, rtol=1e-6)


def test_scales_that_are_zero_centred_change_nothing_at_first():
    q = jax.random.normal(jax.random.key(0), (2, 3, 4, 6))
    for layer, plain, x in (
        (bpref.rms_norm(zero_centred=True), bpref.rms_norm(scale=False), q),
        (bpref.layer_norm(zero_centred=True, per_head=True), bpref.layer_norm(scale=False, shift=False), q),
        (bpref.qk_norm(zero_centred=True, per_head=True), bpref.qk_norm(), (q, q)),
        (bpref.add_norm(zero_centred=True), bpref.add_norm(), (q, q)),
        (bpref.qk_norm_rope(zero_centred=True), bpref.qk_norm_rope(per_head=True), HeadsInOrder(q, q)),
    ):
        ys = (forward(each, init(each, x), x) for each in (layer, plain))
        jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), *ys)


def test_the_order_of_norm_and_gate_is_what_a_small_gate_tells_apart():
    """x = (3, 4), and silu of -50 is -1e-20: before the norm it is eps that is left, and after it 1e-20 of it."""
    x, z = jnp.array([3.0, 4.0]), jnp.full(2, -50.0)
    after, before = (
        bpref.gated_rms_norm(1e-12, norm_before_gate=b).forward(GatedRmsNormParams(jnp.ones(2)), (x, z))[0]
        for b in (True, False)
    )
    gate = -50 * np.exp(-50.0)
    np.testing.assert_allclose(after, gate * np.array([3, 4]) / 12.5**0.5, rtol=1e-5)
    np.testing.assert_allclose(before, gate * np.array([3, 4]) / 1e-6, rtol=1e-5)


def test_the_stream_and_what_was_added_have_one_cotangent():
    """x + residual = (3, -3) has the RMS 3: with eps 0 a scale has no cotangent but along the other direction."""
    dy, dh = jnp.array([3.0, 3.0]), jnp.array([1.0, 2.0])
    params = init(bpref.add_norm(), (X[0, :2], X[0, :2]))
    (_, h), _, (dx, dresidual) = backpropagate(
        bpref.add_norm(eps=1e-12), params, (jnp.array([1.0, -1.0]), jnp.array([2.0, -2.0])), (dy, dh)
    )
    np.testing.assert_array_equal(h, [3, -3])
    np.testing.assert_array_equal(dx, dresidual)
    np.testing.assert_allclose(dx, [2, 3], rtol=1e-6)


def test_a_rotation_and_norm_of_one_keep_less_than_two_do():
    """q and k alone of 4 x 3 heads of 6 features, without the two numbers of each head."""
    q = jnp.ones((4, 3, 6))
    layer = bpref.qk_norm_rope()
    cache = jax.eval_shape(layer.forward, init(layer, HeadsInOrder(q, q)), HeadsInOrder(q, q))[1]
    assert sum(v.size for v in jax.tree.leaves(cache)) == 2 * q.size
