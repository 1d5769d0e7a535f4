"""Layers with a decided backward: what they refuse, and steps and gradients worked by hand."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import bpref
from bpref.formulas.formats import microscaled, to_nearest
from bpref.rules.quantization.learned_step_quantizer import LearnedStepQuantizerParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

ONES = jnp.ones((8, 6))
KEY = jax.random.key(0)
STEP = LearnedStepQuantizerParams(jnp.float32(0.5))

BAD_CALLS = {
    "straight_through: levels is 1, expected None or an integer of at least 2": lambda: bpref.straight_through(1),
    "straight_through: limit is 0.0, expected a positive number": lambda: bpref.straight_through(3, limit=0.0),
    "straight_through: clipped needs levels, whole numbers have no outermost one": (
        lambda: bpref.straight_through(clipped=True)
    ),
    "learned_step_quantizer: bits is 1, expected an integer of at least 2": (
        lambda: bpref.learned_step_quantizer(bits=1)
    ),
    "learned_step_quantizer: bits is 0, expected an integer of at least 1": (
        lambda: bpref.learned_step_quantizer(bits=0, signed=False)
    ),
    "learned_step_quantizer: example_axes is -1, expected an integer of at least 0": (
        lambda: bpref.learned_step_quantizer(example_axes=-1)
    ),
    "learned_step_quantizer: x has shape (8, 6), expected at least 3 axes, of examples": (
        lambda: bpref.learned_step_quantizer(example_axes=3).forward(STEP, ONES)
    ),
    "gradient_reversal: strength is inf, expected a finite number": lambda: bpref.gradient_reversal(float("inf")),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(layer, params, x, dy):
    y, dparams, dx = backpropagate(layer, params, jnp.asarray(x), jnp.asarray(dy))
    return np.asarray(y), dparams, np.asarray(dx)


def test_halves_are_rounded_to_the_even_neighbour():
    y, _, dx = sweep(bpref.straight_through(), (), [0.5, 1.5, 2.5, -0.5, 7.6], [1.0, 2.0, 3.0, 4.0, 5.0])
    np.testing.assert_array_equal(y, [0.0, 2.0, 2.0, 0.0, 8.0])
    np.testing.assert_array_equal(dx, [1.0, 2.0, 3.0, 4.0, 5.0])


def test_two_levels_are_the_sign():
    """The cotangent passes where |x| <= 1, its ends among it, and nowhere else."""
    y, _, dx = sweep(bpref.straight_through(2, clipped=True), (), [-3.0, -1.0, -0.1, 0.0, 1.0, 1.1], [1.0] * 6)
    np.testing.assert_array_equal(y, [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    np.testing.assert_array_equal(dx, [0.0, 1.0, 1.0, 1.0, 1.0, 0.0])


def test_levels_are_evenly_spaced_up_to_the_limit():
    y, _, dx = sweep(bpref.straight_through(5, limit=2.0), (), [-9.0, -1.6, 0.4, 0.5, 1.4, 9.0], [1.0] * 6)
    np.testing.assert_array_equal(y, [-2.0, -2.0, 0.0, 1.0, 1.0, 2.0])
    np.testing.assert_array_equal(dx, [1.0] * 6)


def test_a_learned_step_by_hand():
    """Two bits: levels -2 .. 1 times 1/2. u = (-4, -0.6, 0.2, 6); c = (-2, -0.4, -0.2, 1); g = 1 / sqrt(4)."""
    y, dparams, dx = sweep(bpref.learned_step_quantizer(2), STEP, [-2.0, -0.3, 0.1, 3.0], [1.0, 1.0, 10.0, 100.0])
    np.testing.assert_array_equal(y, [-1.0, -0.5, 0.0, 0.5])
    np.testing.assert_array_equal(dx, [0.0, 1.0, 10.0, 0.0])
    np.testing.assert_allclose(dparams.s, (-2 - 0.4 - 2 + 100) / 2, rtol=1e-5)


def test_examples_do_not_count_in_the_scale_of_the_step():
    """g = 1 / sqrt(6 Q_p) for 6 features, whatever the number of examples; 1 / sqrt(48 Q_p) for weights."""
    of_weights, of_activations = (
        float(sweep(bpref.learned_step_quantizer(3, example_axes=n), STEP, 3 * ONES, ONES)[1].s) for n in (0, 1)
    )
    assert of_activations == pytest.approx(48 * 3 / np.sqrt(6 * 3), rel=1e-6)
    assert of_weights == pytest.approx(48 * 3 / np.sqrt(48 * 3), rel=1e-6)


def test_the_step_starts_from_the_size_of_what_is_quantised():
    layer = bpref.learned_step_quantizer(3)
    assert layer.init(KEY, 3 * ONES).s == pytest.approx(2 * 3 / np.sqrt(3), rel=1e-6)
    of_shape = layer.init(KEY, jax.ShapeDtypeStruct((8, 6), jnp.float32)).s
    assert of_shape == pytest.approx(2 * np.sqrt(2 / np.pi) / np.sqrt(3), rel=1e-6)


def test_reversal_is_the_identity_forwards():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    y, _, dx = sweep(bpref.gradient_reversal(0.25), (), x, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dx, -0.25 * x)


AT_INFINITY = {
    "reversal": (bpref.gradient_reversal(0.5), [np.inf, -np.inf, 2], [-0.5, -0.5, -0.5]),
    "whole numbers": (bpref.straight_through(), [np.inf, -np.inf, 2], [1, 1, 1]),
    "levels": (bpref.straight_through(3), [1, -1, 1], [1, 1, 1]),
    "levels, clipped": (bpref.straight_through(3, limit=2.0, clipped=True), [2, -2, 2], [0, 0, 1]),
}


@pytest.mark.parametrize(("layer", "expected", "slopes"), AT_INFINITY.values(), ids=AT_INFINITY)
def test_infinity_is_a_value_like_any_other(layer, expected, slopes):
    """To the forward's own autodiff too."""
    x = jnp.asarray([np.inf, -np.inf, 2.0])
    y, _, dx = sweep(layer, (), x, jnp.ones(3))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, slopes)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(layer.forward((), x)[0]))(x), slopes)


