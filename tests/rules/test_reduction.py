"""The reductions: what they refuse, and what they are at ties, at zeros, at infinity and of nothing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals

X = jnp.ones((4, 6))

BAD_CALLS = {
    "reduce_sum: axis is (0, -3), x has 2 axes (x: (4, 6))": lambda: bpref.reduce_sum(axis=(0, -3)).forward((), X),
    "reduce_prod: axis is (1, -1), which names an axis of x twice (x: (4, 6))": (
        lambda: bpref.reduce_prod(axis=(1, -1)).forward((), X)
    ),
    "reduce_sum: x has shape (0, 6), expected at least one value along axes (0,)": (
        lambda: bpref.reduce_sum(axis=0, mean=True).forward((), jnp.ones((0, 6)))
    ),
    "reduce_max: x has shape (0, 6), expected at least one value along axes (0, 1)": (
        lambda: bpref.reduce_max().forward((), jnp.ones((0, 6)))
    ),
    "variance: x has shape (1, 6), expected more than ddof = 1 values along axes (0,), not 1": (
        lambda: bpref.variance(axis=0, ddof=1).forward((), X[:1])
    ),
    "variance: ddof is -1, expected an integer of at least 0": lambda: bpref.variance(ddof=-1),
    "reduce_max: axis is (0, 1), expected one axis, or None for all, where indices are asked for": (
        lambda: bpref.reduce_max((0, 1), with_indices=True)
    ),
    "vector_norm: p is nan, expected a number, math.inf or -math.inf": lambda: bpref.vector_norm(math.nan),
    "fan_in: combined is 'mean', expected one of sum, product, concatenation": lambda: bpref.fan_in("mean"),
    "fan_in: x has no array, expected at least one": lambda: bpref.fan_in().forward((), ()),
    "fan_in: array 1 of x has shape (1, 6), expected that of array 0, (4, 6)": (
        lambda: bpref.fan_in().forward((), (X, X[:1]))
    ),
    "fan_in: array 1 of x has shape (4, 2), expected that of array 0, (4, 6) but along axis 0": (
        lambda: bpref.fan_in("concatenation", axis=0).forward((), {"a": X, "b": X[:, :2]})
    ),
    "fan_in: array 0 of x has shape (4, 6), which has no axis 2": (
        lambda: bpref.fan_in("concatenation", axis=2).forward((), (X, X))
    ),
    "TypeError: fan_in: array 1 of x has dtype bfloat16, expected that of array 0, float32": (
        lambda: bpref.fan_in("product").forward((), (X, X.astype(jnp.bfloat16)))
    ),
    "logsumexp: axis is 1, x has 0 axes (x: ())": lambda: bpref.logsumexp(axis=1).forward((), jnp.ones(())),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(layer, x, dy=1.0):
    x = jnp.asarray(x, jnp.float32)
    y, cache = layer.forward((), x)
    dx = layer.backward((), cache, jnp.full(y.shape, dy, y.dtype))[1]
    return np.asarray(y), np.asarray(dx)


def test_a_sum_keeps_no_number():
    cache = bpref.reduce_sum().forward((), X)[1]
    assert cache.like.size == 0


def test_half_precision_is_summed_in_float32():
    y, _ = bpref.reduce_sum().forward((), jnp.ones(1000, jnp.bfloat16))
    assert float(y) == 1000


@pytest.mark.parametrize("minimum", [False, True])
def test_equally_large_values_share_the_gradient(minimum):
    sign = -1 if minimum else 1
    y, dx = sweep(bpref.reduce_max(axis=-1, minimum=minimum), sign * np.array([[2.0, 1, 2], [0, 0, 0], [1, 3, 2]]), 6.0)
    np.testing.assert_array_equal(y, sign * np.array([2, 0, 3]))
    np.testing.assert_array_equal(dx, [[3, 0, 3], [2, 2, 2], [0, 6, 0]])


def test_nan_is_not_swallowed_by_a_maximum():
    y, dx = sweep(bpref.reduce_max(axis=-1), [[1.0, np.nan], [1.0, 2.0]])
    assert np.isnan(y[0])
    assert np.isnan(dx[0]).all()
    np.testing.assert_array_equal(dx[1], [0, 1])


def test_products_with_no_zero_one_and_several():
    y, dx = sweep(bpref.reduce_prod(axis=-1), [[2.0, 3, 5], [2, 0, 5], [0, 0, 5], [0, 0, 0]])
    np.testing.assert_array_equal(y, [30, 0, 0, 0])
    np.testing.assert_array_equal(dx, [[15, 10, 6], [0, 10, 0], [0, 0, 0], [0, 0, 0]])


def test_the_product_of_the_others_need_not_fit_with_the_last():
    """In float32, 1e-30 * 1e-30 is 0, and its derivative is not."""
    y, dx = sweep(bpref.reduce_prod(), [1e-30, 1e-30])
    assert y == 0
    np.testing.assert_array_equal(dx, np.float32(1e-30))


def test_a_fan_in_by_hand():
    a, b, c = (jnp.asarray(v) for v in ([2.0, 0], [3.0, 0], [5.0, 7]))
    for combined, y, slopes in (
        ("sum", [10, 7], ([1, 1], [1, 1], [1, 1])),
        ("product", [30, 0], ([15, 0], [10, 0], [6, 0])),
        ("concatenation", [2, 0, 3, 0, 5, 7], ([1, 2], [3, 4], [5, 6])),
    ):
        layer = bpref.fan_in(combined)
        came, cache = layer.forward((), {"b": b, "c": c, "a": a})
        np.testing.assert_array_equal(came, y)
        dy = jnp.arange(1.0, 7.0) if combined == "concatenation" else jnp.ones(2)
        dx = layer.backward((), cache, dy)[1]
        for name, slope in zip("abc", slopes, strict=True):
            np.testing.assert_array_equal(dx[name], slope)
        assert sum(v.size for v in jax.tree.leaves(cache)) == (6 if combined == "product" else 0)


def test_empty_sums_products_norms_and_logsumexps():
    nothing = np.ones((3, 0))
    for layer, value in (
        (bpref.reduce_sum(axis=1), 0),
        (bpref.reduce_prod(axis=1), 1),
        (bpref.vector_norm(2, axis=1), 0),
        (bpref.vector_norm(math.inf, axis=1), 0),
        (bpref.logsumexp(axis=1), -np.inf),
    ):
        y, dx = sweep(layer, nothing)
        np.testing.assert_array_equal(y, [value] * 3)
        assert dx.shape == (3, 0)


def test_variance_by_hand():
    """(1, 3, 5): mean 3, squares 4 + 0 + 4."""
    for hyper, value, slope in (
        ({}, 8 / 3, 2 / 3),
        ({"ddof": 1}, 4, 1),
        ({"ddof": 1, "root": True}, 2, 1 / 4),
    ):
        y, dx = sweep(bpref.variance(**hyper), [1.0, 3, 5])
        assert y == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(dx, [-2 * slope, 0, 2 * slope], rtol=1e-6)


def test_equal_values_have_a_deviation_of_0_and_the_subgradient_0():
    y, dx = sweep(bpref.variance(root=True), [2.0, 2.0])
    assert y == 0
    np.testing.assert_array_equal(dx, 0)


@pytest.mark.parametrize("value", [0.1, 1000.1, -1e-5])
def test_equal_values_whose_mean_rounds_have_a_deviation_of_0_too(value):
    y, dx = sweep(bpref.variance(root=True), [value] * 7)
    assert y == 0
    np.testing.assert_array_equal(dx, 0)


def test_a_variance_far_from_zero_does_not_cancel():
    y, _ = sweep(bpref.variance(), [1e6, 1e6 + 1, 1e6 + 2])
    assert y == pytest.approx(2 / 3, rel=1e-6)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
def test_norms_at_zero_have_the_subgradient_0(p):
    y, dx = sweep(bpref.vector_norm(p), np.zeros(3))
    assert y == 0
    np.testing.assert_array_equal(dx, 0)


def test_norms_by_hand():
    for p, x, value, expected in (
        (1, [3.0, -4, 0], 7, [1, -1, 0]),
        (2, [3.0, -4, 0], 5, [0.6, -0.8, 0]),
        (math.inf, [4.0, -4, 1], 4, [0.5, -0.5, 0]),
        (3, [3.0, -4, 5], 6, [9 / 36, -16 / 36, 25 / 36]),
    ):
        y, dx = sweep(bpref.vector_norm(p), x)
        assert y == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(dx, expected, rtol=1e-5)


def test_powers_of_large_and_of_small_values_stay_in_range():
    for size in (1e30, 1e-30):
        y, dx = sweep(bpref.vector_norm(3), size * np.array([3.0, 4, 5]))
        assert y == pytest.approx(6 * size, rel=1e-5)
        np.testing.assert_allclose(dx, [9 / 36, 16 / 36, 25 / 36], rtol=1e-5)


def test_logsumexp_of_large_values_and_of_minus_infinity():
    y, dx = sweep(bpref.logsumexp(axis=-1), [[1e4, 1e4], [-np.inf, 2], [-np.inf, -np.inf], [-1e30, 1e30]])
    np.testing.assert_allclose(y, [1e4 + math.log(2), 2, -np.inf, 1e30], rtol=1e-6)
    np.testing.assert_array_equal(dx, [[0.5, 0.5], [0, 1], [0, 0], [0, 1]])


def test_logsumexp_of_infinity_is_infinity():
    y, dx = sweep(bpref.logsumexp(), [np.inf, 1.0])
    assert y == np.inf
    assert np.isnan(dx[0])
    assert dx[1] == 0


def test_the_value_at_the_index_has_all_of_the_gradient():
    x = jnp.array([[1.0, 3.0, 3.0], [math.nan, 0.0, math.nan]])
    layer = bpref.reduce_max(1, with_indices=True)
    (y, k), cache = layer.forward((), x)
    np.testing.assert_array_equal(y, [3, math.nan])
    assert k.tolist() == [1, 0]
    assert layer.backward((), cache, (jnp.array([5.0, 7.0]), None))[1].tolist() == [[0, 5, 0], [7, 0, 0]]
    (y, k), cache = bpref.reduce_max(minimum=True, with_indices=True).forward((), x[:1].T)
    assert (float(y), int(k)) == (1, 0)


def test_norms_below_1_at_zeros():
    """p = 1/2 of (4, 0, 1): (2 + 1)^2 = 9, slopes (|x| / y)^(-1/2) = 3/2, 3; of p < 0 a zero makes all of it 0."""
    x = jnp.array([4.0, 0.0, -1.0])
    for p, value, slope in (
        (0.5, 9, [1.5, 0, -3]),
        (0, 2, [0, 0, 0]),
        (-1, 0, [0, 0, 0]),
        (-math.inf, 0, [0, 0, 0]),
    ):
        layer = bpref.vector_norm(p)
        y, cache = layer.forward((), x)
        np.testing.assert_allclose(y, value, rtol=1e-6)
        np.testing.assert_allclose(layer.backward((), cache, jnp.float32(1))[1], slope, rtol=1e-6)
    y, cache = bpref.vector_norm(-1).forward((), jnp.array([2.0, -2.0]))
    assert float(y) == 1
    np.testing.assert_allclose(bpref.vector_norm(-1).backward((), cache, jnp.float32(1))[1], [0.25, -0.25])
