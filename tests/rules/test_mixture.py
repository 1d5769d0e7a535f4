"""The mixture: what is refused, ties, dropped tokens, experts without tokens, and small numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules import RULES
from bpref.rules.mixture.expert_permute import Permuted
from bpref.rules.mixture.grouped_matmul import GroupedMatmulParams
from bpref.rules.mixture.mixture_of_experts import Mixed, MixtureOfExpertsParams
from bpref.rules.mixture.sigmoid_router import SigmoidRouterParams, SigmoidRouting
from bpref.rules.mixture.top_k_router import Routing, TopKRouterParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, forward

pytestmark = pytest.mark.quick

W = GroupedMatmulParams(jnp.ones((2, 5, 2)))
TOKENS = jnp.ones((6, 2))

BAD_CALLS = {
    "sigmoid_router: groups is 3, expected a divisor of the number of experts E = 8": (
        lambda: bpref.sigmoid_router(8, 2, groups=3)
    ),
    "sigmoid_router: k is 3 and groups_kept 1, expected at most 4 groups, with at least k experts in those kept, "
    "2 in each": (lambda: bpref.sigmoid_router(8, 3, groups=4)),
    "expert_unpermute: rows has shape (3, 1), expected (R, d) with R = 2, as expert_permute gives": (
        lambda: bpref.expert_unpermute(2).forward((), (jnp.ones((3, 1)), jnp.ones((2, 1), int), jnp.ones((2, 1))))
    ),
    "top_k_router: k is 3, expected at most the number of experts E = 2": lambda: bpref.top_k_router(2, k=3),
    "top_k_router: k is 0, expected a positive integer": lambda: bpref.top_k_router(2, k=0),
    "mixture_of_experts: k is 3, expected at most the number of experts E = 2": (
        lambda: bpref.mixture_of_experts(2, 8, k=3)
    ),
    "mixture_of_experts: activation is 'glu', expected one of geglu, gelu, relu, silu, swiglu": (
        lambda: bpref.mixture_of_experts(2, 8, activation="glu")
    ),
    "mixture_of_experts: capacity_factor is -1.0, expected None or a number of at least 0": (
        lambda: bpref.mixture_of_experts(2, 8, capacity_factor=-1.0)
    ),
    "mixture_of_experts: shared is -1, expected an integer of at least 0": (
        lambda: bpref.mixture_of_experts(2, 8, shared=-1)
    ),
}


test_bad_calls_say_what_was_expected = refusals(BAD_CALLS)


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


def test_a_bias_chooses_and_does_not_weigh():
    """Scores 1, 0, -1 with a bias of 1 for the last: it comes first, with the weight of its own sigmoid."""
    params = SigmoidRouterParams(jnp.array([[1.0], [0.0], [-1.0]]), jnp.array([0.0, 0.0, 1.0]))
    layer = bpref.sigmoid_router(3, 2, renormalize=False, scale=2.0)
    y, dparams, _ = backpropagate(layer, params, jnp.ones((1, 1)), SigmoidRouting(None, jnp.ones((1, 2)), None))
    assert y.experts.tolist() == [[2, 0]]
    np.testing.assert_allclose(y.weights, 2 / (1 + np.exp([[1.0, -1.0]])), rtol=1e-6)
    assert dparams.bias is None
    assert bpref.trainable(layer, params, jnp.ones((1, 1))) == SigmoidRouterParams(True, False)


def test_groups_hide_the_best_expert_of_a_group_that_is_left_out():
    """Group (3, -9) has the best expert and the lesser sum of two, with (1, 1) beside it."""
    params = SigmoidRouterParams(jnp.array([[3.0], [-9.0], [1.0], [1.0]]), jnp.zeros(4))
    for kept, experts in ((1, [[2, 3]]), (2, [[0, 2]])):
        assert bpref.sigmoid_router(4, 2, 2, kept).forward(params, jnp.ones((1, 1)))[0].experts.tolist() == experts


def test_tokens_that_no_expert_is_for_have_weights_that_add_up():
    params = SigmoidRouterParams(jnp.array([[-1000.0], [-1001.0]]), jnp.zeros(2))
    y, dparams, dx = backpropagate(
        bpref.sigmoid_router(2, 2), params, jnp.ones((1, 1)), SigmoidRouting(None, jnp.array([[1.0, 0.0]]), None)
    )
    e = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(y.weights, [[e, 1 - e]], rtol=1e-6)
    np.testing.assert_allclose(dparams.W[:, 0], [e * (1 - e), -e * (1 - e)], rtol=1e-5)
    assert np.isfinite(dx).all()


def test_the_bias_goes_up_for_experts_with_less_than_the_mean_load():
    """Of 3 tokens with 2 choices each the mean load of 3 experts is 2; they have 3, 2 and 1."""
    layer = bpref.sigmoid_router(3, 2, rate=0.5)
    params = SigmoidRouterParams(jnp.array([[2.0, 2.0], [1.0, -3.0], [-1.0, 1.0]]), jnp.zeros(3))
    x = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    y, cache = layer.forward(params, x)
    assert y.experts.tolist() == [[0, 1], [0, 1], [0, 2]]
    moved = bpref.update_selection_bias(params, cache, 0.5)
    assert moved.bias.tolist() == [-0.5, 0.0, 0.5]
    assert moved.W is params.W
    stateful = bpref.stateful(layer)
    drawn, state = bpref.begin(stateful, jax.random.key(0), x)
    (_, state), _ = stateful.forward(params._replace(bias=drawn.bias), bpref.With(x, state))
    assert jax.tree.leaves(state)[0].tolist() == [-0.5, 0.0, 0.5]


def test_experts_of_sorted_rows_are_the_mixture():
    """expert_permute, two grouped products with a relu between them, expert_unpermute: with a capacity and without."""
    tokens, E, N, d, H = jax.random.normal(jax.random.key(0), (7, 5)), 3, 7, 5, 4
    for factor, capacity in ((None, None), (0.75, 4)):
        whole = bpref.mixture_of_experts(E, H, 2, "relu", capacity_factor=factor)
        params = whole.init(jax.random.key(1), tokens)
        route, _ = bpref.top_k_router(E, 2).forward(params.router, tokens)
        (rows, sizes), _ = bpref.expert_permute(E, capacity).forward((), (tokens, route.experts))
        u, _ = bpref.grouped_matmul(H).forward(GroupedMatmulParams(params.U), (rows, sizes))
        o, _ = bpref.grouped_matmul(d).forward(GroupedMatmulParams(params.V), (jax.nn.relu(u), sizes))
        y, _ = bpref.expert_unpermute(E, capacity).forward((), (o, route.experts, route.weights))
        assert rows.shape == (2 * N if capacity is None else E * capacity, d)
        np.testing.assert_allclose(y, whole.forward(params, tokens)[0].y, rtol=1e-5, atol=1e-6)


def test_what_is_dropped_gives_no_gradient():
    """Three tokens for expert 1, which takes two: the third has no row, and its token and weight no cotangent."""
    x, chosen = jnp.arange(1.0, 4).reshape(3, 1), jnp.ones((3, 1), jnp.int32)
    y, _, (dx, _) = backpropagate(bpref.expert_permute(2, 2), (), (x, chosen), Permuted(jnp.ones((3, 1)), None))
    assert (y.rows[:, 0].tolist(), y.sizes.tolist(), dx[:, 0].tolist()) == ([1, 2, 0], [0, 2], [1, 1, 0])
    back, _, (do, _, dw) = backpropagate(
        bpref.expert_unpermute(2, 2), (), (y.rows, chosen, 2 * jnp.ones((3, 1))), jnp.ones((3, 1))
    )
    assert (back[:, 0].tolist(), do[:, 0].tolist(), dw[:, 0].tolist()) == ([2, 4, 0], [2, 2, 0], [1, 2, 0])


@pytest.fixture
def on_a_tpu(monkeypatch):
    """What a TPU runs, on this machine."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, default: tpu(*args))


@pytest.mark.parametrize("capacity", [None, 3])
def test_a_tpu_sorts_choices_back_to_where_they_were(capacity, on_a_tpu):
    """Scatters, which it runs number by number, are left where rows are dropped alone."""
    layer = bpref.expert_permute(4, capacity)
    x = jax.random.normal(jax.random.key(0), (12, 2)), jax.random.randint(jax.random.key(1), (12, 2), -1, 5)

    def both(x):
        (rows, sizes), cache = layer.forward((), x)
        return rows, layer.backward((), cache, Permuted(rows, sizes))[1][0]

    rows, dx = both(x)
    assert jax.jit(both).lower(x).as_text().count('"stablehlo.scatter"') == (0 if capacity is None else 1)
    y, pull = jax.vjp(lambda tokens: RULES["expert_permute"].reference((), (tokens, x[1]), 4, capacity).rows, x[0])
    np.testing.assert_allclose(rows, y, rtol=1e-6)
    np.testing.assert_allclose(dx, pull(y)[0], rtol=1e-6)
