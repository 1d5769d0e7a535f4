"""The losses of policies: what they refuse, values worked by hand, and what padding may hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, forward

pytestmark = pytest.mark.quick

FOUR = (jnp.zeros(3),) * 4
TOKENS = jnp.zeros((2, 3))
MASK = jnp.ones((2, 3), bool)
KTO = (jnp.zeros(3), jnp.zeros(3), jnp.zeros(3), jnp.ones(3, bool))
PPO = (TOKENS, TOKENS, TOKENS, TOKENS, MASK)
GRPO = (TOKENS, TOKENS, TOKENS, jnp.zeros(2), MASK)

BAD_CALLS = {
    "dpo: beta is 0.0, expected a positive number": lambda: bpref.dpo(0.0),
    "dpo: smoothing is 0.5, expected a number from 0 to below 0.5": lambda: bpref.dpo(smoothing=0.5),
    "dpo: form is 'simpo', expected 'sigmoid', 'hinge' or 'ipo'": lambda: bpref.dpo(form="simpo"),
    "dpo: smoothing is 0.1, which form 'hinge' does not have": lambda: bpref.dpo(smoothing=0.1, form="hinge"),
    "kto: undesirable_weight is -1.0, expected a number of at least 0": lambda: bpref.kto(undesirable_weight=-1.0),
    "TypeError: ppo: reference is None, expected an array": (
        lambda: bpref.ppo(kl_weight=0.1).forward((), (TOKENS, TOKENS, None, TOKENS, MASK))
    ),
    "ppo: clip is 0.0, expected a number between 0 and 1": lambda: bpref.ppo(clip=0.0),
    "grpo: clip_high is -1.0, expected a positive number": lambda: bpref.grpo(clip_high=-1.0),
    "ppo: normalization is 'batch', expected 'sequence', 'token' or 'constant'": (
        lambda: bpref.ppo(normalization="batch")
    ),
    "ppo: dual_clip is 1.0, expected a number above 1 or None": lambda: bpref.ppo(dual_clip=1.0),
    "grpo: ddof is 2, expected 0 or 1": lambda: bpref.grpo(ddof=2),
    "grpo: eps is 0.0, expected a positive number": lambda: bpref.grpo(eps=0.0),
    "clipped_value: clip is 0.0, expected a positive number or None": lambda: bpref.clipped_value(clip=0.0),
    "clipped_value: normalization is 'batch', expected 'sequence', 'token' or 'constant'": (
        lambda: bpref.clipped_value(normalization="batch")
    ),
    "token_entropy: temperature is 0.0, expected a positive number": lambda: bpref.token_entropy(0.0),
    "token_log_probability: temperature is 0.0, expected a positive number": lambda: bpref.token_log_probability(0.0),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)


def sweep(layer, x):
    J, _, dx = backpropagate(layer, (), x)
    return float(J), dx


def test_a_policy_that_is_its_reference_has_the_loss_log_two():
    """f'(0) = -B / 2, of one pair of three: B / 6."""
    J, (chosen, rejected, of_reference, _) = sweep(bpref.dpo(beta=0.3), FOUR)
    assert pytest.approx(np.log(2), rel=1e-6) == J
    np.testing.assert_allclose(chosen, -0.05, rtol=1e-6)
    np.testing.assert_array_equal(rejected, -chosen)
    np.testing.assert_array_equal(of_reference, -chosen)


def test_ipo_has_its_minimum_at_a_margin_of_half_of_one_by_beta():
    x = (jnp.array([5.0]), jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))
    J, dx = sweep(bpref.dpo(beta=0.1, form="ipo"), x)
    assert (J, float(dx[0][0])) == (0, 0)
    J, dx = sweep(bpref.dpo(beta=0.1, form="ipo"), FOUR)
    assert (J, float(dx[0][0])) == (pytest.approx(25), pytest.approx(-10 / 3))


def test_the_hinge_has_no_slope_where_it_is_met_exactly():
    x = (jnp.array([2.0, 1.0]), jnp.zeros(2), jnp.zeros(2), jnp.zeros(2))
    J, dx = sweep(bpref.dpo(beta=0.5, form="hinge"), x)
    assert J == 0.25
    np.testing.assert_array_equal(dx[0], [0, -0.25])


def test_kto_is_a_half_at_the_point_it_measures_from():
    """k has the mean 1, and so has pi - rho: sigma(0) = 1/2, and the slope is B / 4 by 3."""
    k = jnp.array([3.0, 0.0, 0.0])
    J, (policy, _, held, _) = sweep(
        bpref.kto(beta=0.6), (jnp.zeros(3), -jnp.ones(3), k, jnp.array([True, False, True]))
    )
    assert J == 0.5
    np.testing.assert_allclose(policy, [-0.05, 0.05, -0.05], rtol=1e-6)
    assert held is None


