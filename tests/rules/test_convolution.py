"""Convolutions: what they say to a call that does not fit, and numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules import RULES
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.convolution.transposed_convolution import TransposedConvolutionParams
from bpref.verify import oracle
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

KEY = jax.random.key(0)
IMAGE = jnp.ones((2, 5, 6, 4))
SERIES = jnp.ones((2, 5, 4))


def forward(layer, x, given=None):
    return layer.forward(layer.init(KEY, x if given is None else given), x)


def changed(layer, x, **params):
    """The forward of `x` with some parameters of other shapes or dtypes."""
    return layer.forward(layer.init(KEY, x)._replace(**params), x)


BAD_CALLS = {
    "correlation: reach is 3, expected a multiple of step 2": lambda: bpref.correlation(3, 2),
    "deformable_convolution: window is (3,), expected its height and width": (
        lambda: bpref.deformable_convolution(3, (3,))
    ),
    "deformable_convolution: offsets has shape (2, 5, 6, 4, 2), expected (2, 4, 5, 4, 2), for windows (2, 2) of "
    "images (2, 5, 6, 4)": (
        lambda: forward(
            bpref.deformable_convolution(3, (2, 2), padding="valid"),
            bpref.ImagesAndOffsets(IMAGE, jnp.zeros((2, 5, 6, 4, 2))),
        )
    ),
    "convolution: window is (), expected a tuple of 1 to 3 positive integers": lambda: bpref.convolution(8, ()),
    "convolution: window is 3, expected a tuple of 1 to 3 positive integers": lambda: bpref.convolution(8, 3),
    "convolution: stride is 0, expected a positive integer, or 2 of them": lambda: bpref.convolution(8, stride=0),
    "convolution: dilation is (1, 1, 1), expected a positive integer, or 2 of them": (
        lambda: bpref.convolution(8, dilation=(1, 1, 1))
    ),
    "convolution 'stem': padding is ((1, 1), (-1, 0)), expected 'same', 'valid', a non-negative "
    "integer, or 2 of them or of pairs": (lambda: bpref.convolution(8, padding=((1, 1), (-1, 0)), name="stem")),
    "convolution: padding is 'full', expected 'same', 'valid', a non-negative integer, or 1 of them or of pairs": (
        lambda: bpref.convolution(8, (3,), padding="full")
    ),
    "convolution: groups is 0, expected a positive integer": lambda: bpref.convolution(8, groups=0),
    "convolution: features is 8, expected a positive multiple of groups 3": lambda: bpref.convolution(8, groups=3),
    "convolution: x has 4 channels in its last axis, expected a positive multiple of groups 3": (
        lambda: bpref.convolution(9, groups=3).init(KEY, IMAGE)
    ),
    "convolution: x has shape (2, 5, 4), expected 4 axes (N, H, W, C)": lambda: forward(bpref.convolution(8), SERIES),
    "convolution: the window reaches over 7 elements of axis 1, x has 5 there and 0 of padding": (
        lambda: forward(bpref.convolution(8, (3, 3), dilation=3, padding=((0, 0), (0, 2))), IMAGE)
    ),
    "causal_convolution 'mixer': x has shape (2, 5, 6, 4), expected 3 axes (N, T, C)": (
        lambda: forward(bpref.causal_convolution(8, name="mixer"), IMAGE)
    ),
    "transposed_convolution: output_padding is -1, expected a non-negative integer, or 2 of them": (
        lambda: bpref.transposed_convolution(8, padding=((1, 1), (1, 1)), output_padding=-1)
    ),
    "transposed_convolution: output_padding is (1, 1), expected less than the stride (2, 1)": (
        lambda: bpref.transposed_convolution(8, stride=(2, 1), padding=((1, 1), (1, 1)), output_padding=1)
    ),
    "transposed_convolution: output_padding is (1, 1), which needs pairs for the padding, not 'same'": (
        lambda: bpref.transposed_convolution(8, stride=2, output_padding=1)
    ),
    "transposed_convolution: the padding ((3, 3),) leaves y the sizes (-2,), from x (2, 2, 4)": (
        lambda: forward(bpref.transposed_convolution(8, (3,), padding=((3, 3),)), jnp.ones((2, 2, 4)))
    ),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def series(*values):
    return jnp.array(values, jnp.float32).reshape(1, -1, 1)


def test_a_convolution_by_hand():
    """x = (1, 2, 3, 4), W = (10, 1): windows (1, 2), (3, 4) at stride 2, and dy = (1, 100)."""
    layer = bpref.convolution(1, (2,), stride=2, padding="valid")
    params = ConvolutionParams(jnp.array([10.0, 1.0]).reshape(1, 2, 1), jnp.array([0.5]))
    y, dparams, dx = backpropagate(layer, params, series(1, 2, 3, 4), series(1, 100))
    np.testing.assert_array_equal(y, series(12.5, 34.5))
    np.testing.assert_array_equal(dx, series(10, 1, 1000, 100))
    np.testing.assert_array_equal(dparams.W.ravel(), [301, 402])
    np.testing.assert_array_equal(dparams.b, [101])


def test_elements_that_no_window_sees_get_zero():
    layer = bpref.convolution(1, (2,), stride=3, padding="valid", bias=False)
    params = ConvolutionParams(jnp.ones((1, 2, 1)), None)
    _, _, dx = backpropagate(layer, params, series(1, 2, 3, 4, 5, 6), series(1, 2))
    np.testing.assert_array_equal(dx, series(1, 1, 0, 2, 2, 0))


def test_causal_sees_no_future():
    """dx of the dy at one time is 0 at all later times, y at all earlier ones is untouched by x."""
    layer = bpref.causal_convolution(3, window=4, dilation=2)
    x = jax.random.normal(KEY, (1, 12, 2))
    params = layer.init(KEY, x)
    y, _, dx = backpropagate(layer, params, x, jnp.zeros((1, 12, 3)).at[:, 7].set(1))
    assert np.any(dx[:, 7] != 0)
    np.testing.assert_array_equal(dx[:, 8:], 0)
    np.testing.assert_array_equal(layer.forward(params, x.at[:, 8:].set(9.0))[0][:, :8], y[:, :8])


def test_a_transposed_convolution_by_hand():
    """x = (1, 100) at stride 2 with the window (1, 2, 3): (1, 2, 3 + 100, 200, 300)."""
    layer = bpref.transposed_convolution(1, (3,), stride=2, padding="valid")
    params = TransposedConvolutionParams(jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), jnp.zeros(1))
    y, dparams, dx = backpropagate(layer, params, series(1, 100), series(1, 0, 0, 0, 1))
    np.testing.assert_array_equal(y, series(1, 2, 103, 200, 300))
    np.testing.assert_array_equal(dx, series(1, 3))
    np.testing.assert_array_equal(dparams.W.ravel(), [1, 0, 100])


def test_the_transpose_of_a_convolution():
    """<conv(x), z> = <x, transposed(z)>, with the same W."""
    ours = bpref.convolution(6, (3, 2), stride=(2, 3), dilation=(1, 2), padding=((1, 0), (2, 2)), groups=2, bias=False)
    x = jax.random.normal(KEY, (2, 7, 9, 4))
    params = ours.init(KEY, x)
    y, _ = ours.forward(params, x)
    z = jax.random.normal(jax.random.key(1), y.shape)
    back = bpref.transposed_convolution(
        4, (3, 2), (2, 3), (1, 2), ((1, 0), (2, 2)), output_padding=(1, 1), groups=2, bias=False
    )
    image, _ = back.forward(TransposedConvolutionParams(params.W, None), z)
    assert image.shape == x.shape
    assert float(jnp.vdot(y, z)) == pytest.approx(float(jnp.vdot(x, image)), rel=1e-5)


def test_weights_are_drawn_for_outputs_of_the_inputs_variance():
    x = jax.random.normal(KEY, (4, 32, 32, 16))
    for layer in (bpref.convolution(64, (3, 3)), bpref.transposed_convolution(64, (4, 4), stride=2)):
        y, _ = forward(layer, x)
        assert 0.8 < float(jnp.std(y)) < 1.1, layer.name


@pytest.mark.parametrize("name", ["convolution", "transposed_convolution"])
@pytest.mark.parametrize("groups", [4, 8])
def test_dW_in_groups_is_as_precise_as_autodiffs(name, groups):
    """Summed in blocks: in sequence its error was two to three times that of autodiff."""
    hyper = {"features": 16, "groups": groups}
    layer, rng = getattr(bpref, name)(**hyper), np.random.default_rng(0)
    x = rng.normal(size=(16, 16, 16, 8)).astype(np.float32)
    params = layer.init(KEY, x)
    dy = rng.normal(size=jax.eval_shape(layer.forward, params, x)[0].shape).astype(np.float32)

    @jax.jit
    def by_autodiff(params, x, dy):
        _, cotangents_of = oracle.with_cotangents(lambda *of: RULES[name].reference(*of, **hyper), params, x)
        return cotangents_of(dy)[0].W

    own, autodiff = backpropagate(layer, params, x, dy)[1].W, by_autodiff(params, x, dy)
    with jax.enable_x64(True):
        truth = np.asarray(by_autodiff(*jax.tree.map(lambda v: np.asarray(v, np.float64), (params, x, dy))))

    def off(v):
        return np.linalg.norm(np.asarray(v, np.float64) - truth) / np.linalg.norm(truth)

    assert off(own) < 1.1 * off(autodiff)


def test_offsets_of_zero_and_a_mask_of_one_make_a_convolution():
    x = jax.random.normal(KEY, (2, 5, 6, 4))
    hyper = {"features": 3, "stride": (2, 1), "dilation": (1, 2), "padding": ((1, 2), (0, 3))}
    plain, deformed = bpref.convolution(**hyper), bpref.deformable_convolution(**hyper)
    params = plain.init(KEY, x)
    y, dparams, dx = backpropagate(plain, params, x, jnp.ones(plain.forward(params, x)[0].shape))
    given = bpref.ImagesAndOffsets(x, jnp.zeros((*y.shape[:3], 9, 2)), jnp.ones((*y.shape[:3], 9)))
    of_deformed = bpref.DeformableConvolutionParams(*params)
    z, dparams_z, dx_z = backpropagate(deformed, of_deformed, given, jnp.ones(y.shape))
    for came, expected in ((z, y), (dparams_z.W, dparams.W), (dparams_z.b, dparams.b), (dx_z.images, dx)):
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-4)


def test_an_offset_moves_the_point_down_and_across():
    """Of the plane 10 v + u, read at (v, u) = (1, 2) moved by (1/2, -1/4), and half of it counts."""
    plane = (10 * jnp.arange(4.0)[:, None] + jnp.arange(5.0)[None])[None, ..., None]
    offsets = jnp.zeros((1, 4, 5, 1, 2)).at[0, 1, 2, 0].set(jnp.array([0.5, -0.25]))
    x = bpref.ImagesAndOffsets(plane, offsets, jnp.full((1, 4, 5, 1), 0.5))
    params = bpref.DeformableConvolutionParams(jnp.full((1, 1, 1, 1), 3.0), None)
    dy = jnp.zeros((1, 4, 5, 1)).at[0, 1, 2, 0].set(1)
    y, _, dx = backpropagate(bpref.deformable_convolution(1, (1, 1), bias=False), params, x, dy)
    assert y[0, 1, 2, 0] == 3 * 0.5 * (15 + 1.75)
    assert dx.offsets[0, 1, 2, 0].tolist() == [3 * 0.5 * 10, 3 * 0.5 * 1]
    assert dx.mask[0, 1, 2, 0] == 3 * (15 + 1.75)
    assert dx.images.sum() == 3 * 0.5
    assert dx.images[0, 1, 1:3, 0].tolist() == [1.5 * 0.5 * 0.25, 1.5 * 0.5 * 0.75]


def test_neighbours_of_two_pixels():
    """Beside 1 and 2 there is nothing above, below and further out."""
    layer = bpref.correlation(1)
    f, g = (jnp.array(v, jnp.float32).reshape(1, 1, 2, 1) for v in ([1, 10], [1, 2]))
    dy = jnp.zeros((1, 1, 2, 9)).at[0, 0, 0, 5].set(1)
    y, _, (df, dg) = backpropagate(layer, (), (f, g), dy)
    assert y.reshape(2, 3, 3).tolist() == [[[0] * 3, [0, 1, 2], [0] * 3], [[0] * 3, [10, 20, 0], [0] * 3]]
    assert df.ravel().tolist() == [2, 0]
    assert dg.ravel().tolist() == [0, 1]


@pytest.mark.parametrize("make", [bpref.convolution, bpref.transposed_convolution])
def test_a_number_for_the_padding_is_that_of_both_sides(make):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 4)).astype(np.float32)
    layer = make(4, (3, 2), padding=(1, 0))
    params = layer.init(jax.random.key(0), x)
    y = [make(4, (3, 2), padding=p).forward(params, x)[0] for p in ((1, 0), ((1, 1), (0, 0)))]
    np.testing.assert_array_equal(*y)
