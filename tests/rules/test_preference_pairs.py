"""Losses of policies without a reference, and of whole answers: refusals, values by hand, and what padding may hold."""

import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate
from tests.rules.test_preference_loss import GRPO, MASK, TOKENS, ratios, sweep

pytestmark = pytest.mark.quick

PAIR = jnp.zeros(3), jnp.zeros(3)

BAD_CALLS = {
    "simpo: form is 'ipo', expected 'sigmoid' or 'hinge'": lambda: bpref.simpo(form="ipo"),
    "cpo: form is 'simpo', expected 'sigmoid', 'hinge' or 'ipo'": lambda: bpref.cpo(form="simpo"),
    "cpo: smoothing is 0.1, which form 'hinge' does not have": lambda: bpref.cpo(smoothing=0.1, form="hinge"),
    "cpo: likelihood is -1.0, expected a number of at least 0": lambda: bpref.cpo(likelihood=-1.0),
    "simpo: margin is inf, expected a finite number": lambda: bpref.simpo(margin=float("inf")),
    "orpo: weight is -0.1, expected a number of at least 0": lambda: bpref.orpo(-0.1),
    "gspo: clip is 1.0, expected a number between 0 and 1": lambda: bpref.gspo(clip=1.0),
    "gspo: ddof is 2, expected 0 or 1": lambda: bpref.gspo(ddof=2),
    "total_variation: temperature is 0.0, expected a positive number": lambda: bpref.total_variation(0.0),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)


def test_cpo_is_dpo_from_an_even_reference_and_a_likelihood():
    c, r = jnp.array([-1.0, -4.0, -2.0]), jnp.array([-3.0, -2.0, -2.5])
    for hyper in ({"smoothing": 0.2}, {"form": "hinge"}, {"form": "ipo"}):
        J, (dc, dr) = sweep(bpref.cpo(0.7, 0.3, **hyper), (c, r))
        of_dpo, (dc_dpo, dr_dpo, *_) = sweep(bpref.dpo(0.7, **hyper), (c, r, *PAIR))
        np.testing.assert_allclose(J, of_dpo + 0.3 * 7 / 3, rtol=1e-6)
        np.testing.assert_allclose(dc, dc_dpo - 0.1, rtol=1e-6)
        np.testing.assert_allclose(dr, dr_dpo, rtol=1e-6)


def test_simpo_asks_for_its_margin():
    """At a margin of just g the argument is 0: log 2, and slopes of B / 2 by three."""
    J, (dc, dr) = sweep(bpref.simpo(2.0, 1.0), (PAIR[0] - 0.5, PAIR[1] - 1.0))
    assert pytest.approx(np.log(2), rel=1e-6) == J
    np.testing.assert_allclose((dc, -dr), -1 / 3, rtol=1e-6)


def test_orpo_of_answers_that_are_as_likely_as_not():
    """Odds of 1 both: log 2 + w log 2; t = 1/2 and k = 1, so that dc = -(1 + w) and dr = w."""
    a = jnp.full(1, np.log(0.5))
    J, (dc, dr) = sweep(bpref.orpo(0.3), (a, a))
    np.testing.assert_allclose((J, dc[0], dr[0]), (1.3 * np.log(2), -1.3, 0.3), rtol=1e-6)


def test_orpo_keeps_the_slope_of_a_chosen_answer_that_is_certain():
    """As c goes to 0, sigma(-L) / t_c goes to the odds of the rejected one, here 1."""
    a = jnp.full(1, np.log(0.5))
    for c in (-1e-30, 0.0):
        J, (dc, dr) = sweep(bpref.orpo(0.3), (jnp.full(1, c), a))
        np.testing.assert_allclose((J, dc[0], dr[0]), (0, -1.3, 0), atol=1e-6)


