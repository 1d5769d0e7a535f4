"""The activations: what they refuse, and what they are at ties, kinks and infinities, by numbers worked by hand."""

from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.activation.gumbel_softmax import GumbelSoftmaxParams
from bpref.rules.activation.prelu import PreluParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

ONES = jnp.ones((8, 6))
KEY = jax.random.key(0)

BAD_CALLS = {
    "softmax: x has shape (8, 6), which has no axis 2": lambda: bpref.softmax(axis=2).forward((), ONES),
    "softmax: x has shape (8, 0), expected at least one element C in axis -1": (
        lambda: bpref.softmax().forward((), ONES[:, :0])
    ),
    "softmax: x has shape (), which has no axis 1": lambda: bpref.softmax(1).forward((), jnp.float32(1)),
    "log_softmax: x has shape (8, 6), which has no axis -3": lambda: bpref.log_softmax(axis=-3).forward((), ONES),
    "sparsemax: x has shape (0, 6), expected at least one element C in axis 0": (
        lambda: bpref.sparsemax(axis=0).forward((), ONES[:0])
    ),
    "gumbel_softmax: temperature is 0.0, expected a positive number": lambda: bpref.gumbel_softmax(temperature=0.0),
    "gumbel_softmax: x has shape (8, 6), which has no axis 2": (
        lambda: bpref.gumbel_softmax(axis=2).forward(GumbelSoftmaxParams(KEY), ONES)
    ),
    "TypeError: gumbel_softmax: key has dtype float32, expected a PRNG key such as jax.random.key(0)": (
        lambda: bpref.gumbel_softmax().forward(GumbelSoftmaxParams(ONES), ONES)
    ),
    "gumbel_softmax: key has shape (8,), expected one PRNG key such as jax.random.key(0)": (
        lambda: bpref.gumbel_softmax().forward(GumbelSoftmaxParams(jax.random.split(KEY, 8)), ONES)
    ),
    "maxout: pieces is 0, expected a positive integer": lambda: bpref.maxout(0),
    "maxout: x has shape (8, 6), expected (..., k m) with k = 4 pieces": lambda: bpref.maxout(4).forward((), ONES),
    "prelu: initial is inf, expected a finite number": lambda: bpref.prelu(initial=float("inf")),
    "prelu: x is a scalar, expected (..., d), a slope for each feature d": (
        lambda: bpref.prelu(per_feature=True).init(KEY, jnp.float32(1))
    ),
    "leaky_relu: negative_slope is -0.1, expected a number of at least 0": lambda: bpref.leaky_relu(-0.1),
    "soft_cap: cap is inf, expected a positive number": lambda: bpref.soft_cap(float("inf")),
    "maxout: pieces is True, expected a positive integer": lambda: bpref.maxout(True),
    "glu: gate is 'swiglu', expected one of gelu, gelu_erf, identity, relu, sigmoid, silu, tanh": (
        lambda: bpref.glu("swiglu")
    ),
    "hard_tanh: low is 1.0, expected a number below high = -1.0": lambda: bpref.hard_tanh(1.0, -1.0),
    "hard_tanh: high is inf, expected a finite number": lambda: bpref.hard_tanh(high=float("inf")),
    "softplus: beta is -1.0, expected a positive number": lambda: bpref.softplus(-1.0),
    "softplus: threshold is 0.0, expected a positive number or None": lambda: bpref.softplus(threshold=0.0),
    "hard_shrink: size is -0.5, expected a number of at least 0": lambda: bpref.hard_shrink(-0.5),
    "soft_shrink: size is -0.5, expected a number of at least 0": lambda: bpref.soft_shrink(-0.5),
    "threshold: bound is nan, expected a finite number": lambda: bpref.threshold(float("nan")),
    "softmin: x has shape (8, 0), expected at least one element C in axis -1": (
        lambda: bpref.softmin().forward((), ONES[:, :0])
    ),
    "soft_cap: cap is 0.0, expected a positive number": lambda: bpref.soft_cap(0.0),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(layer, params, x, dy):
    y, dparams, dx = backpropagate(layer, params, jnp.asarray(x), jnp.asarray(dy))
    return np.asarray(y), dparams, np.asarray(dx)


def test_softmax_by_hand():
    """y = (1/4, 3/4), dy = (1, 0): s = 1/4, dx = (1/4 * 3/4, -3/4 * 1/4)."""
    y, _, dx = sweep(bpref.softmax(), (), [0.0, np.log(3)], [1.0, 0.0])
    np.testing.assert_allclose(y, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(dx, [0.1875, -0.1875], rtol=1e-6)


def test_log_softmax_by_hand():
    y, _, dx = sweep(bpref.log_softmax(), (), [0.0, np.log(3)], [1.0, 0.0])
    np.testing.assert_allclose(y, [np.log(0.25), np.log(0.75)], rtol=1e-6)
    np.testing.assert_allclose(dx, [0.75, -0.75], rtol=1e-6)


@pytest.mark.parametrize("make", [bpref.softmax, bpref.log_softmax, bpref.sparsemax])
def test_a_masked_class_takes_no_part(make):
    x, dy = np.array([1.0, -np.inf, 1.5], np.float32), np.array([1.0, 5.0, -1.0], np.float32)
    if make is bpref.log_softmax:
        dy[1] = 0
    y, _, dx = sweep(make(), (), x, dy)
    plain, _, dplain = sweep(make(), (), x[::2], dy[::2])
    np.testing.assert_allclose(y[::2], plain, rtol=1e-6)
    np.testing.assert_allclose(dx[::2], dplain, rtol=1e-6)
    assert dx[1] == 0


@pytest.mark.parametrize(("make", "dx_1"), [(bpref.softmax, 0.25), (bpref.log_softmax, 0.5), (bpref.sparsemax, 0.5)])
def test_logits_of_any_size_give_finite_numbers(make, dx_1):
    y, _, dx = sweep(make(), (), [1e30, -1e30, 1e30], [1.0, 0.0, 0.0])
    assert np.isfinite(y).all()
    np.testing.assert_allclose(dx, [dx_1, 0, -dx_1], rtol=1e-6)


def test_sparsemax_by_hand():
    """(1, 0.8, 0.1): tau = (1.8 - 1) / 2 = 0.4; of dy = (1, 0, 7) the mean over the support is 1/2."""
    y, _, dx = sweep(bpref.sparsemax(), (), [1.0, 0.8, 0.1], [1.0, 0.0, 7.0])
    np.testing.assert_allclose(y, [0.6, 0.4, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(dx, [0.5, -0.5, 0.0])


def test_sparsemax_leaves_out_a_class_that_is_just_about_to_enter():
    """(1, 0): tau = 0 exactly, and the second class does not exceed it."""
    y, _, dx = sweep(bpref.sparsemax(), (), [1.0, 0.0], [3.0, 5.0])
    np.testing.assert_array_equal(y, [1.0, 0.0])
    np.testing.assert_array_equal(dx, [0.0, 0.0])


def test_sparsemax_of_equal_logits_is_uniform():
    y, _, dx = sweep(bpref.sparsemax(), (), [2.0] * 4, [4.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(y, [0.25] * 4)
    np.testing.assert_array_equal(dx, [3.0, -1.0, -1.0, -1.0])


def test_sparsemax_of_nan_is_nan_in_its_row_alone():
    y = np.asarray(bpref.sparsemax().forward((), jnp.array([[1.0, jnp.nan], [0.0, 0.0]]))[0])
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], [0.5, 0.5])


def test_gumbel_softmax_draws_from_the_softmax():
    """4000 draws of a class with probabilities (0.1, 0.2, 0.7), to four standard deviations."""
    p = np.array([0.1, 0.2, 0.7])
    x = jnp.broadcast_to(jnp.log(jnp.asarray(p, jnp.float32)), (4000, 3))
    y = np.asarray(bpref.gumbel_softmax(hard=True).forward(GumbelSoftmaxParams(KEY), x)[0])
    np.testing.assert_array_equal(y.sum(-1), 1)
    assert set(np.unique(y)) == {0.0, 1.0}
    assert np.all(abs(y.mean(0) - p) <= 4 * np.sqrt(p * (1 - p) / 4000))


def test_hard_gumbel_softmax_has_the_backward_of_the_soft():
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    soft, _, dx_soft = sweep(bpref.gumbel_softmax(0.5), GumbelSoftmaxParams(KEY), x, dy)
    hard, dparams, dx_hard = sweep(bpref.gumbel_softmax(0.5, hard=True), GumbelSoftmaxParams(KEY), x, dy)
    np.testing.assert_array_equal(hard.argmax(-1), soft.argmax(-1))
    np.testing.assert_array_equal(dx_hard, dx_soft)
    assert dparams == GumbelSoftmaxParams(None)


def test_maxout_shares_a_tie():
    """Pieces (1, 5), (1, 2), (0, 5): the first feature is tied between two pieces, and so is the second."""
    y, _, dx = sweep(bpref.maxout(3), (), [1.0, 5.0, 1.0, 2.0, 0.0, 5.0], [4.0, 6.0])
    np.testing.assert_array_equal(y, [1.0, 5.0])
    np.testing.assert_array_equal(dx, [2.0, 3.0, 2.0, 0.0, 0.0, 3.0])


def test_prelu_by_hand():
    """At the kink x = 0 the cotangent of x is dy, and that of a has no part of it."""
    layer = bpref.prelu()
    params = layer.init(KEY, jnp.ones(3))
    assert params.a == 0.25
    y, dparams, dx = sweep(layer, params, [-2.0, 0.0, 3.0], [1.0, 10.0, 100.0])
    np.testing.assert_array_equal(y, [-0.5, 0.0, 3.0])
    np.testing.assert_array_equal(dx, [0.25, 10.0, 100.0])
    assert dparams.a == -2.0


def test_prelu_with_a_slope_for_each_feature():
    y, dparams, dx = sweep(
        bpref.prelu(per_feature=True),
        PreluParams(jnp.array([0.5, 2.0])),
        [[-2.0, -1.0], [-4.0, 1.0]],
        [[1.0, 1.0], [3.0, 1.0]],
    )
    np.testing.assert_array_equal(y, [[-1.0, -2.0], [-2.0, 1.0]])
    np.testing.assert_array_equal(dx, [[0.5, 2.0], [1.5, 1.0]])
    np.testing.assert_array_equal(dparams.a, [-14.0, -1.0])


def test_glu_gates_the_first_half_by_the_second():
    y, _, dx = sweep(bpref.glu("relu"), (), [3.0, 5.0, 2.0, -1.0], [1.0, 10.0])
    np.testing.assert_array_equal(y, [6.0, 0.0])
    np.testing.assert_array_equal(dx, [2.0, 0.0, 3.0, 0.0])


def test_gelu_and_geglu_keep_their_digits_on_the_left():
    """x s(v) and its slope, in 28 digits; from 1 + tanh as few as 11 would be right."""
    x = np.array([-4.0, -3.5, -3.0])
    k, c = (8 / Decimal(np.pi)).sqrt(), Decimal("0.044715")
    values, slopes = [], []
    for v in map(Decimal, x):
        s = 1 / (1 + (-k * v * (1 + c * v * v)).exp())
        values.append(float(v * s))
        slopes.append(float(s * (1 + v * k * (1 + 3 * c * v * v) * (1 - s))))
    with jax.enable_x64(True):
        y, _, dx = sweep(bpref.gelu(), (), x, np.ones(3))
        gated, _, d_halves = sweep(bpref.glu("gelu"), (), np.concatenate([np.ones(3), x]), np.ones(3))
    for came, expected in ((y, values), (dx, slopes), (gated, values), (d_halves, values + slopes)):
        np.testing.assert_allclose(came, expected, rtol=1e-14)


@pytest.mark.parametrize("approximate", [True, False])
def test_gelu_is_flat_or_the_identity_far_from_0(approximate):
    x = jnp.array([-3e38, -1e20, -1e13, -99.0, 99.0, 1e13, 1e20, 3e38])
    for dtype in (jnp.float32, jnp.bfloat16):
        y, _, dx = sweep(bpref.gelu(approximate), (), x.astype(dtype), jnp.ones_like(x, dtype))
        np.testing.assert_array_equal(y, np.maximum(x.astype(dtype), 0))
        np.testing.assert_array_equal(dx, [0, 0, 0, 0, 1, 1, 1, 1])


def test_soft_cap_keeps_its_gradient_near_the_cap():
    """x = 20 c: 1 - (y / c)^2 would be 0 in float32; the truth is 4 exp(-40)."""
    y, _, dx = sweep(bpref.soft_cap(2.0), (), [40.0, 0.0], [1.0, 1.0])
    np.testing.assert_array_equal(y, [2.0, 0.0])
    np.testing.assert_allclose(dx, [4 * np.exp(-40), 1.0], rtol=1e-5)


def test_squared_relu_is_flat_below_zero():
    y, _, dx = sweep(bpref.squared_relu(), (), [-1.0, 0.0, 3.0], [1.0, 1.0, 2.0])
    np.testing.assert_array_equal(y, [0.0, 0.0, 9.0])
    np.testing.assert_array_equal(dx, [0.0, 0.0, 12.0])


def test_tanh_shrink_keeps_its_digits_near_0():
    """x - tanh(x) loses all of them at 1e-3: the truth is x^3 / 3 - 2 x^5 / 15 + 17 x^7 / 315."""
    for x in (1e-3, 0.05):
        y, _, dx = sweep(bpref.tanh_shrink(), (), [x], [1.0])
        np.testing.assert_allclose(y, x**3 / 3 - 2 * x**5 / 15 + 17 * x**7 / 315, rtol=5e-7)
        np.testing.assert_allclose(dx, np.tanh(x) ** 2, rtol=5e-7)


def test_a_softplus_is_x_above_its_threshold():
    y, _, dx = sweep(bpref.softplus(2.0, 5.0), (), [2.6, 2.4, -2.6], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(y, [2.6, np.log1p(np.exp(4.8)) / 2, np.log1p(np.exp(-5.2)) / 2], rtol=1e-6)
    np.testing.assert_allclose(dx, [1, 1 / (1 + np.exp(-4.8)), 1 / (1 + np.exp(5.2))], rtol=1e-6)


def test_nan_is_not_shrunk_away():
    for make in (bpref.hard_shrink, bpref.soft_shrink, bpref.tanh_shrink, bpref.threshold):
        y = make().forward((), jnp.array([jnp.nan, 3.0]))[0]
        assert np.isnan(y[0]), make.__name__
        assert np.isfinite(y[1]), make.__name__
