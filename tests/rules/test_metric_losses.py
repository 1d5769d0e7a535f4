"""Losses of distances, similarities and margins: what they refuse, and their documented results, by numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.linear.linear import LinearParams
from bpref.rules.loss import wasserstein_critic as critic
from bpref.rules.loss.wasserstein_critic import WassersteinCriticParams
from bpref.rules.stochastic.reparameterization import standard_normal
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

KEY = jax.random.key(0)

BAD_CALLS = {
    "hinge: margin is -1.0, expected a number of at least 0": lambda: bpref.hinge(-1.0),
    "info_nce: temperature is 0.0, expected a positive number": lambda: bpref.info_nce(temperature=0.0),
    "nt_xent: temperature is -1.0, expected a positive number": lambda: bpref.nt_xent(-1.0),
    "cosine_embedding: margin is 2.0, expected a number from -1 to 1": lambda: bpref.cosine_embedding(2.0),
    "dice: smoothing is -1.0, expected a number of at least 0": lambda: bpref.dice(-1.0),
    "vae: likelihood is 'poisson', expected 'bernoulli' or 'gaussian'": lambda: bpref.vae(likelihood="poisson"),
    "wasserstein_critic: widths is (), expected a tuple of positive integers such as (64, 64)": (
        lambda: bpref.wasserstein_critic(())
    ),
    "wasserstein_critic: activation is 'gelu', expected one of leaky_relu, softplus, tanh": (
        lambda: bpref.wasserstein_critic((5,), "gelu")
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(loss, *x):
    J, _, dx = backpropagate(loss, (), tuple(map(jnp.asarray, x)))
    return float(J), [None if d is None else np.asarray(d) for d in dx]


@pytest.mark.parametrize("label", [[1, -1, 1], [True, False, True], [1, 0, 5]])
def test_a_label_is_read_by_its_sign(label):
    """Scores (0.5, 0.5, 2): 1 - 0.5, 1 + 0.5 and nothing."""
    J, (dx, dt) = sweep(bpref.hinge(), [0.5, 0.5, 2.0], label)
    assert pytest.approx(2 / 3, rel=1e-6) == J
    np.testing.assert_allclose(dx, np.array([-1, 1, 0]) / 3, rtol=1e-6)
    assert dt is None


@pytest.mark.parametrize(
    ("squared", "J", "dscores"),
    [(False, 3.5 / 2, [[-0.5, 0, 0.5, 0], [0, 0, 0, 0]]), (True, 3.5**2 / 2, [[-3.5, 0, 3.5, 0], [0, 0, 0, 0]])],
)
def test_the_largest_excess_alone_pays(squared, J, dscores):
    """At a margin of 1, classes 2 and 3 exceed label 0 by 2.5: the first of them pays; the second position is right."""
    scores = [[0.0, 1.0, 2.5, 2.5], [0.0, 3.0, 1.0, 2.0]]
    came, (dz, _) = sweep(bpref.multiclass_hinge(squared=squared, largest=True), scores, [0, 1])
    assert came == J
    np.testing.assert_array_equal(dz, dscores)


def test_a_hinge_is_flat_at_its_kink():
    J, (dx, _) = sweep(bpref.hinge(), [1.0], [1])
    assert J == 0
    assert dx == [0]


SWALLOWED = {
    "hinge of labels": (bpref.hinge(), ([np.nan, 2.0], [1, 1])),
    "hinge, squared": (bpref.hinge(squared=True), ([np.nan, 2.0], [1, 1])),
    "hinge of real targets": (bpref.hinge(), ([3.0, 2.0], [np.nan, 1.0])),
    "margin_ranking": (bpref.margin_ranking(), ([np.nan, 2.0], [0.0, 1.0], [1, 1])),
    "multiclass_hinge": (bpref.multiclass_hinge(), ([[9.0, np.nan, 0.0]], [0])),
    "multiclass_hinge, the label's": (bpref.multiclass_hinge(), ([[np.nan, 9.0, 0.0]], [0])),
    "multiclass_hinge, one class": (bpref.multiclass_hinge(), ([[np.nan]], [0])),
    "multiclass_hinge, squared": (bpref.multiclass_hinge(squared=True), ([[9.0, np.nan, 0.0]], [0])),
    "multiclass_hinge, largest": (bpref.multiclass_hinge(largest=True), ([[1.0, 9.0, np.nan]], [0])),
    "triplet": (bpref.triplet(), ([[0.0, 1.0]], [[np.nan, 1.0]], [[9.0, 9.0]])),
    "triplet, squared": (bpref.triplet(squared=True), ([[0.0, 1.0]], [[0.0, 1.0]], [[np.nan, 9.0]])),
    "cosine_embedding": (bpref.cosine_embedding(), ([[np.nan, 1.0]], [[1.0, 1.0]], [-1])),
}


@pytest.mark.parametrize(("loss", "x"), SWALLOWED.values(), ids=SWALLOWED.keys())
def test_a_nan_is_not_on_the_right_side_of_a_margin(loss, x):
    assert np.isnan(sweep(loss, *x)[0])


def test_a_label_that_is_no_class_is_never_silent():
    J, (dscores, _) = sweep(bpref.multiclass_hinge(), np.zeros((3, 4), np.float32), [0, 4, 1])
    assert np.isnan(J)
    assert np.isnan(dscores[1]).all()
    np.testing.assert_allclose(dscores[0], np.array([-3, 1, 1, 1]) / 12, rtol=1e-6)


def test_a_triplet_whose_anchor_is_its_positive():
    """|a - m| = 5 and margin 6: J = 1; nothing pulls on the positive, and the negative is pushed along (3, 4) / 5."""
    J, (da, dp, dm) = sweep(bpref.triplet(6.0), [[0.0, 0.0]], [[0.0, 0.0]], [[3.0, 4.0]])
    assert J == 1
    np.testing.assert_array_equal(dp, 0)
    np.testing.assert_allclose(da, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(dm, [[-0.6, -0.8]], rtol=1e-6)


def test_of_two_distances_to_the_negative_that_are_equal_the_anchors_is_taken():
    """|a - m| = |p - m| = 5 and |a - p| = 6, margin 1: J = 2, and m is pushed away from a alone."""
    J, (da, dp, dm) = sweep(bpref.triplet(swap=True), [[-3.0, 0.0]], [[3.0, 0.0]], [[0.0, 4.0]])
    assert J == 2
    np.testing.assert_allclose(dm, [[-0.6, -0.8]], rtol=1e-6)
    np.testing.assert_allclose(dp, [[1.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(da, [[-0.4, 0.8]], rtol=1e-6)
    nearer, (_, dp, dm) = sweep(bpref.triplet(swap=True), [[-3.5, 0.0]], [[3.0, 0.0]], [[0.0, 4.0]])
    assert nearer == 6.5 - 5 + 1
    np.testing.assert_allclose(dm, [[0.6, -0.8]], rtol=1e-6)
    np.testing.assert_allclose(dp, [[0.4, 0.8]], rtol=1e-6)


def test_a_vector_of_length_0_has_no_direction():
    J, (da, db) = sweep(bpref.cosine_embedding(), [[0.0, 0.0], [1.0, 0.0]], [[1.0, 2.0], [0.0, 2.0]])
    assert J == 1
    np.testing.assert_allclose(da, [[0, 0], [0, -0.5]], atol=1e-7)
    np.testing.assert_allclose(db, [[0, 0], [-0.25, 0]], atol=1e-7)
    for loss in (bpref.info_nce(), bpref.nt_xent()):
        J, (da, _) = sweep(loss, [[0.0, 0.0], [1.0, 0.0]], [[1.0, 2.0], [0.0, 2.0]])
        assert np.isfinite(J)
        np.testing.assert_array_equal(da[0], 0)


def test_vectors_that_nearly_agree_keep_their_distance():
    """An angle of 1e-3: 1 - cos is 5e-7, of which float32 leaves four bits beside 1."""
    J, _ = sweep(bpref.cosine_embedding(), [[1.0, 0.0]], [[np.cos(1e-3), np.sin(1e-3)]])
    assert pytest.approx(1 - np.cos(1e-3), rel=1e-3) == J


def test_found_partners_keep_their_gradient():
    """Similarities 30 and 0: J is log(1 + exp(-30)), dS is -+exp(-30) / 2, and 1 / temperature is 30."""
    J, (da, _) = sweep(bpref.info_nce(1 / 30, normalize=False), np.eye(2), np.eye(2))
    assert pytest.approx(np.exp(-30), rel=1e-4) == J
    np.testing.assert_allclose(da, 15 * np.exp(-30) * np.array([[-1, 1], [1, -1]]), rtol=1e-4)


def test_one_example_has_nothing_to_choose_from():
    for loss in (bpref.info_nce(), bpref.nt_xent()):
        J, cotangents = sweep(loss, [[1.0, 2.0]], [[2.0, -1.0]])
        assert J == 0
        np.testing.assert_array_equal(cotangents, 0)


def test_empty_masks_agree():
    J, (dp, _) = sweep(bpref.dice(0.0), np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int32))
    assert J == 0
    np.testing.assert_array_equal(dp, 0)


def test_a_posterior_that_is_the_prior_costs_nothing():
    zeros = np.zeros((2, 3), np.float32)
    J, (doutput, _, dmu, dlog_var) = sweep(bpref.vae(likelihood="gaussian"), zeros + 1, zeros, zeros, zeros)
    assert J == 1.5
    np.testing.assert_array_equal(doutput, 0.5)
    np.testing.assert_array_equal([dmu, dlog_var], 0)


def test_the_draw_is_standard_normal_and_the_same_in_both_dtypes():
    with jax.enable_x64(True):
        wide = np.asarray(standard_normal(KEY, (200_000,), jnp.float64))
        narrow = np.asarray(standard_normal(KEY, (200_000,), jnp.float32))
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)
    assert abs(wide.mean()) < 0.01
    assert abs(wide.std() - 1) < 0.01
    assert abs((wide**4).mean() - 3) < 0.1
    assert np.abs(wide).max() < 5.4


@pytest.mark.parametrize("activation", ["leaky_relu", "softplus", "tanh"])
def test_the_slope_in_the_critics_reference_is_the_critics(activation):
    """The reference writes dD/dx out; here autodiff of a naive critic makes it."""
    f = {"leaky_relu": lambda z: jax.nn.leaky_relu(z, 0.2), "softplus": jax.nn.softplus, "tanh": jnp.tanh}[activation]
    rng = np.random.default_rng(0)
    hidden = tuple(LinearParams(rng.normal(size=(m, n)), rng.normal(size=m)) for m, n in ((5, 3), (4, 5)))
    params = WassersteinCriticParams(np.array([1, 2], np.uint32), hidden, rng.normal(size=4))
    real, fake = rng.normal(size=(2, 6, 3))

    def critic_of(x):
        for W, b in hidden:
            x = f(W @ x + b)
        return x @ params.w

    with jax.enable_x64(True):
        e = jax.random.uniform(params.key, (6, 1), jnp.float32).astype(jnp.float64)
        slopes = jax.vmap(jax.grad(critic_of))(e * real + (1 - e) * fake)
        values = jax.vmap(critic_of)
        norms = jnp.linalg.norm(slopes, axis=1)
        expected = jnp.mean(values(fake)) - jnp.mean(values(real)) + 3 * jnp.mean((norms - 1) ** 2)
        came = critic.reference(params, (jnp.asarray(real), jnp.asarray(fake)), (5, 4), activation, 3.0)
    assert pytest.approx(float(expected), rel=1e-12) == float(came)
