"""Resizing, sampling, shuffling and padding: numbers worked by hand, and calls that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

IMAGES = jnp.ones((2, 3, 4, 8))

BAD_CALLS = {
    "resize: height is 0, expected a positive integer": lambda: bpref.resize(0, 4),
    "resize: width is 2.5, expected a positive integer": lambda: bpref.resize(4, 2.5),
    "resize: method is 'cubic', expected one of nearest, bilinear, bicubic, floor": (
        lambda: bpref.resize(4, 4, method="cubic")
    ),
    "resize: height is None, expected a positive integer": lambda: bpref.resize(),
    "resize: height or width is given beside scale, expected one or the other": lambda: bpref.resize(4, 4, scale=2.0),
    "resize: scale is -1.0, expected a positive number": lambda: bpref.resize(scale=(2.0, -1.0)),
    "resize: scale is (), expected one positive number, or that of each of 1 to 3 axes": (
        lambda: bpref.resize(scale=())
    ),
    "resize: sizes is 4, expected a tuple of 1 to 3 positive integers": lambda: bpref.resize(sizes=4),
    "resize: a size is 0, expected a positive integer": lambda: bpref.resize(sizes=(4, 0)),
    "resize: height or width is given beside sizes, expected one or the other": lambda: bpref.resize(
        4, 4, sizes=(4, 4)
    ),
    "resize: sizes is given beside scale, expected one or the other": lambda: bpref.resize(sizes=(4,), scale=2.0),
    "resize: x has shape (1, 4, 3, 2), expected 3 axes (N, T, C)": (
        lambda: bpref.resize(sizes=(4,)).forward((), jnp.ones((1, 4, 3, 2)))
    ),
    "resize: x has shape (4, 2), expected 3 axes (N, T, C)": (
        lambda: bpref.resize(scale=2.0).forward((), jnp.ones((4, 2)))
    ),
    "resize: x has shape (1, 4, 3, 2), of which a scale of 0.3 leaves no pixel": (
        lambda: bpref.resize(scale=0.3).forward((), jnp.ones((1, 4, 3, 2)))
    ),
    "resize: method is 'floor', which has no align_corners and no antialias": (
        lambda: bpref.resize(4, 4, "floor", align_corners=True)
    ),
    "resize: align_corners and antialias are True, expected one of them at most": (
        lambda: bpref.resize(4, 4, align_corners=True, antialias=True)
    ),
    "grid_sample: padding is 'wrap', expected one of zeros, border, reflection": (
        lambda: bpref.grid_sample(padding="wrap")
    ),
    "grid_sample: grid has shape (2, 3, 3, 3, 3), expected (N, P, Q, 2) for images (N, H, W, C) or (N, O, P, Q, 3) for "
    "volumes (N, D, H, W, C), and images has shape (2, 3, 4, 8)": (
        lambda: bpref.grid_sample().forward((), (IMAGES, jnp.ones((2, 3, 3, 3, 3))))
    ),
    "roi_align: width is 0, expected a positive integer": lambda: bpref.roi_align(2, 0),
    "roi_align: boxes has shape (3, 5), expected (R, 4)": (
        lambda: bpref.roi_align(2, 2).forward((), (IMAGES, jnp.ones((3, 5)), jnp.zeros(3, jnp.int32)))
    ),
    "roi_align: features has shape (2, 0, 4, 8), expected (N, H, W, C) with N > 0 and H > 0 and W > 0": (
        lambda: bpref.roi_align(2, 2).forward((), (IMAGES[:, :0], jnp.ones((3, 4)), jnp.zeros(3, jnp.int32)))
    ),
    "flatten: start is None, expected an integer": lambda: bpref.flatten(None),
    "flatten: x has shape (2, 3, 4, 8), expected an axis 4, its end": lambda: bpref.flatten(1, 4).forward((), IMAGES),
    "flatten: x has shape (2, 3, 4, 8), in which its start, axis 2, is behind its end, 1": (
        lambda: bpref.flatten(2, 1).forward((), IMAGES)
    ),
    "pixel_shuffle: factor is 0, expected a positive integer": lambda: bpref.pixel_shuffle(0),
    "pixel_shuffle: x has 8 channels in its last axis, expected a multiple of factor^2 = 9": (
        lambda: bpref.pixel_shuffle(3).forward((), IMAGES)
    ),
    "pixel_shuffle: x has shape (2, 3, 4, 8), expected H and W divisible by factor 2": (
        lambda: bpref.pixel_shuffle(2, inverse=True).forward((), IMAGES)
    ),
    "pad: widths is ((1, -1),), expected a pair of non-negative integers for each axis": lambda: bpref.pad(((1, -1),)),
    "pad: mode is 'wrap', expected one of constant, reflect, edge, circular": lambda: bpref.pad(((1, 1),), mode="wrap"),
    "pad: x has shape (2, 3, 4, 8), expected one axis for each of the 1 widths": (
        lambda: bpref.pad(((1, 1),)).forward((), IMAGES)
    ),
    "pad: x has 3 elements in axis 0, reflect expects at least 4 for a border of 3": (
        lambda: bpref.pad(((0, 3),), mode="reflect").forward((), jnp.ones(3))
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(layer, x, dy):
    y, _, dx = backpropagate(layer, (), x, jnp.array(dy, jnp.float32))
    return y, dx


@pytest.mark.parametrize(
    ("mode", "y", "dx"),
    [
        ("constant", [9, 9, 1, 2, 3, 9], [100, 1000, 10000]),
        ("reflect", [3, 2, 1, 2, 3, 2], [100, 1000 + 10 + 100000, 10000 + 1]),
        ("edge", [1, 1, 1, 2, 3, 3], [100 + 10 + 1, 1000, 10000 + 100000]),
        ("circular", [2, 3, 1, 2, 3, 1], [100 + 100000, 1000 + 1, 10000 + 10]),
    ],
)
def test_borders_are_folded_back_where_they_were_taken(mode, y, dx):
    layer = bpref.pad(((2, 1),), mode, value=9.0)
    seen = sweep(layer, jnp.array([1.0, 2.0, 3.0]), 10.0 ** np.arange(6))
    assert [v.tolist() for v in seen] == [y, dx]


def column(values):
    return jnp.array(values, jnp.float32).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("method", "y", "dx"),
    [("bilinear", [0, 1, 3, 4], [1 + 7.5 + 25, 2.5 + 75 + 1000]), ("nearest", [0, 0, 4, 4], [11, 1100])],
)
def test_two_pixels_become_four(method, y, dx):
    """Centres at -1/4, 1/4, 3/4 and 5/4 of the old pixels: weights 1, 3/4, 1/4 and 0 of the first."""
    seen = sweep(bpref.resize(4, 1, method), column([0, 4]), column([1, 10, 100, 1000]))
    assert [v.reshape(-1).tolist() for v in seen] == [y, dx]


def test_a_single_pixel_becomes_many():
    """More terms in the backward than are worth a loop each: the matrix is dense there."""
    y, dx = sweep(bpref.resize(40, 1), column([3]), column(np.arange(40)))
    np.testing.assert_array_equal(y, column(np.full(40, 3)))
    np.testing.assert_array_equal(dx, column([40 * 39 / 2]))


def test_bicubic_by_hand():
    """Half way between two pixels the weights are -3/32, 19/32, 19/32, -3/32; what lies outside is the edge."""
    y, dx = sweep(
        bpref.resize(7, 1, "bicubic", align_corners=True), column([1, 10, 100, 1000]), column([0, 0, 0, 1, 0, 1, 0])
    )
    np.testing.assert_allclose(y.ravel()[::2], [1, 10, 100, 1000], rtol=1e-6)
    np.testing.assert_allclose(y.ravel()[3], (19 * 110 - 3 * 1001) / 32, rtol=1e-6)
    np.testing.assert_allclose(y.ravel()[5], (19 * 1100 - 3 * 1010) / 32, rtol=1e-6)
    np.testing.assert_allclose(dx.ravel(), np.array([-3, 19 - 3, 19 + 19, -3 + 16]) / 32, rtol=1e-6)


def test_smoothing_takes_the_mean_where_two_pixels_become_one():
    """The weights of a triangle two pixels wide: 1/4, 3/4, 3/4, 1/4 in the middle, each row divided by its sum."""
    y, _ = sweep(bpref.resize(2, 1, antialias=True), column([1, 10, 100, 1000]), column([1, 1]))
    np.testing.assert_allclose(y.ravel(), [(3 + 30 + 100) / 7, (10 + 300 + 3000) / 7], rtol=1e-6)


def test_a_factor_says_where_pixels_lie():
    """3 pixels times 1.5 are 4, at s = (p + 1/2) / 1.5 - 1/2, and not at those of 4 / 3."""
    y, _ = sweep(bpref.resize(scale=(1.5, 1.0)), column([0, 1, 2]), column([1, 1, 1, 1]))
    np.testing.assert_allclose(y.ravel(), [0, 0.5, 7 / 6, 11 / 6], rtol=1e-6)
    y, _ = sweep(bpref.resize(scale=(1.5, 1.0), method="floor"), column([0, 1, 2]), column([1, 1, 1, 1]))
    assert y.ravel().tolist() == [0, 0, 1, 2]


def test_weights_of_resize_are_rounded_once():
    """From 37 pixels to 29, each output's position in 58ths; from a position that is rounded, 1 / 58 is not."""
    with jax.enable_x64(True):
        came = bpref.resize(29, 1).forward((), jnp.eye(37, dtype=float)[..., None, None])[0].reshape(37, 29)
    for p in range(29):
        s = (2 * p + 1) * 37 - 29
        assert came[:, p].tolist() == [max(0, 58 - abs(s - 58 * h)) / 58 for h in range(37)]