def test_the_ratio_of_an_answer_is_the_mean_of_its_tokens():
    """Ratios 4 and 1 are one of 2, beyond the clip; 1/4 and 1 one of 1/2, which a negative advantage is clipped at."""
    pi = jnp.concatenate([ratios(4.0, 1.0, 9.0), ratios(0.25, 1.0, 9.0)])
    mask = jnp.array([[True, True, False]] * 2)
    J, (dpi, *held) = sweep(bpref.gspo(0.2, 0.2, eps=1e-9), (pi, 0 * pi, None, jnp.array([1.0, -1.0]), mask))
    assert held == [None] * 4
    np.testing.assert_allclose(J, -(1.2 - 0.8) / 2, rtol=1e-6)
    np.testing.assert_array_equal(dpi, 0)
    J, (dpi, *_) = sweep(bpref.gspo(0.2, 0.2, eps=1e-9), (pi, 0 * pi, None, jnp.array([-1.0, 1.0]), mask))
    np.testing.assert_allclose(J, -(-2 + 0.5) / 2, rtol=1e-6)
    np.testing.assert_allclose(dpi, [[0.5, 0.5, 0], [-0.125, -0.125, 0]], rtol=1e-6)


def test_of_one_token_an_answers_ratio_is_the_tokens():
    pi = jnp.array([[-1.0], [-2.0], [-0.5]])
    x = pi, pi + 0.3, pi - 0.2, jnp.array([1.0, 2.0, 4.0]), jnp.ones((3, 1), bool)
    hyper = {"clip": 0.2, "clip_high": 0.3, "kl_weight": 0.1}
    one, other = (sweep(make(**hyper), x) for make in (bpref.gspo, bpref.grpo))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[1][0], other[1][0], rtol=1e-5)


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_answers_that_are_masked_throughout_have_no_loss_and_no_gradient(kl_weight):
    padding = jnp.full_like(TOKENS, -jnp.inf)
    x = padding, TOKENS, padding, jnp.array([0.0, 1.0]), jnp.zeros_like(MASK)
    J, (dpi, *_) = sweep(bpref.gspo(kl_weight=kl_weight), x)
    assert J == 0
    np.testing.assert_array_equal(dpi, 0)


def test_a_reference_is_needed_where_it_has_a_weight():
    with pytest.raises(TypeError, match=r"^gspo: reference is None, expected an array$"):
        bpref.gspo(kl_weight=0.1).forward((), (*GRPO[:2], None, *GRPO[3:]))


def test_padding_has_no_part_in_an_answer():
    g, mask = jnp.array([[-1.0, -2.0, -jnp.inf], [jnp.nan] * 3]), jnp.array([[True, True, False], [False] * 3])
    for mean, a, d in ((False, -3.0, 1.0), (True, -1.5, 0.5)):
        y, _, (dg, _) = backpropagate(bpref.answer_log_probability(mean), (), (g, mask), jnp.ones(2))
        np.testing.assert_array_equal(y, [a, 0])
        np.testing.assert_array_equal(dg, [[d, d, 0], [0, 0, 0]])


def test_total_variation_is_the_probability_that_lies_elsewhere():
    """From 0 of the same to 1 of distributions that share nothing; q = (3/4, 1/4) and p = (1/4, 3/4) are 1/2 apart."""
    a, far = jnp.array([[np.log(3.0), 0.0]]), jnp.array([[0.0, -jnp.inf]])
    layer = bpref.total_variation()
    J, (da, db) = sweep(layer, (a, a[:, ::-1]))
    assert pytest.approx(0.5, rel=1e-6) == J
    np.testing.assert_allclose(da, [[3 / 16, -3 / 16]], rtol=1e-6)
    np.testing.assert_allclose(db, [[-3 / 16, 3 / 16]], rtol=1e-6)
    for x, J in (((a, a), 0), ((far, far[:, ::-1]), 1)):
        came, d = sweep(layer, x)
        assert came == J
        np.testing.assert_array_equal(d, 0)
