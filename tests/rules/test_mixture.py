"""The mixture: what is refused, ties, dropped tokens, experts without tokens, and small numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.mixture.grouped_matmul import GroupedMatmulParams
from bpref.rules.mixture.mixture_of_experts import Mixed, MixtureOfExpertsParams
from bpref.rules.mixture.top_k_router import Routing, TopKRouterParams
from tests.rules.sweeping import backpropagate, forward

pytestmark = pytest.mark.quick

W = GroupedMatmulParams(jnp.ones((2, 5, 2)))
TOKENS = jnp.ones((6, 2))

BAD_CALLS = {
    "a router of more choices than experts": (
        lambda: bpref.top_k_router(2, k=3),
        ValueError,
        "top_k_router: k is 3, expected at most the number of experts E = 2",
    ),
    "a router of no choice": (
        lambda: bpref.top_k_router(2, k=0),
        ValueError,
        "top_k_router: k is 0, expected a positive integer",
    ),
    "a mixture of more choices than experts": (
        lambda: bpref.mixture_of_experts(2, 8, k=3),
        ValueError,
        "mixture_of_experts: k is 3, expected at most the number of experts E = 2",
    ),
    "a mixture of unknown activation": (
        lambda: bpref.mixture_of_experts(2, 8, activation="glu"),
        ValueError,
        "mixture_of_experts: activation is 'glu', expected one of geglu, gelu, relu, silu, swiglu",
    ),
    "a mixture of negative capacity": (
        lambda: bpref.mixture_of_experts(2, 8, capacity_factor=-1.0),
        ValueError,
        "mixture_of_experts: capacity_factor is -1.0, expected None or a number of at least 0",
    ),
    "a mixture of less than no shared experts": (
        lambda: bpref.mixture_of_experts(2, 8, shared=-1),
        ValueError,
        "mixture_of_experts: shared is -1, expected an integer of at least 0",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_say_what_was_expected(call, error, message):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("block", [1, 2, 128])
def test_groups_by_hand(block):
    """Two rows times 1, none times 10, one times 100; the fourth belongs to no group."""
    layer = bpref.grouped_matmul(1, block)
    params = GroupedMatmulParams(jnp.array([1.0, 10.0, 100.0])[:, None, None])
    x = jnp.array([[1.0], [2.0], [3.0], [4.0]]), jnp.array([2, 0, 1])
    y, dparams, (dx, dsizes) = backpropagate(layer, params, x, jnp.array([[1.0], [1.0], [2.0], [5.0]]))
    assert y[:, 0].tolist() == [1, 2, 300, 0]
    assert dparams.W[:, 0, 0].tolist() == [3, 0, 6]
    assert dx[:, 0].tolist() == [1, 1, 200, 0]
    assert dsizes is None


@pytest.mark.parametrize(("sizes", "y"), [([3, 9], [1, 1, 1, 10]), ([9, 2], [1, 1, 1, 1]), ([-2, 3], [10, 10, 10, 0])])
def test_groups_end_with_the_last_row_and_are_not_negative(sizes, y):
    params = GroupedMatmulParams(jnp.array([1.0, 10.0])[:, None, None])
    assert forward(bpref.grouped_matmul(1, 2), params, (jnp.ones((4, 1)), jnp.array(sizes)))[:, 0].tolist() == y


def test_a_router_by_hand():
    """Scores ln 1, ln 2, ln 5 of one token; the sum of exponentials is 8."""
    W = TopKRouterParams(jnp.log(jnp.array([[1.0], [2.0], [5.0]])))
    for renormalize, weights in ((True, [5 / 7, 2 / 7]), (False, [5 / 8, 2 / 8])):
        y = forward(bpref.top_k_router(3, renormalize=renormalize), W, jnp.ones((1, 1)))
        assert y.experts.tolist() == [[2, 1]]
        np.testing.assert_allclose(y.weights[0], weights, rtol=1e-6)
        np.testing.assert_allclose(y.balance, 3 * (0.5 * 5 / 8 + 0.5 * 2 / 8), rtol=1e-6)
        np.testing.assert_allclose(y.z, np.log(8) ** 2, rtol=1e-6)


def test_softmax_then_choice_renormalized_is_choice_then_softmax():
    rng = np.random.default_rng(0)
    W, x = rng.normal(size=(6, 3)), rng.normal(size=(20, 3))
    with jax.enable_x64(True):
        y = forward(bpref.top_k_router(6, 3), TopKRouterParams(W), x)
    scores = np.sort(x @ W.T, -1)[:, :-4:-1]
    np.testing.assert_allclose(y.weights, np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), rtol=1e-12)


def test_equal_scores_go_to_the_lower_index_and_balance_is_1_where_all_are_alike():
    y = forward(bpref.top_k_router(4), TopKRouterParams(jnp.zeros((4, 2))), TOKENS)
    assert y.experts.tolist() == [[0, 1]] * 6
    assert y.weights.tolist() == [[0.5, 0.5]] * 6
    assert float(y.balance) == 1.0


def test_the_share_of_tokens_is_not_differentiated():
    """By hand, two experts and one token: p = (s, 1 - s), f = (1, 0), B = 2 s, so that dB/dz = 2 s (1 - s) (1, -1)."""
    params, x = TopKRouterParams(jnp.array([[1.0], [0.0]])), jnp.ones((1, 1))
    dy = Routing(None, jnp.zeros((1, 1)), jnp.ones(()), jnp.zeros(()))
    _, dparams, _ = backpropagate(bpref.top_k_router(2, 1), params, x, dy)
    s = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(dparams.W[:, 0], [2 * s * (1 - s), -2 * s * (1 - s)], rtol=1e-6)


def mixture(score: list[float], **hyper):
    """Experts of one feature whose output is 10^e times the token's, for positive tokens."""
    E = len(score)
    layer = bpref.mixture_of_experts(E, 1, activation="relu", **hyper)
    U, V = jnp.ones((E, 1, 1)), jnp.asarray(10.0 ** np.arange(E), jnp.float32)[:, None, None]
    return layer, MixtureOfExpertsParams(TopKRouterParams(jnp.array(score)[:, None]), U, V, None, None)


