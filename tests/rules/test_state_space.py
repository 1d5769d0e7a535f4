"""Linear recurrences and state space models: what they refuse, and numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.formulas.recurrence.steps import Passed
from bpref.rules.state_space.rg_lru import RgLruParams
from bpref.rules.state_space.selective_scan import Selective, SelectiveScanParams
from tests.comparing import assert_same
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, forward

pytestmark = pytest.mark.quick

ONES = jnp.ones((2, 5, 3))
STATES = jnp.ones((2, 5, 4))
X = Selective(ONES, ONES, STATES, STATES)


def scanned(x):
    layer = bpref.selective_scan(4)
    return layer.forward(layer.init(jax.random.key(0), X), x)


def of_init(layer, x, came):
    return layer.forward(layer.init(jax.random.key(0), x), came)


BAD_CALLS = {
    "linear_recurrence: method is 'parallel', expected 'sequential' or 'associative'": (
        lambda: bpref.linear_recurrence(method="parallel")
    ),
    "selective_scan: states is 0, expected a positive integer": lambda: bpref.selective_scan(0),
    "selective_scan: chunk is 0, expected a positive integer": lambda: bpref.selective_scan(chunk=0),
    "rg_lru: method is 'scan', expected 'sequential' or 'associative'": lambda: bpref.rg_lru("scan"),
}


test_bad_calls_are_refused_with_what_was_expected_and_what_came = refusals(BAD_CALLS)


def swept(layer, params, x):
    y = jax.eval_shape(layer.forward, params, x)[0]
    return backpropagate(layer, params, x, np.random.default_rng(0).normal(size=y.shape).astype(y.dtype))


def test_a_recurrence_of_three_steps():
    """h = 2 h + 1 from 3: 7, 15, 31. A cotangent of 1 at the end is 2 one step before, then 4, and 8 at the start."""
    layer = bpref.linear_recurrence()
    h, cache = layer.forward((), (jnp.full((3, 1), 2.0), jnp.ones((3, 1)), jnp.array([3.0])))
    assert h.tolist() == [[7], [15], [31]]
    _, (da, db, dh_0) = layer.backward((), cache, jnp.array([[0.0], [0.0], [1.0]]))
    assert (da.tolist(), db.tolist(), dh_0.tolist()) == ([[12], [14], [15]], [[4], [2], [1]], [8])


def test_no_a_is_conjugated():
    """h_2 = i h_1 with h_1 = 1: its cotangent 1 is worth i at b_1, in JAX's convention."""
    layer = bpref.linear_recurrence()
    h, cache = layer.forward((), (jnp.array([[0j], [1j]]), jnp.array([[1 + 0j], [0j]])))
    assert h.tolist() == [[1], [1j]]
    _, (da, db) = layer.backward((), cache, jnp.array([[0j], [1 + 0j]]))
    assert (da.tolist(), db.tolist()) == ([[0], [1]], [[1j], [1]])


@pytest.mark.parametrize("method", ["sequential", "associative"])
def test_one_sums_and_zero_forgets(method):
    layer = bpref.linear_recurrence(method=method)
    b = jnp.arange(1.0, 6.0)[:, None]
    a = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])[:, None]
    h, cache = layer.forward((), (a, b))
    assert h[:, 0].tolist() == [1, 3, 3, 7, 12]
    _, (da, db) = layer.backward((), cache, jnp.ones_like(h))
    assert db[:, 0].tolist() == [2, 1, 3, 2, 1]
    assert da[:, 0].tolist() == [0, 1, 9, 6, 7]


@pytest.mark.parametrize("T", [1, 2, 7, 16])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_methods_agree_at_every_length(T, reverse):
    rng = np.random.default_rng(T)
    x = rng.uniform(-1, 1, (2, T, 3)), rng.normal(size=(2, T, 3)), rng.normal(size=(2, 3))
    with jax.enable_x64(True):
        one, other = (swept(bpref.linear_recurrence(reverse, m), (), x) for m in ("sequential", "associative"))
        assert_same(one, other)


@pytest.mark.parametrize("method", ["sequential", "associative"])
def test_no_steps_leave_the_start_without_a_gradient(method):
    empty = jnp.ones((2, 0, 3))
    h, _, (da, db, dh_0) = swept(bpref.linear_recurrence(method=method), (), (empty, empty, jnp.ones((2, 3))))
    assert h.shape == da.shape == db.shape == (2, 0, 3)
    assert dh_0.tolist() == np.zeros((2, 3)).tolist()


def test_a_selective_scan_of_two_steps():
    """A = -1, s = log 2, so that a = 1/2: h = log 2, then 3/2 log 2, read with C = 1, and y has u = 1 added."""
    layer = bpref.selective_scan(1, softplus=False, bias=False)
    one = jnp.ones((1, 2, 1))
    params = SelectiveScanParams(jnp.zeros((1, 1)), jnp.ones(1), None)
    s = float(np.log(2))
    y, cache = layer.forward(params, Selective(one, s * one, one, one))
    np.testing.assert_allclose(y[0, :, 0], [s + 1, 1.5 * s + 1], rtol=1e-6)
    dparams, dx = layer.backward(params, cache, jnp.array([[[0.0], [1.0]]]))
    np.testing.assert_allclose(dx.u[0, :, 0], [s / 2, s + 1], rtol=1e-6)
    np.testing.assert_allclose(dx.B[0, :, 0], [s / 2, s], rtol=1e-6)
    np.testing.assert_allclose(dx.C[0, :, 0], [0, 1.5 * s], rtol=1e-6)
    np.testing.assert_allclose(dx.delta[0, :, 0], [0.5, 1 - s / 2], rtol=1e-6)
    np.testing.assert_allclose(dparams.log_A, [[-s * s / 2]], rtol=1e-6)
    np.testing.assert_allclose(dparams.D, [1], rtol=1e-6)


