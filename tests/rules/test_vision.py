"""Losses of images and points, and what is rendered of points: numbers worked by hand, and calls that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

IMAGES = jnp.ones((2, 12, 8, 3))
POINTS = jnp.ones((2, 5, 3))

BAD_CALLS = {
    "ssim: the window reaches over 11 elements of axis 2, x has 8 there and 0 of padding": (
        lambda: bpref.ssim().forward((), (IMAGES, IMAGES))
    ),
    "ssim: sigma is 0, expected a positive number": lambda: bpref.ssim(sigma=0),
    "ssim: target has shape (2, 11, 8, 3), expected (N, H, W, C) = (2, 12, 8, 3) by prediction (2, 12, 8, 3)": (
        lambda: bpref.ssim(3).forward((), (IMAGES, IMAGES[:, 1:]))
    ),
    "chamfer: target has shape (2, 0, 3), expected (N, Q, D) = (2, Q, 3) by prediction (2, 5, 3)": (
        lambda: bpref.chamfer().forward((), (POINTS, POINTS[:, :0]))
    ),
    "alpha_compositing: alpha has shape (4, 0), expected (*n, K) with K > 0": (
        lambda: bpref.alpha_compositing().forward((), (jnp.ones((4, 0)), jnp.ones((4, 0, 3))))
    ),
    "spherical_harmonics: degree is -1, expected an integer of at least 0": lambda: bpref.spherical_harmonics(-1),
    "spherical_harmonics: x has shape (4, 2), expected (*n, 3)": (
        lambda: bpref.spherical_harmonics(2).forward((), jnp.ones((4, 2)))
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def test_images_that_are_alike_differ_in_nothing():
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    J, _, (dx, dy) = backpropagate(bpref.ssim(), (), (x, x))
    assert J == 0
    assert not np.any(dx)
    assert not np.any(dy)


def test_flat_images_differ_by_their_brightness_alone():
    """1 - (2 u v + c) / (u^2 + v^2 + c) = (u - v)^2 / (u^2 + v^2 + c) with c = 1 / 100^2: nothing of it cancels."""
    u, v = 0.5, 0.5 + 2**-13
    J, _, (dx, _) = backpropagate(bpref.ssim(3), (), (0 * IMAGES + u, 0 * IMAGES + v))
    A = u**2 + v**2 + 1e-4
    np.testing.assert_allclose(J, (u - v) ** 2 / A, rtol=1e-3)
    np.testing.assert_allclose(dx.sum(), 2 * (u - v) / A - 2 * u * (u - v) ** 2 / A**2, rtol=1e-3)


def test_what_is_outside_counts_as_zero_where_each_pixel_has_a_window():
    """One window of 3 x 3 around the only pixel, of which it has the share g^2: all else is 0."""
    J = bpref.ssim(3, padding="same").forward((), (jnp.full((1, 1, 1, 1), 0.5), jnp.full((1, 1, 1, 1), 0.25)))[0]
    g = 1 / (1 + 2 * np.exp(-1 / (2 * 1.5**2)))
    x, y, c, e = 0.5, 0.25, 1e-4, 9e-4
    share = g * g
    above = (2 * share**2 * x * y + c) * (2 * (share - share**2) * x * y + e)
    below = (share**2 * (x * x + y * y) + c) * ((share - share**2) * (x * x + y * y) + e)
    np.testing.assert_allclose(J, 1 - above / below, rtol=1e-5)


def line(*values):
    return jnp.array(values, jnp.float32).reshape(1, -1, 1)


@pytest.mark.parametrize(
    ("squared", "J", "dx", "dy"),
    [
        (True, (4 + 9) / 3 + 16 / 2, [0, 4 / 3, 2 - 4], [-4 / 3 - 2, 4]),
        (False, (2 + 3) / 3 + 4 / 2, [0, 1 / 3, 1 / 3 - 1 / 2], [-1 / 3 - 1 / 3, 1 / 2]),
    ],
)
def test_points_on_a_line(squared, J, dx, dy):
    """0, 2 and 3 beside 0 and 7: all of the former are nearest to 0, and 7 is to 3."""
    came, _, seen = backpropagate(bpref.chamfer(squared), (), (line(0, 2, 3), line(0, 7)))
    for v, expected in zip((came, *seen), (J, dx, dy), strict=True):
        np.testing.assert_allclose(v.ravel(), np.ravel(expected), rtol=1e-6)


def test_the_first_of_equally_near_points_has_the_cotangent():
    """1 is as near to 0 as to 2."""
    _, _, (dx, dy) = backpropagate(bpref.chamfer(), (), (line(1), line(0, 2)))
    assert dy.ravel().tolist() == [-2 - 1, 0 + 1]
    assert dx.ravel().tolist() == [2 + 1 - 1]


def test_points_far_from_the_origin_have_their_nearest():
    """|x|^2 - 2 x . y + |y|^2 would be off by some thousand."""
    far = 1e5
    J, _, (dx, _) = backpropagate(bpref.chamfer(), (), (line(far), line(far + 3, far + 0.25)))
    assert J == 0.25**2 + (3**2 + 0.25**2) / 2
    assert dx.item() == -0.5 - 3 - 0.25


def composed(alpha, colors, dcolor, dT, **hyper):
    """Of samples on one ray: its colour, the light that passes, and the cotangents of both inputs."""
    x = jnp.array(alpha, jnp.float32), jnp.array(colors, jnp.float32)[:, None]
    layer = bpref.alpha_compositing(**hyper)
    dy = bpref.Composite(jnp.full(1, dcolor, jnp.float32), jnp.float32(dT))
    y, _, (dalpha, dcolors) = backpropagate(layer, (), x, dy)
    return y.color.item(), y.transmittance.item(), dalpha.tolist(), dcolors[:, 0].tolist()


def test_what_an_opaque_sample_hides_is_uncovered_by_its_opacity():
    """Behind the first there is a half of 30: 15, and a half of what is behind all."""
    assert composed([1.0, 0.5], [10.0, 30.0], 1, 0) == (10, 0, [10 - 15, 0], [1, 0])
    assert composed([1.0, 0.5], [10.0, 30.0], 0, 1) == (10, 0, [-0.5, 0], [0, 0])


def test_two_half_transparent_samples():
    """10 / 2 and a quarter of 30; a quarter of the light passes both."""
    y, T, dalpha, dcolors = composed([0.5, 0.5], [10.0, 30.0], 1, 8)
    assert (y, T) == (12.5, 0.25)
    assert dalpha == [10 - 15 - 8 / 2, 30 / 2 - 8 / 2]
    assert dcolors == [0.5, 0.25]


def test_a_thin_sample_keeps_its_digits():
    """1 - exp(-tau) is tau at 1e-9, where 1 - alpha rounds to 1; a thick one is opaque, and its cotangent 0."""
    y, T, dtau, _ = composed([1e-9, 200.0], [3.0, 0.0], 1, 0, thickness=True)
    np.testing.assert_allclose([y, T], [3e-9, 0], rtol=1e-6)
    np.testing.assert_allclose(dtau, [3, 0])


@pytest.mark.parametrize("condon_shortley", [False, True])
def test_harmonics_are_those_of_scipy(condon_shortley):
    """Of degree 6 too, whose polynomials the reference does not write out: real parts times sqrt(2), and imaginary."""
    special = pytest.importorskip("scipy.special")
    v = np.random.default_rng(0).normal(size=(5, 3))
    polar, azimuth = np.arccos(v[:, 2] / np.linalg.norm(v, axis=1)), np.arctan2(v[:, 1], v[:, 0])
    expected = []
    for l in range(7):
        for m in range(-l, l + 1):
            Y = special.sph_harm_y(l, abs(m), polar, azimuth) * (1 if condon_shortley else (-1) ** m)
            expected.append(Y.real if m == 0 else np.sqrt(2) * (Y.imag if m < 0 else Y.real))
    with jax.enable_x64(True):
        Y = bpref.spherical_harmonics(6, condon_shortley=condon_shortley).forward((), v)[0]
    np.testing.assert_allclose(Y, np.stack(expected, -1), rtol=1e-10, atol=1e-12)


def test_harmonics_grow_along_the_direction_and_turn_about_the_axis():
    """Euler: v . dY_lm/dv = l Y_lm. About z: x dY/dy - y dY/dx = -m Y_{l,-m}, with m below 0 for the sines."""
    L, K = 6, 49
    v = np.random.default_rng(1).normal(size=3)
    layer = bpref.spherical_harmonics(L, normalize=False)
    with jax.enable_x64(True):
        Y, _, dv = backpropagate(layer, (), np.tile(v, (K, 1)), np.eye(K))
    degrees = np.concatenate([[l] * (2 * l + 1) for l in range(L + 1)])
    orders = np.concatenate([np.arange(-l, l + 1) for l in range(L + 1)])
    np.testing.assert_allclose(dv @ v, degrees * Y[0], rtol=1e-12)
    mirrored = Y[0][degrees**2 + degrees - orders]
    np.testing.assert_allclose(v[0] * dv[:, 1] - v[1] * dv[:, 0], -orders * mirrored, rtol=1e-11, atol=1e-12)


def test_a_direction_of_no_length_has_the_first_harmonic_alone():
    Y, _, dv = backpropagate(bpref.spherical_harmonics(2), (), jnp.zeros((1, 3)), jnp.ones((1, 9)))
    np.testing.assert_allclose(Y[0], [1 / np.sqrt(4 * np.pi), *[0] * 8], rtol=1e-6)
    assert not np.any(dv)