def weighted(y: jax.Array) -> Mixed:
    """The cotangent of an objective that is the sum of y, without the balance and z."""
    return Mixed(jnp.ones_like(y), jnp.zeros(()), jnp.zeros(()))


def test_tokens_beyond_the_capacity_are_dropped_in_order():
    """All four tokens choose expert 1, which takes ceil(1.5 * 4 / 2) = 3; expert 0 has none, and gradients of 0."""
    layer, params = mixture([0.0, 1.0], k=1, capacity_factor=1.5)
    x = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    mixed, dparams, dx = backpropagate(layer, params, x, weighted(x))
    assert mixed.y[:, 0].tolist() == [10, 20, 30, 0]
    assert dx[:, 0].tolist() == [10, 10, 10, 0]
    assert dparams.V[:, 0, 0].tolist() == [0, 6]
    assert dparams.U[:, 0, 0].tolist() == [0, 60]


def test_first_choices_come_before_second_ones():
    """Token 0 chooses expert 1 and then 0, token 1 the other way round; each takes one choice: the first ones."""
    layer = bpref.mixture_of_experts(2, 1, activation="relu", capacity_factor=0.5)
    _, params = mixture([0.0, 0.0])
    params = params._replace(
        router=TopKRouterParams(jnp.array([[0.0, 1.0], [1.0, 0.0]])), U=jnp.ones((2, 1, 2)), V=params.V.repeat(2, 1)
    )
    y = forward(layer, params, jnp.eye(2)).y
    first = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(y, [[10 * first] * 2, [first] * 2], rtol=1e-6)


def test_no_capacity_drops_every_token():
    layer, params = mixture([0.0, 1.0], k=1, capacity_factor=0.0)
    mixed, dparams, dx = backpropagate(layer, params, TOKENS[:, :1], weighted(TOKENS[:, :1]))
    for v in (mixed.y, dx, *jax.tree.leaves(dparams)):
        assert not np.any(v)


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_no_tokens(capacity_factor):
    layer, params = mixture([0.0, 1.0], capacity_factor=capacity_factor)
    mixed, dparams, dx = backpropagate(layer, params, jnp.ones((0, 1)), weighted(jnp.ones((0, 1))))
    assert mixed.y.shape == dx.shape == (0, 1)
    assert float(mixed.balance) == float(mixed.z) == 0.0
    assert not any(np.any(v) for v in jax.tree.leaves(dparams))


def test_without_a_capacity_none_is_dropped_whatever_the_blocks():
    """A capacity that holds every token, blocks of one row, and blocks of many: one function."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(11, 3))
    with jax.enable_x64(True):
        params = bpref.mixture_of_experts(4, 5, shared=1).init(jax.random.key(0), x)
        seen = [
            forward(bpref.mixture_of_experts(4, 5, shared=1, **hyper), params, x).y
            for hyper in ({"block": 1}, {"block": 4}, {}, {"capacity_factor": 4.0})
        ]
    for y in seen[1:]:
        np.testing.assert_allclose(y, seen[0], rtol=1e-12, atol=1e-14)


def test_shared_experts_are_a_network_that_every_token_sees():
    layer, params = mixture([0.0, 1.0], k=1, capacity_factor=0.0, shared=2)
    params = params._replace(shared_U=jnp.ones((2, 1)), shared_V=jnp.array([[3.0, 4.0]]))
    assert forward(layer, params, jnp.array([[1.0], [-1.0]])).y[:, 0].tolist() == [7, 0]


def test_a_tie_of_zeros_of_both_signs_goes_to_the_lower_experts():
    router = bpref.top_k_router(4)
    params = TopKRouterParams(jnp.asarray([[1.0], [-1.0], [1.0], [1.0]]))
    assert forward(router, params, jnp.zeros((1, 1))).experts.tolist() == [[0, 1]]