@pytest.mark.parametrize("hold", [False, True])
def test_the_size_of_a_chunk_does_not_matter(hold):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = Selective(*(jnp.asarray(rng.normal(size=(2, 11, n))) for n in (3, 3, 4, 4)))
        whole, *others = (bpref.selective_scan(4, hold=hold, chunk=chunk) for chunk in (11, 1, 3, 10, 64))
        params = whole.init(jax.random.key(1), x)
        expected = swept(whole, params, x)
        for layer in others:
            assert_same(swept(layer, params, x), expected)


def test_a_sequence_in_two_pieces_is_the_whole():
    """The first hands its final state on to the second, which hands the state's cotangent back."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = Selective(*(jnp.asarray(rng.normal(size=(2, 7, n))) for n in (3, 3, 4, 4)))
        x = x._replace(state=jnp.asarray(rng.normal(size=(2, 3, 4))))
        layer = bpref.selective_scan(4, chunk=3, final=True)
        params = layer.init(jax.random.key(1), x)
        dy = Passed(*(rng.normal(size=v.shape) for v in jax.eval_shape(layer.forward, params, x)[0]))
        y, dparams, dx = backpropagate(layer, params, x, dy)
        first, second = (Selective(*(v[:, part] for v in x[:4])) for part in (slice(4), slice(4, None)))
        middle = forward(layer, params, first._replace(state=x.state)).state
        y2, dparams2, dx2 = backpropagate(layer, params, second._replace(state=middle), Passed(dy.y[:, 4:], dy.state))
        y1, dparams1, dx1 = backpropagate(layer, params, first._replace(state=x.state), Passed(dy.y[:, :4], dx2.state))
        assert_same((jnp.concatenate((y1.y, y2.y), 1), y2.state), tuple(y))
        joined = (jnp.concatenate(pair, 1) for pair in zip(dx1[:4], dx2[:4], strict=True))
        assert_same(Selective(*joined, dx1.state), dx)
        assert_same(jax.tree.map(jnp.add, dparams1, dparams2), dparams)


def test_no_steps_hand_the_state_on_and_its_cotangent_back():
    x = Selective(*(v[:, :0] for v in X[:4]), jnp.full((2, 3, 4), 2.0))
    layer = bpref.selective_scan(4, final=True)
    params = layer.init(jax.random.key(1), X)
    y, cache = layer.forward(params, x)
    dx = layer.backward(params, cache, Passed(y.y, 3 * y.state))[1]
    np.testing.assert_array_equal(y.state, x.state)
    np.testing.assert_array_equal(dx.state, 3 * x.state)


def test_what_is_kept_is_a_state_for_each_chunk():
    layer = bpref.selective_scan(4, chunk=2)
    cache = layer.forward(layer.init(jax.random.key(0), X), X)[1]
    assert cache.starts.shape == (3, 2, 4, 3)


def test_a_hold_whose_a_has_underflowed_is_the_step():
    x = X._replace(delta=0.5 * ONES)
    params = SelectiveScanParams(jnp.full((3, 4), -200.0), None, None)
    hand = {"softplus": False, "skip": False, "bias": False}
    held, stepped = (swept(bpref.selective_scan(4, **hand, hold=hold), params, x) for hold in (True, False))
    assert_same(held, stepped, tolerance=1e-6)


def gates(Lambda):
    zeros = jnp.zeros((1, 1))
    return RgLruParams(zeros, jnp.zeros(1), zeros, jnp.zeros(1), jnp.array([Lambda]))


def test_rg_lru_of_two_steps():
    """Gates of 1/2 and sigmoid(Lambda) = 1/2 make a = (1/2)^4 = 1/16 and m = sqrt(255) / 16."""
    h, cache = bpref.rg_lru().forward(gates(0.0), jnp.array([[[2.0], [4.0]]]))
    m = np.sqrt(255) / 16
    np.testing.assert_allclose(h[0, :, 0], [m, m / 16 + 2 * m], rtol=1e-6)
    assert [v[0, 0, 0] for v in (cache.r, cache.i)] == [0.5, 0.5]


def test_near_a_of_one_the_root_keeps_its_digits():
    """1 - a^2 is about 4 exp(-L) 2 for L = 30, far less than float32's rounding of 1."""
    h = bpref.rg_lru().forward(gates(30.0), jnp.ones((1, 1, 1)))[0]
    np.testing.assert_allclose(h[0, 0, 0], 0.5 * np.sqrt(-np.expm1(-8 * np.log1p(np.exp(-30.0)))), rtol=1e-6)


def test_where_a_is_one_nothing_enters_and_nothing_is_nan():
    h, dparams, dx = swept(bpref.rg_lru(), gates(1000.0), jnp.ones((1, 3, 1)))
    assert h.tolist() == np.zeros((1, 3, 1)).tolist()
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((dparams, dx)))


def test_rg_lru_has_one_result_by_either_method():
    x = np.random.default_rng(0).normal(size=(2, 9, 3))
    with jax.enable_x64(True):
        one, other = bpref.rg_lru(), bpref.rg_lru("associative")
        params = one.init(jax.random.key(0), jnp.asarray(x))
        assert_same(swept(one, params, jnp.asarray(x)), swept(other, params, jnp.asarray(x)))