def test_a_nan_stays_in_its_place_when_an_image_grows():
    y, _ = sweep(bpref.resize(6, 1), column([1, 1, np.nan]), column(np.ones(6)))
    np.testing.assert_array_equal(np.isnan(y.reshape(-1)), [False, False, False, True, True, True])


def test_channels_become_blocks_in_pytorchs_order():
    x = jnp.arange(8.0).reshape(1, 1, 1, 8)
    y = bpref.pixel_shuffle(2).forward((), x)[0]
    assert y[0, ..., 0].tolist() == [[0, 1], [2, 3]]
    assert y[0, ..., 1].tolist() == [[4, 5], [6, 7]]
    assert bpref.pixel_shuffle(2, inverse=True).forward((), y)[0].tolist() == x.tolist()


def at(across, down=0.0):
    return jnp.array([across, down], jnp.float32).reshape(1, 1, 1, 2)


ROW = jnp.array([2.0, 6.0], jnp.float32).reshape(1, 1, 2, 1)


@pytest.mark.parametrize(
    ("hyper", "across", "y", "dimages", "dgrid"),
    [
        ({"align_corners": True}, 0.5, 5, [0.25, 0.75], 4 / 2),
        ({}, 0.25, 5, [0.25, 0.75], 4),
        ({}, -0.75, 1.5, [0.75, 0], 2),
        ({"padding": "border"}, -0.75, 2, [1, 0], 0),
        ({"padding": "border"}, 1e9, 6, [0, 1], 0),
        ({}, 1e9, 0, [0, 0], 0),
    ],
)
def test_between_two_pixels(hyper, across, y, dimages, dgrid):
    """Pixels 2 and 6; -3/4 is a quarter of a pixel outside, where corners are not aligned."""
    seen, (dx, dg) = sweep(bpref.grid_sample(**hyper), (ROW, at(across)), np.ones((1, 1, 1, 1)))
    assert seen.item() == y
    assert dx.reshape(-1).tolist() == dimages
    assert dg[..., 0].item() == dgrid