def test_a_network_with_a_reversal_in_it_is_differentiable_twice():
    """Of y = tanh(x) with slope -l (1 - y^2): once more, its own slope is l^2 times tanh's second derivative."""
    network = bpref.as_function(bpref.serial(bpref.gradient_reversal(0.5), bpref.tanh()))
    x = jnp.float32(0.3)
    y = np.tanh(0.3)
    assert jax.grad(lambda x: network(((), ()), x))(x) == pytest.approx(-0.5 * (1 - y**2), rel=1e-6)
    twice = jax.grad(jax.grad(lambda x: network(((), ()), x)))(x)
    assert twice == pytest.approx(0.25 * -2 * y * (1 - y**2), rel=1e-6)


def test_an_affine_map_of_8_bits_by_hand():
    """e4m3 has 1, 1.125, ... up to 448: 449 has s = 2 and is 448; 20 and 36 are multiples of 2 and 4, 0.3 is none."""
    params = bpref.Fp8LinearParams(jnp.array([[1.0, 1.1, 0.0, 0.0]]), jnp.array([3.0]))
    x = jnp.array([[449.0, 20.0, -36.0, 0.3]])
    Z, dparams, dx = backpropagate(bpref.fp8_linear(1), params, x, jnp.array([[1.1]]))
    near = 2 * float(jnp.float32(0.15).astype(jnp.float8_e4m3fn))
    assert Z.item() == 448 + 1.125 * 20 + 3
    np.testing.assert_allclose(dparams.W, 1.1 * np.array([[448, 20, -36, near]]), rtol=1e-6)
    np.testing.assert_allclose(dx, 1.1 * np.array([[1, 1.125, 0, 0]]), rtol=1e-6)
    np.testing.assert_allclose(dparams.b, 1.1, rtol=1e-6)


def test_cotangents_of_8_bits_have_two_behind_the_point():
    """1.1 and 1.2 are 1 and 1.25 of e5m2; the sum that b has is not rounded."""
    params = bpref.Fp8LinearParams(jnp.eye(2), jnp.zeros(2))
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    _, dparams, dx = backpropagate(bpref.fp8_linear(2, cotangent=True), params, x, jnp.array([[1.1, 1.2], [0.0, 0.0]]))
    assert dx.tolist() == [[1.0, 1.25], [0, 0]]
    assert dparams.W.tolist() == [[1.0, 0], [1.25, 0]]
    np.testing.assert_allclose(dparams.b, [1.1, 1.2], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float16, jnp.bfloat16])