def test_kto_takes_a_negative_estimate_of_the_divergence_as_none():
    J, _ = sweep(bpref.kto(), (*KTO[:2], -jnp.ones(3), KTO[3]))
    assert J == 0.5


def ratios(*r):
    return jnp.log(jnp.array([r]))


def ppo_of(log_ratio, A, **hyper):
    zero = jnp.zeros_like(log_ratio)
    J, (dpi, *held) = sweep(
        bpref.ppo(**hyper), (log_ratio, zero, zero, jnp.array([A]), jnp.ones(log_ratio.shape, bool))
    )
    assert held == [None] * 4
    return J, dpi[0]


def test_a_ratio_is_clipped_on_the_side_where_the_advantage_would_gain():
    """By hand, of A = 1, 1, -1, -1 and r = 2, 1/2, 2, 1/2: s = 1.2, 0.5, -2, -0.8."""
    J, dpi = ppo_of(ratios(2.0, 0.5, 2.0, 0.5), [1.0, 1.0, -1.0, -1.0])
    assert pytest.approx(1.1 / 4, rel=1e-6) == J
    np.testing.assert_allclose(dpi, [0, -0.125, 0.5, 0], rtol=1e-6)


def test_a_dual_clip_bounds_what_a_negative_advantage_costs():
    J, dpi = ppo_of(ratios(8.0, 2.0), [-1.0, -1.0], dual_clip=3.0)
    assert pytest.approx(2.5, rel=1e-6) == J
    np.testing.assert_allclose(dpi, [0, 1], rtol=1e-6)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_without_an_advantage_a_ratio_counts_for_nothing_though_it_overflows(dual_clip):
    J, dpi = ppo_of(jnp.array([[100.0, -200.0, 0.0]]), [0.0, 0.0, 0.0], dual_clip=dual_clip)
    assert J == 0
    np.testing.assert_array_equal(dpi, 0)
    J, (dpi, *_) = sweep(bpref.grpo(kl_weight=0), (TOKENS + 100, TOKENS, TOKENS, jnp.ones(2), MASK))
    assert J == 0
    np.testing.assert_array_equal(dpi, 0)


def test_a_nan_is_not_hidden_by_an_advantage_of_0():
    assert np.isnan(ppo_of(jnp.array([[jnp.nan]]), [0.0])[0])


def test_a_value_beyond_the_clip_is_held_where_that_is_the_greater_error():
    """By hand, of V_old = 0, e = 1/2, R = 1: the clip's error of 1/2 is the greater between V = 1/2 and V = 3/2, where
    both are alike and the slope is the free one; V = -1 is farther off than its clip at -1/2.
    """
    V = jnp.array([[0.25, 0.5, 1.25, 1.5, 2.0, -1.0]])
    J, (dV, *held) = sweep(bpref.clipped_value(0.5), (V, 0 * V, 1 + 0 * V, V < 9))
    np.testing.assert_allclose(J, np.mean([0.75**2, 0.25, 0.25, 0.25, 1, 4]) / 2, rtol=1e-6)
    np.testing.assert_allclose(6 * dV[0], [-0.75, -0.5, 0, 0.5, 1, -2], rtol=1e-6)
    assert held == [None] * 3


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_nan_counts_where_its_token_does(at):
    x = [jnp.array([[3.0, 1.0]]), jnp.ones((1, 2)), jnp.array([[2.0, 1.0]])]
    x[at] = x[at].at[0, 0].set(jnp.nan)
    assert np.isnan(sweep(bpref.clipped_value(), (*x, jnp.array([[True, True]])))[0])
    J, (dV, *_) = sweep(bpref.clipped_value(), (*x, jnp.array([[False, True]])))
    assert J == 0
    np.testing.assert_array_equal(dV, 0)


def test_without_a_clip_values_have_a_square_error_whatever_they_were():
    V = jnp.array([[3.0, -1.0]])
    J, (dV, *_) = sweep(bpref.clipped_value(None), (V, jnp.full_like(V, jnp.nan), jnp.ones_like(V), V < 9))
    assert J == 2
    np.testing.assert_array_equal(dV, [[1, -1]])


