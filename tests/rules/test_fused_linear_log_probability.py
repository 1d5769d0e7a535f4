"""fused_linear_log_probability: beside the layers that it fuses, what it never holds, and policies that are sure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import FusedLinearLogProbabilityParams, OfTokens
from tests.refusing import refusals
from tests.rules.sweeping import as_users_compile, backpropagate, shapes_within

pytestmark = pytest.mark.quick

N, D, V = 6, 4, 50
H = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(V, D)), jnp.float32)
PARAMS = FusedLinearLogProbabilityParams(W, None)
LABELS = jnp.arange(N)
ONES = OfTokens(*(jnp.ones(N),) * 3)
fused = bpref.fused_linear_log_probability

BAD_CALLS = {
    "fused_linear_log_probability: temperature is 0.0, expected a positive number": lambda: fused(V, temperature=0.0),
    "fused_linear_log_probability: block is 0, expected a positive integer": lambda: fused(V, block=0),
    "fused_linear_log_probability: soft_cap is -1.0, expected a positive number or None": (
        lambda: fused(V, soft_cap=-1.0)
    ),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)


def test_it_is_what_the_layers_give_one_after_the_other():
    """In float64, each of the three with a cotangent of its own."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        params = FusedLinearLogProbabilityParams(rng.normal(size=(V, D)), rng.normal(size=V))
        h, dy = rng.normal(size=(N, D)), OfTokens(*rng.normal(size=(3, N)))
        y, dparams, (dh, dlabels) = backpropagate(fused(V, True, 0.7, block=7), params, (h, LABELS), dy)
        z, cache = bpref.linear(V).forward(params, h)
        g, _, (dz, _) = backpropagate(bpref.token_log_probability(0.7), (), (z, LABELS), dy.log_probability)
        entropy, _, of_entropy = backpropagate(bpref.token_entropy(0.7), (), z, dy.entropy)
        l, _, of_l = backpropagate(bpref.logsumexp(-1), (), z / 0.7, dy.log_sum_exp)
        expected, expected_dh = bpref.linear(V).backward(params, cache, dz + of_entropy + of_l / 0.7)
    assert dlabels is None
    for came, wanted in zip((*y, *dparams, dh), (g, entropy, l, *expected, expected_dh), strict=True):
        np.testing.assert_allclose(came, wanted, rtol=1e-12, atol=1e-14)


def test_no_array_of_all_logits_is_ever_made():
    def largest(layer):
        jaxpr = jax.make_jaxpr(lambda p, x: bpref.backpropagate(layer, p, x, ONES))(PARAMS, (H, LABELS))
        return max(int(np.prod(shape)) for shape in shapes_within(jaxpr.jaxpr))

    assert largest(fused(V, block=8, soft_cap=5.0, ignored=-1)) == W.size < N * V
    assert largest(fused(V, block=V)) == N * V


def test_the_program_needs_less_memory_than_one_array_of_logits():
    x, layer = (jnp.ones((256, 8)), jnp.zeros(256, int)), fused(8192, block=256)
    params = layer.init(jax.random.key(0), x)
    dy = OfTokens(*(jnp.ones(256),) * 3)
    sweep = as_users_compile(lambda p, x, dy: bpref.backpropagate(layer, p, x, dy))
    program = sweep.lower(params, x, dy).compile()
    assert program.memory_analysis().temp_size_in_bytes < 256 * 8192 * 4 / 4


def test_the_cache_does_not_grow_with_the_vocabulary():
    _, cache = fused(V).forward(PARAMS, (H, LABELS))
    assert sum(v.size for v in jax.tree.leaves(cache)) == N * (D + 5), "h, y, m, Q, D, z_y of each row"


@pytest.mark.parametrize(("used", "sums"), [("log_probability", 3), ("entropy", 3), ("log_sum_exp", 2), (None, 4)])
def test_what_is_not_used_is_not_summed(used, sums):
    """Beside the rows themselves what the forward's loop carries are the sums of each row."""
    layer, x = fused(V, block=8), (H[:5], LABELS[:5])

    def of(params, x):
        y = layer.forward(params, x)[0]
        return y if used is None else getattr(y, used)

    text = jax.jit(of).lower(PARAMS, x).compile().as_text()
    (loop,) = (line for line in text.splitlines() if " while(" in line)
    assert loop.count("f32[5]") == sums