def test_a_pixel_that_is_outside_is_left_out_though_it_is_nan():
    """The point reads pixel 0 and one before the image, which is not the NaN of pixel 1."""
    images = jnp.array([2.0, np.nan], jnp.float32).reshape(1, 1, 2, 1)
    assert bpref.grid_sample().forward((), (images, at(-0.75)))[0].item() == 1.5


def regions(layer, features, boxes, images, dy=1.0):
    """y of features (H, W), and the cotangents of features and boxes for one dy everywhere."""
    x = features[None, ..., None], jnp.asarray(boxes, jnp.float32), jnp.asarray(images)
    y, _, (dx, dboxes, none) = backpropagate(layer, (), x, jnp.full((len(boxes), *SIDES, 1), dy, jnp.float32))
    assert none is None
    return y[..., 0], dx[0, ..., 0], dboxes


SIDES = 1, 2
SLOPE = jnp.arange(6.0)[None] + 10 * jnp.arange(5.0)[:, None]
"""10 v + u at the pixel (u, v): a bilinear mixture of it is 10 v + u wherever its point is."""


@pytest.mark.parametrize("sampling", [1, 2, 3])
def test_a_region_of_a_plane_has_its_values_at_the_centres_of_the_cells(sampling):
    """The box (1, 1) to (4, 3) has cells of 3/2 by 2, centres at u = 7/4 and 13/4, v = 2, half a pixel less if aligned.

    The mean of the plane moves with the box: u by 1 - f and f of its ends, f = 1/4 and 3/4; v by a half of each.
    """
    for aligned, half in ((False, 0), (True, 0.5)):
        layer = bpref.roi_align(*SIDES, sampling=sampling, aligned=aligned)
        y, dx, dboxes = regions(layer, SLOPE, [[1, 1, 4, 3]], [0])
        np.testing.assert_allclose(y[0, 0], 10 * (2 - half) + np.array([1.75, 3.25]) - half, rtol=1e-6)
        np.testing.assert_allclose(dboxes, [[3 / 4 + 1 / 4, 2 * 5, 1 / 4 + 3 / 4, 2 * 5]], rtol=1e-5)
        assert dx.sum() == pytest.approx(2)


