"""Layers that draw at random: what they refuse, how often they drop, and that a key decides everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.stochastic.drop_path import DropPathParams
from bpref.rules.stochastic.dropout import DropoutParams
from bpref.rules.stochastic.gaussian_noise import GaussianNoiseParams
from bpref.rules.stochastic.rrelu import RreluParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

ONES = jnp.ones((8, 6))
KEY = jax.random.key(0)
OF = {bpref.dropout: DropoutParams, bpref.drop_path: DropPathParams, bpref.gaussian_noise: GaussianNoiseParams}

BAD_CALLS = {
    "dropout: rate is 1.0, expected a number from 0 to below 1": lambda: bpref.dropout(1.0),
    "drop_path: rate is -0.1, expected a number from 0 to below 1": lambda: bpref.drop_path(-0.1),
    "gaussian_noise: std is -1.0, expected a number of at least 0": lambda: bpref.gaussian_noise(-1.0),
    "rrelu: lower is 0.5, expected at most upper = 0.25": lambda: bpref.rrelu(0.5, 0.25),
    "rrelu: key has shape (3,), expected one PRNG key such as jax.random.key(0)": (
        lambda: bpref.rrelu().forward(RreluParams(jax.random.split(KEY, 3)), ONES)
    ),
    "dropout: x has shape (8, 6), which has no axis 2 to share": (
        lambda: bpref.dropout(0.5, (0, 2)).forward(DropoutParams(KEY), ONES)
    ),
} | {
    f"{kind}{make.__name__}: key has {wrong} such as jax.random.key(0)": (
        lambda make=make, key=key: make().forward(OF[make](key), ONES)
    )
    for make in OF
    for kind, key, wrong in (
        ("TypeError: ", ONES, "dtype float32, expected a PRNG key"),
        ("", jax.random.split(KEY, 3), "shape (3,), expected one PRNG key"),
    )
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


@pytest.mark.parametrize("make", OF)
def test_at_nothing_it_is_the_identity(make):
    layer = make(0.0)
    y, dparams, dx = backpropagate(layer, layer.init(KEY, ONES), ONES, 2 * ONES)
    np.testing.assert_array_equal(y, ONES)
    np.testing.assert_array_equal(dx, 2 * ONES)
    assert dparams == OF[make](None)


@pytest.mark.parametrize("make", OF)
def test_an_old_key_draws_what_a_new_one_does(make):
    """The two kinds of key that jax.random takes; and the key is all that decides."""
    old, new, other = (
        np.asarray(make(0.5).forward(OF[make](key), ONES)[0])
        for key in (jax.random.PRNGKey(3), jax.random.key(3), jax.random.key(4))
    )
    np.testing.assert_array_equal(old, new)
    assert np.any(old != other)


@pytest.mark.parametrize("make", OF)
def test_every_dtype_sees_the_same_draw(make):
    def drawn(dtype):
        with jax.enable_x64(True):
            return np.asarray(make(0.5).forward(OF[make](jax.random.PRNGKey(3)), jnp.ones((8, 6), dtype))[0], float)

    np.testing.assert_allclose(drawn(jnp.float32), drawn(jnp.float64), rtol=1e-6)
    np.testing.assert_allclose(drawn(jnp.bfloat16), drawn(jnp.float64), rtol=2**-8)


@pytest.mark.parametrize("make", [bpref.dropout, bpref.drop_path])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_as_much_is_dropped_as_is_said(make, rate):
    """20000 draws, to four standard deviations; what stays is 1 / (1 - rate)."""
    y = np.asarray(make(rate).forward(OF[make](KEY), jnp.ones(20000))[0])
    assert abs((y == 0).mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / 20000)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("make", [bpref.dropout, bpref.drop_path])
def test_the_backward_drops_what_the_forward_dropped(make):
    y, _, dx = backpropagate(make(0.5), OF[make](KEY), ONES, ONES)
    np.testing.assert_array_equal(dx, y)
    assert np.any(y == 0)


def test_what_is_dropped_is_zero_also_where_x_is_infinite():
    x = jnp.full(100, jnp.inf)
    y = np.asarray(bpref.dropout(0.5).forward(DropoutParams(KEY), x)[0])
    assert set(y) == {0.0, np.inf}


def test_shared_axes_drop_whole_channels():
    y = np.asarray(bpref.dropout(0.5, (1, 2)).forward(DropoutParams(KEY), jnp.ones((4, 3, 5, 16)))[0])
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert 0 < (y[:, 0, 0] == 0).sum() < 64


def test_drop_path_drops_whole_examples():
    y = np.asarray(bpref.drop_path(0.5).forward(DropPathParams(KEY), jnp.ones((64, 3, 2)))[0])
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert 0 < (y[:, 0, 0] == 0).sum() < 64


def test_the_noise_has_the_deviation_that_is_said():
    e = np.asarray(bpref.gaussian_noise(0.3).forward(GaussianNoiseParams(KEY), jnp.zeros(20000))[0])
    assert abs(e.mean()) <= 4 * 0.3 / np.sqrt(20000)
    assert abs(e.std() - 0.3) <= 4 * 0.3 / np.sqrt(2 * 20000)


def test_a_key_is_not_trained():
    layer = bpref.serial(bpref.linear(3), bpref.dropout(0.5))
    params = layer.init(KEY, ONES)
    assert jax.tree.leaves(bpref.trainable(layer, params, ONES)) == [True, True, False]


def test_the_slopes_of_rrelu_are_uniform_between_its_bounds():
    """20000 draws: the mean (l + h) / 2 and the variance (h - l)^2 / 12 to four standard deviations of theirs."""
    a = -np.asarray(bpref.rrelu(0.25, 0.75).forward(RreluParams(KEY), -jnp.ones(20000))[0], float)
    assert a.min() >= 0.25
    assert a.max() <= 0.75
    assert abs(a.mean() - 0.5) <= 4 * np.sqrt(0.25 / 12 / 20000)
    assert abs(a.var() - 0.25 / 12) <= 4 * 0.25 * np.sqrt((1 / 80 - 1 / 144) / 20000)


def test_rrelu_in_evaluation_has_the_mean_slope():
    layer = bpref.rrelu(0.25, 0.75)
    assert layer.evaluating is not None
    y, dparams, dx = backpropagate(layer.evaluating, RreluParams(KEY), jnp.array([-2.0, 0.0, 3.0]), jnp.ones(3))
    np.testing.assert_array_equal(y, [-1.0, 0.0, 3.0])
    np.testing.assert_array_equal(dx, [0.5, 1.0, 1.0])
    assert dparams == RreluParams(None)


def test_the_backward_of_rrelu_has_the_slopes_of_its_forward():
    x = jnp.where(jnp.arange(48).reshape(8, 6) % 3 == 0, 2.0, -1.0)
    y, _, dx = backpropagate(bpref.rrelu(), RreluParams(KEY), x, jnp.ones((8, 6)))
    np.testing.assert_allclose(dx, y / x, rtol=1e-6)
    assert len(np.unique(dx)) == 33  # 32 slopes, and 1


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2**-7), (jnp.float16, 2**-10), ("float8_e4m3fn", 2**-3)])
def test_rounding_goes_to_both_neighbours_and_is_right_on_the_mean(dtype, step):
    """A quarter of the way from 1 to the next number, which a quarter of the draws reach."""
    layer, x = bpref.stochastic_rounding(dtype), jnp.full((4096,), 1 + step / 4)
    y = layer.forward(bpref.StochasticRoundingParams(KEY), x)[0]
    assert set(y.tolist()) == {1.0, 1 + step}
    assert np.mean(y > 1) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 4096) ** 0.5)
    assert layer.evaluating.forward(bpref.StochasticRoundingParams(KEY), x)[0].tolist() == [1.0] * 4096


def test_rounding_keeps_what_the_format_has_and_stops_at_its_largest():
    """In e4m3 448 is the largest, and below 2^-6 numbers are multiples of 2^-9."""
    layer = bpref.stochastic_rounding("float8_e4m3fn")
    x = jnp.array([0.0, -0.0, 3 * 2.0**-9, 1.125, -448.0, 470.0, -1e9, np.inf, np.nan])
    y, dparams, dx = backpropagate(layer, bpref.StochasticRoundingParams(KEY), x, jnp.arange(9.0))
    np.testing.assert_array_equal(y, [0, 0, 3 * 2.0**-9, 1.125, -448, 448, -448, np.inf, np.nan])
    assert dparams.key is None
    assert dx.tolist() == list(range(9))