def test_an_even_policy_has_the_greatest_entropy_and_a_decided_one_none():
    z = jnp.array([[0.0, 0.0, 0.0], [200.0, 0.0, 0.0], [0.0, 0.0, -jnp.inf]])
    H, dz = backpropagate(bpref.token_entropy(), (), z, jnp.ones(3))[::2]
    np.testing.assert_allclose(H, [np.log(3), 0, np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(dz, 0)


def test_the_largest_class_is_known_though_its_quotient_by_the_temperature_is_rounded():
    """Twice, in two loops and in two ways, if the compiler does so: these options make it."""
    z = jax.random.normal(jax.random.key(0), (64, 3))
    H = forward(bpref.token_entropy(0.921875), (), z)
    log_p = jax.nn.log_softmax(z / 0.921875)
    np.testing.assert_allclose(H, -jnp.sum(jnp.exp(log_p) * log_p, -1), rtol=1e-5)


def test_the_entropy_of_a_policy_that_is_nearly_decided_keeps_its_digits():
    """Of two classes with logits 15 apart, p = 1 / (1 + R) with R = exp(-15), three times float32's rounding of 1."""
    H, dz = backpropagate(bpref.token_entropy(), (), jnp.array([15.0, 0.0]), jnp.ones(()))[::2]
    R = np.exp(-15.0)
    np.testing.assert_allclose(H, np.log1p(R) + 15 * R / (1 + R), rtol=1e-6)
    np.testing.assert_allclose(dz, 15 * R / (1 + R) ** 2 * np.array([-1, 1]), rtol=1e-6)


def test_equal_rewards_move_no_policy_but_to_its_reference():
    """A = 0, though the mean of seven times 0.1 rounds; of rho - pi = log 2 k's slope is 1 - 2 = -1, by 14 tokens."""
    pi = jnp.zeros((7, 2))
    x = (pi, pi, pi + np.log(2), jnp.full(7, 0.1), jnp.ones((7, 2), bool))
    J, (dpi, *_) = sweep(bpref.grpo(kl_weight=1.0), x)
    assert pytest.approx(1 - np.log(2), rel=1e-6) == J
    np.testing.assert_allclose(dpi, -1 / 14, rtol=1e-6)
    np.testing.assert_array_equal(sweep(bpref.grpo(kl_weight=0.0), x)[1][0], 0)


def test_the_advantage_is_relative_to_the_group():
    """Rewards 0 and 2: A = -1 and 1, and of answers with 1 and 2 tokens each token counts 1/2 and 1/4."""
    mask = jnp.array([[True, False, False], [True, True, False]])
    x = (TOKENS, TOKENS, TOKENS, jnp.array([0.0, 2.0]), mask)
    _, (dpi, *_) = sweep(bpref.grpo(eps=1e-9), x)
    np.testing.assert_allclose(dpi, [[0.5, 0, 0], [-0.25, -0.25, 0]], rtol=1e-6)
    _, (dpi, *_) = sweep(bpref.grpo(eps=1e-9, normalization="token"), x)
    np.testing.assert_allclose(dpi, [[1 / 3, 0, 0], [-1 / 3, -1 / 3, 0]], rtol=1e-6)
    _, (dpi, *_) = sweep(bpref.grpo(scaled=False, normalization="constant"), x)
    np.testing.assert_allclose(dpi, [[1 / 6, 0, 0], [-1 / 6, -1 / 6, 0]], rtol=1e-6)


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
@pytest.mark.parametrize(("make", "x"), [(bpref.ppo, PPO), (bpref.grpo, GRPO)], ids=["ppo", "grpo"])
def test_a_batch_that_is_masked_throughout_has_no_loss_and_no_gradient(make, x, normalization):
    padding = jnp.full_like(TOKENS, -jnp.inf)
    J, (dpi, *_) = sweep(
        make(normalization=normalization, kl_weight=1.0), (padding, TOKENS, padding, x[3], jnp.zeros_like(MASK))
    )
    assert J == 0
    np.testing.assert_array_equal(dpi, 0)


def test_values_that_are_masked_throughout_have_no_loss_and_no_gradient():
    padding = jnp.full_like(TOKENS, jnp.inf)
    J, (dV, *_) = sweep(bpref.clipped_value(), (padding, padding, padding, jnp.zeros_like(MASK)))
    assert J == 0
    np.testing.assert_array_equal(dV, 0)


def test_a_label_that_is_no_class_has_no_log_probability_and_spoils_no_other():
    layer = bpref.token_log_probability()
    y, cache = layer.forward((), (TOKENS, jnp.array([3, 0])))
    np.testing.assert_allclose(y, [np.nan, -np.log(3)], rtol=1e-6)
    _, (dz, _) = layer.backward((), cache, jnp.ones(2))
    np.testing.assert_allclose(dz, [[np.nan] * 3, [2 / 3, -1 / 3, -1 / 3]], rtol=1e-6)


def test_labels_of_one_byte_name_classes_beyond_255_only_once():
    """Counted in uint8, class 261 would be class 5 again."""
    z = jnp.zeros((1, 300)).at[0, 5].set(1.0)
    layer = bpref.token_log_probability()
    wide, narrow = (backpropagate(layer, (), (z, jnp.array([5], d)), jnp.ones(1)) for d in ("int32", "uint8"))
    assert wide[0] == narrow[0]
    np.testing.assert_array_equal(wide[2][0], narrow[2][0])
    assert (wide[2][0] > 0).sum() == 1