def test_a_region_smaller_than_a_pixel_is_one_where_it_is_not_aligned():
    """Its other ends do nothing then: the cells' centres are 1/4 and 3/4 right of the first corner, 1/2 below it."""
    small = [[1.25, 1.25, 1.5, 1.5]]
    y, _, dboxes = regions(bpref.roi_align(*SIDES, sampling=1, aligned=False), SLOPE, small, [0])
    assert y.tolist() == [[[17.5 + 1.5, 17.5 + 2.0]]]
    assert dboxes.tolist() == [[2, 20, 0, 0]]
    y, _, dboxes = regions(bpref.roi_align(*SIDES, sampling=1), SLOPE, small, [0])
    assert y.tolist() == [[[8.75 + 0.8125, 8.75 + 0.9375]]]
    assert dboxes.tolist() == [[1, 10, 1, 10]]


def test_regions_of_no_image_or_far_outside_have_zeros():
    layer = bpref.roi_align(*SIDES, sampling=1)
    box = [0.0, 0.0, 4.0, 4.0]
    y, dx, dboxes = regions(layer, SLOPE * jnp.nan, [box, box, [8.0, 0.0, 9.0, 4.0]], [-1, 1, 0])
    assert not any(np.any(v) for v in (y, dx, dboxes))


def test_a_region_within_a_pixel_outside_has_the_edge_and_there_no_slope_across():
    """Not aligned, points at u = -3/4 and -1/4, v = 2: both have the first column's value."""
    layer = bpref.roi_align(*SIDES, sampling=1, aligned=False)
    y, dx, dboxes = regions(layer, SLOPE, [[-1.0, 1.0, 0.0, 3.0]], [0])
    assert y.tolist() == [[[20, 20]]]
    assert dx[2, 0] == dx.sum() == 2
    assert dboxes.tolist() == [[0, 10, 0, 10]]
