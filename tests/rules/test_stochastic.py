"""Layers that draw at random: what they refuse, how often they drop, and that a key decides everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.stochastic.drop_path import DropPathParams
from bpref.rules.stochastic.dropout import DropoutParams
from bpref.rules.stochastic.gaussian_noise import GaussianNoiseParams
from tests.rules.sweeping import backpropagate

ONES = jnp.ones((8, 6))
KEY = jax.random.key(0)
OF = {bpref.dropout: DropoutParams, bpref.drop_path: DropPathParams, bpref.gaussian_noise: GaussianNoiseParams}

BAD_CALLS = {
    "dropout of everything": (
        lambda: bpref.dropout(1.0),
        ValueError,
        "dropout: rate is 1.0, expected a number from 0 to below 1",
    ),
    "drop_path at a negative rate": (
        lambda: bpref.drop_path(-0.1),
        ValueError,
        "drop_path: rate is -0.1, expected a number from 0 to below 1",
    ),
    "negative noise": (
        lambda: bpref.gaussian_noise(-1.0),
        ValueError,
        "gaussian_noise: std is -1.0, expected a number of at least 0",
    ),
    "dropout shared along an axis that is not there": (
        lambda: bpref.dropout(0.5, (0, 2)).forward(DropoutParams(KEY), ONES),
        ValueError,
        "dropout: x has shape (8, 6), which has no axis 2 to share",
    ),
} | {
    f"{make.__name__} of {what}": (lambda make=make, key=key, x=x: make().forward(OF[make](key), x), kind, message)
    for make in OF
    for what, key, x, kind, message in [
        (
            "no key",
            ONES,
            ONES,
            TypeError,
            f"{make.__name__}: key has dtype float32, expected a PRNG key such as jax.random.key(0)",
        ),
        (
            "several keys",
            jax.random.split(KEY, 3),
            ONES,
            ValueError,
            f"{make.__name__}: key has shape (3,), expected one PRNG key such as jax.random.key(0)",
        ),
    ]
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_calls_are_refused(call, kind, message):
    with pytest.raises(kind) as refused:
        call()
    assert str(refused.value) == message


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
