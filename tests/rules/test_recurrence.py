"""The recurrences: what they refuse, and what they are where PyTorch has nothing to say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.formulas.recurrence.steps import Passed, Steps
from bpref.rules.recurrence.lstm import LstmState
from bpref.rules.recurrence.rnn import RnnParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, in_one_program

X = jnp.ones((4, 6, 3))
LENGTHS = jnp.array([6, 2, 0, 5])

RECURRENCES = {
    "rnn": lambda **hyper: bpref.rnn(5, **hyper),
    "gru": lambda **hyper: bpref.gru(5, **hyper),
    "gru, reset before": lambda **hyper: bpref.gru(5, reset_after=False, **hyper),
    "lstm": lambda **hyper: bpref.lstm(5, peepholes=True, projection=2, **hyper),
}
EVERY_RECURRENCE = pytest.mark.parametrize("make", RECURRENCES.values(), ids=RECURRENCES)


def call(layer, x):
    return layer.forward(layer.init(jax.random.key(0), X), x)


def changed(layer, **params):
    """The forward with some parameters of other shapes or dtypes."""
    return layer.forward(layer.init(jax.random.key(0), X)._replace(**params), X)


BAD_CALLS = {
    "rnn: features is 0, expected a positive integer": lambda: bpref.rnn(0),
    "rnn: activation is 'gelu', expected 'tanh' or 'relu'": lambda: bpref.rnn(5, "gelu"),
    "gru: checkpoint is 0, expected a positive integer": lambda: bpref.gru(5, checkpoint=0),
    "lstm: truncate is 2.0, expected a positive integer": lambda: bpref.lstm(5, truncate=2.0),
    "lstm: projection is 0, expected a positive integer": lambda: bpref.lstm(5, projection=0),
    "gru: state has shape (4, 3), expected (4, 5)": lambda: call(bpref.gru(5), Steps(X, jnp.ones((4, 3)))),
    "TypeError: gru: state has dtype bfloat16, x has float32; cast one to the other's": (
        lambda: call(bpref.gru(5), Steps(X, jnp.ones((4, 5), jnp.bfloat16)))
    ),
    "TypeError: lstm: state is an array, expected LstmState(h, c)": (
        lambda: call(bpref.lstm(5), Steps(X, jnp.ones((4, 5))))
    ),
    "lstm: state.c has shape (4, 2), expected (4, 5)": (
        lambda: call(bpref.lstm(5, projection=2), Steps(X, LstmState(jnp.ones((4, 2)), jnp.ones((4, 2)))))
    ),
    "TypeError: bidirectional: back is a function, expected a recurrence such as lstm(64)": (
        lambda: bpref.bidirectional(bpref.lstm(5), bpref.lstm)
    ),
    "lstm_block: eps is 0.0, expected a positive number": lambda: bpref.lstm_block(5, eps=0.0),
}


test_a_wrong_call_says_what_was_expected = refusals(BAD_CALLS)


def swept(layer, lengths=LENGTHS):
    """The output and all cotangents for random values, and a state to begin with."""
    keys = jax.random.split(jax.random.key(1), 3)
    params = layer.init(keys[0], X)
    x = jax.random.normal(keys[1], X.shape)
    last = jax.eval_shape(layer.forward, params, X)[0].state
    state = jax.tree.map(lambda v: jax.random.normal(keys[2], v.shape), last)
    given = Steps(x, state, lengths)

    @in_one_program
    def sweep(params, given):
        y, cache = layer.forward(params, given)
        return y, *layer.backward(params, cache, jax.tree.map(jnp.cos, y)), cache

    return given, *sweep(params, given)


def assert_close(a, b):
    jax.tree.map(lambda v, w: np.testing.assert_allclose(v, w, rtol=2e-5, atol=2e-6), a, b)


@EVERY_RECURRENCE
@pytest.mark.parametrize("reverse", [False, True])
def test_checkpoints_change_nothing_but_the_cache(make, reverse):
    hyper = {"reverse": reverse, "truncate": 3}
    *all_kept, cache = swept(make(**hyper))
    *some_kept, smaller = swept(make(checkpoint=4, **hyper))
    assert_close(some_kept, all_kept)
    assert sum(v.size for v in jax.tree.leaves(smaller)) < sum(v.size for v in jax.tree.leaves(cache))


@EVERY_RECURRENCE
def test_an_example_without_steps_gives_back_its_state_and_no_gradient(make):
    given, y, _, dx, _ = swept(make())
    np.testing.assert_array_equal(y.y[2], 0)
    jax.tree.map(lambda last, first: np.testing.assert_array_equal(last[2], first[2]), y.state, given.state)
    np.testing.assert_array_equal(dx.x[2], 0)
    jax.tree.map(lambda d, last: np.testing.assert_allclose(d[2], jnp.cos(last[2]), rtol=1e-6), dx.state, y.state)


@EVERY_RECURRENCE
def test_without_any_step_no_weight_has_a_gradient(make):
    _, _, dparams, _, _ = swept(make(), lengths=jnp.zeros(4, jnp.int32))
    assert all(not v.any() for v in jax.tree.leaves(dparams))


@EVERY_RECURRENCE
def test_lengths_beyond_the_array_are_its_own_and_below_0_are_0(make):
    _, *beyond, _ = swept(make(), lengths=jnp.array([99, 2, -3, 5]))
    _, *within, _ = swept(make(), lengths=LENGTHS)
    assert_close(beyond, within)


@EVERY_RECURRENCE
def test_no_steps_at_all(make):
    layer = make()
    params = layer.init(jax.random.key(0), X)
    y, dparams, dx = backpropagate(layer, params, X[:, :0], layer.forward(params, X[:, :0])[0])
    assert y.y.shape[:2] == (4, 0)
    assert dx.shape == (4, 0, 3)
    assert all(not v.any() for v in jax.tree.leaves((y, dparams)))


def test_truncated_after_every_step_a_recurrence_knows_nothing_of_the_past():
    """h_t = x_t + h_{t-1}, by numbers: its state goes through all steps, its gradient through one."""
    params = RnnParams(jnp.eye(1), jnp.eye(1), jnp.zeros(1))
    x = jnp.ones((1, 4, 1))
    for truncate, dx, dU in ((None, [4.0, 3, 2, 1], 10.0), (1, [1.0, 1, 1, 1], 6.0), (2, [2.0, 1, 2, 1], 8.0)):
        layer = bpref.rnn(1, "relu", truncate=truncate)
        y, cache = layer.forward(params, x)
        np.testing.assert_array_equal(y.y[0, :, 0], [1, 2, 3, 4])
        dparams, d = layer.backward(params, cache, Passed(jnp.ones_like(y.y), jnp.zeros_like(y.state)))
        np.testing.assert_array_equal(d[0, :, 0], dx)
        np.testing.assert_array_equal(dparams.U, dU)


def test_the_forget_gate_starts_open():
    b = bpref.lstm(2, forget_bias=3.0).init(jax.random.key(0), X).b
    np.testing.assert_array_equal(b, [0, 0, 3, 3, 0, 0, 0, 0])


@pytest.mark.parametrize("make", [bpref.rnn, bpref.gru, bpref.lstm])
def test_without_a_bias_there_are_only_products(make):
    params = make(2, bias=False).init(jax.random.key(0), X)
    assert [v.ndim for v in jax.tree.leaves(params)] == [2, 2]


def test_a_layer_of_two_directions_is_mapped_into():
    layer = bpref.bidirectional(bpref.lstm(5), bpref.gru(4, reverse=True))
    assert bpref.leaf_paths(layer) == ["0 lstm", "1 gru"]
    mapped = bpref.map_leaves(lambda leaf: leaf, layer)
    assert call(mapped, X)[0].y.shape == (4, 6, 9)