def test_the_nearest_number_of_a_format_is_what_a_cast_gives(dtype):
    """Ties among them, the format's subnormal numbers, and its largest."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=500) * 4.0 ** rng.integers(-12, 7, 500), np.arange(-32, 32) / 16, [0.0]])
    x = jnp.clip(x.astype(np.float32), -float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).max))
    np.testing.assert_array_equal(to_nearest(x, dtype), x.astype(dtype).astype(jnp.float32))


def test_numbers_far_apart_in_scale_have_a_power_of_2_each():
    params = bpref.Fp8LinearParams(jnp.full((1, 2), 2.0**-40), None)
    Z = bpref.fp8_linear(1, bias=False).forward(params, jnp.array([[2.0**60, 2.0**58], [0.0, 0.0]]))[0]
    assert Z.tolist() == [[2.0**20 + 2.0**18], [0]]


def blocks_by_casts(v: np.ndarray, axis: int, dtype: type) -> np.ndarray:
    """OCP MX v1.0, by NumPy's casts to the formats themselves: a block that is no zeros at a time."""
    largest = float(ml_dtypes.finfo(dtype).max)
    rows = np.moveaxis(v, axis, -1).astype(np.float32)
    done = np.zeros_like(rows)
    for i in np.ndindex(rows.shape[:-1]):
        for start in range(0, rows.shape[-1], 32):
            block = rows[i][start : start + 32]
            exponent = np.frexp(np.abs(block).max())[1] - np.frexp(largest)[1]
            scale = np.float32(2.0**exponent).astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
            assert scale == 2.0**exponent
            done[i][start : start + 32] = (
                np.clip(block / scale, -largest, largest).astype(dtype).astype(np.float32) * scale
            )
    return np.moveaxis(done, -1, axis)


@pytest.mark.parametrize("cotangent", [False, True])
def test_blocks_of_8_bits_are_those_of_the_formats_own_casts(cotangent):
    """Two whole blocks and a part of one along each of N, d and m; examples on two axes are one sequence of N."""
    rng = np.random.default_rng(0)
    A, W, dZ = (
        rng.normal(size=shape) * 2.0 ** rng.integers(-9, 9, shape) for shape in ((5, 14, 65), (67, 65), (5, 14, 67))
    )
    A, W, dZ = (v.astype(np.float32).astype(float) for v in (A, W, dZ))
    params = bpref.Fp8LinearParams(W, np.zeros(67))
    with jax.enable_x64(True):
        Z, dparams, dx = backpropagate(bpref.mxfp8_linear(67, cotangent=cotangent), params, A, dZ)

    def near(v, axis):
        return blocks_by_casts(v, axis, ml_dtypes.float8_e4m3fn).astype(float)

    def near_cotangent(v, axis):
        return blocks_by_casts(v, axis, ml_dtypes.float8_e5m2).astype(float) if cotangent else v

    rows, d = A.reshape(70, 65), dZ.reshape(70, 67)
    np.testing.assert_allclose(Z, (near(rows, 1) @ near(W, 1).T).reshape(Z.shape), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(dparams.W, near_cotangent(d, 0).T @ near(rows, 0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(dx, (near_cotangent(d, 1) @ near(W, 0)).reshape(dx.shape), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(dparams.b, d.sum(0), rtol=1e-12, atol=1e-12)


def test_a_block_of_32_has_its_own_scale():
    """1 is 256 units of 2^-8; beside it 2^-10 is a quarter of one, and 2^-19 nothing; 1.9 is beyond 448 of them."""
    x = (
        jnp.zeros((1, 40))
        .at[0, jnp.array([0, 1, 2, 3, 32, 33])]
        .set(jnp.array([1.0, 2.0**-10, 2.0**-19, 1.9, 2.0**-19, 2.0**-28]))
    )
    near = microscaled(x, 1, jnp.float8_e4m3fn)
    assert near[0, jnp.array([0, 1, 2, 3, 32, 33])].tolist() == [1.0, 2.0**-10, 0.0, 1.75, 2.0**-19, 2.0**-28]
    assert float(jnp.abs(near[0, 4:32]).max()) == 0


def test_the_differential_of_blocks_is_the_one_that_is_decided():
    """Forward mode of the forward, and the backward, are of the same factors."""
    rng = np.random.default_rng(1)
    A, W, dA, dW, dZ = (rng.normal(size=n) for n in ((35, 40), (33, 40), (35, 40), (33, 40), (35, 33)))
    layer, params = bpref.mxfp8_linear(33, bias=False), bpref.Fp8LinearParams(W, None)
    with jax.enable_x64(True):
        tangent = jax.jvp(lambda W, A: layer.forward(bpref.Fp8LinearParams(W, None), A)[0], (W, A), (dW, dA))[1]
        _, dparams, dx = backpropagate(layer, params, A, dZ)
    assert np.vdot(dZ, tangent) == pytest.approx(np.vdot(dparams.W, dW) + np.vdot(dx, dA), rel=1e-12)