@pytest.mark.parametrize("used", OfTokens._fields)
def test_an_unused_output_has_a_cotangent_of_zero(used):
    zeros = OfTokens(*(jnp.zeros(N),) * 3)
    dy = jnp.cos(jnp.arange(N))
    none = OfTokens(None, None, None)
    came = backpropagate(fused(V, block=8), PARAMS, (H, LABELS), none._replace(**{used: dy}))
    wanted = backpropagate(fused(V, block=8), PARAMS, (H, LABELS), zeros._replace(**{used: dy}))
    for a, b in zip(jax.tree.leaves(came[1:]), jax.tree.leaves(wanted[1:]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("block", [1, 7, 25, 50, 64])
def test_blocks_change_nothing(block):
    hyper = {"soft_cap": 5.0, "bias": True, "ignored": -1, "temperature": 0.5}
    given = PARAMS._replace(b=W[:, 0]), (H, LABELS.at[1].set(-1)), ONES
    for came, expected in zip(
        jax.tree.leaves(backpropagate(fused(V, block=block, **hyper), *given)),
        jax.tree.leaves(backpropagate(fused(V, **hyper), *given)),
        strict=True,
    ):
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-6)


def of_logits(z, label, dy, **hyper):
    """What one row of logits gives, by blocks of one class, and dz, which is db."""
    z = jnp.asarray(z, jnp.float32)
    params = FusedLinearLogProbabilityParams(jnp.zeros((z.size, 1)), z)
    layer = fused(z.size, bias=True, block=1, **hyper)
    y, dparams, _ = backpropagate(layer, params, (jnp.ones((1, 1)), jnp.array([label])), dy)
    return jax.tree.map(lambda v: v[0], y), dparams.b


ENTROPY = OfTokens(None, jnp.ones(1), None)
CHOSEN = OfTokens(jnp.ones(1), None, None)


@pytest.mark.parametrize("top", [0, 1])
def test_a_policy_that_is_sure_keeps_its_digits(top):
    """Two logits 15 apart, p = 1 / (1 + R) with R = exp(-15), three times float32's rounding of 1."""
    R, z = np.exp(-15.0), 15.0 * (np.arange(2) == top)
    sign = np.where(np.arange(2) == top, -1, 1)
    y, dz = of_logits(z, top, ENTROPY)
    np.testing.assert_allclose(y, [-np.log1p(R), np.log1p(R) + 15 * R / (1 + R), 15], rtol=1e-6)
    np.testing.assert_allclose(dz, 15 * R / (1 + R) ** 2 * sign, rtol=1e-6)
    _, dz = of_logits(z, top, CHOSEN)
    np.testing.assert_allclose(dz, -R / (1 + R) * sign, rtol=1e-6)
    y, dz = of_logits(z, 1 - top, CHOSEN)
    np.testing.assert_allclose(y.log_probability, -15 - np.log1p(R), rtol=1e-6)
    np.testing.assert_allclose(dz, sign / (1 + R), rtol=1e-6)


def test_classes_that_are_masked_have_no_part_wherever_they_stand():
    """A first block of nothing but them is none, and nor is a last one."""
    inf = -jnp.inf
    for dy in (ENTROPY, CHOSEN):
        y, dz = of_logits([inf, 0.0, inf, 1.0, inf], 3, dy)
        few, dfew = of_logits([0.0, 1.0], 1, dy)
        np.testing.assert_array_equal(y, few)
        np.testing.assert_allclose(dz, [0, dfew[0], 0, dfew[1], 0], rtol=1e-6)


def test_far_logits_that_are_tied_share_all_there_is():
    y, dz = of_logits([1.1e15, -1e12, 3e10, 1.1e15], 0, CHOSEN, temperature=1.7)
    np.testing.assert_allclose(y, [-np.log(2), np.log(2), 1.1e15 / 1.7], rtol=1e-6)
    np.testing.assert_allclose(dz, np.array([0.5, 0, 0, -0.5]) / 1.7, rtol=1e-6)


def test_an_even_policy_has_the_greatest_entropy_and_no_slope():
    y, dz = of_logits(np.zeros(5), 2, ENTROPY)
    np.testing.assert_allclose(y, [-np.log(5), np.log(5), np.log(5)], rtol=1e-6)
    np.testing.assert_array_equal(dz, 0)


def test_what_is_ignored_is_not_read_and_is_zero():
    label = LABELS.at[3:].set(-100)
    layer = fused(V, ignored=-100, block=8)
    bad = OfTokens(*(v.at[3:].set(jnp.nan) for v in ONES))
    y, dparams, (dh, _) = backpropagate(layer, PARAMS, (H.at[3:].set(jnp.nan), label), bad)
    few, dfew, (dh_few, _) = backpropagate(layer, PARAMS, (H[:3], LABELS[:3]), OfTokens(*(v[:3] for v in ONES)))
    for came, wanted in zip(y, few, strict=True):
        np.testing.assert_allclose(came, np.pad(wanted, (0, 3)), rtol=1e-6)
    np.testing.assert_allclose(dparams.W, dfew.W, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dh, np.pad(dh_few, ((0, 3), (0, 0))), rtol=1e-4, atol=1e-6)


def test_a_label_that_is_no_class_is_not_silent_where_it_is_used():
    label = LABELS.at[2].set(V)
    y, dparams, (dh, _) = backpropagate(fused(V, block=8), PARAMS, (H, label), ONES)
    assert np.isnan(y.log_probability).tolist() == [n == 2 for n in range(N)]
    assert np.isfinite((y.entropy, y.log_sum_exp)).all()
    assert np.isnan(dh).all(1).tolist() == np.isnan(dh).any(1).tolist() == [n == 2 for n in range(N)]
    assert np.isnan(dparams.W).all()
    _, dparams, (dh, _) = backpropagate(fused(V, block=8), PARAMS, (H, label), ONES._replace(log_probability=None))
    assert np.isfinite(dh).all()
    assert np.isfinite(dparams.W).all()


def test_no_rows_have_nothing_and_move_nothing():
    y, dparams, (dh, _) = backpropagate(fused(V), PARAMS, (H[:0], LABELS[:0]), OfTokens(*(jnp.zeros(0),) * 3))
    assert [v.shape for v in (*y, dh)] == [(0,)] * 3 + [(0, D)]
    np.testing.assert_array_equal(dparams.W, 0)
