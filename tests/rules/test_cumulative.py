"""Cumulative sums, products and log-sum-exps: numbers worked by hand, and calls that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules import RULES
from tests.rules.sweeping import backpropagate

RULES_OF_KIND = ("cumulative_sum", "cumulative_product", "cumulative_logsumexp")


@pytest.mark.parametrize("name", RULES_OF_KIND)
@pytest.mark.parametrize(
    ("x", "axis", "kind", "message"),
    [
        (jnp.ones((2, 3)), 2, ValueError, "x has shape (2, 3), which has no axis 2"),
        (jnp.ones(()), 1, ValueError, "x has shape (), which has no axis 1"),
        (jnp.ones(3, jnp.int32), 0, TypeError, "x has dtype int32, expected a floating-point dtype such as float32"),
    ],
)
def test_wrong_calls_are_refused(name, x, axis, kind, message):
    with pytest.raises(kind) as refused:
        getattr(bpref, name)(axis=axis).forward((), x)
    assert str(refused.value) == f"{name}: {message}"


def sweep(layer, x, dy):
    y, _, dx = backpropagate(layer, (), jnp.array(x, jnp.float32), jnp.array(dy, jnp.float32))
    return y.tolist(), dx.tolist()


@pytest.mark.parametrize(
    ("hyper", "y", "dx"),
    [
        ({}, [1, 3, 6], [111, 110, 100]),
        ({"exclusive": True}, [0, 1, 3], [110, 100, 0]),
        ({"reverse": True}, [6, 5, 3], [1, 11, 111]),
        ({"reverse": True, "exclusive": True}, [5, 3, 0], [0, 1, 11]),
    ],
)
def test_sums_from_both_ends(hyper, y, dx):
    assert sweep(bpref.cumulative_sum(**hyper), [1, 2, 3], [1, 10, 100]) == (y, dx)


def test_an_exclusive_sum_ends_before_an_infinity():
    assert sweep(bpref.cumulative_sum(exclusive=True), [1, np.inf], [1, 1])[0] == [0, 1]


@pytest.mark.parametrize(
    ("x", "y", "dx"),
    [
        ([2, 0, 3], [2, 0, 0], [1, 2 * (1 + 3), 0]),
        ([2, 0, 3, 0], [2, 0, 0, 0], [1, 2 * (1 + 3), 0, 0]),
        ([0, 0, 5], [0, 0, 0], [1, 0, 0]),
        ([0, 4, 5], [0, 0, 0], [1 + 4 + 20, 0, 0]),
    ],
)
def test_products_with_zeros_have_exact_gradients(x, y, dx):
    assert sweep(bpref.cumulative_product(), x, np.ones(len(x))) == (y, dx)


def test_a_product_of_huge_and_tiny_factors_is_not_divided():
    x = [1e30, 1e-30, 1e30, 1e-30]
    _, dx = sweep(bpref.cumulative_product(), x, [0, 0, 0, 1])
    np.testing.assert_allclose(dx, [1e-30, 1e30, 1e-30, 1e30], rtol=1e-5)


def test_logsumexp_of_any_size_and_of_nothing():
    """Terms of zero have no gradient, wherever they stand; log(1 + 1) is log 2 at 1000 as at 0."""
    y, dx = sweep(bpref.cumulative_logsumexp(), [-np.inf, 1000, 1000, -np.inf], [1, 1, 1, 1])
    np.testing.assert_allclose(y, [-np.inf, 1000, 1000 + np.log(2), 1000 + np.log(2)], rtol=1e-7)
    np.testing.assert_allclose(dx, [0, 2, 1, 0], rtol=1e-4)


def lowered(layer, platform):
    """The forward and backward of 64 steps, as the program for a platform."""

    def both(x):
        y, cache = layer.forward((), x)
        return layer.backward((), cache, y)[1]

    return jax.jit(both).trace(jnp.ones((3, 64))).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", RULES_OF_KIND)
def test_only_a_cpu_takes_one_step_after_the_other(name):
    layer = getattr(bpref, name)()
    assert lowered(layer, "cpu").count("stablehlo.while") == 2
    assert "stablehlo.while" not in lowered(layer, "cuda")


@pytest.fixture
def elsewhere(monkeypatch):
    """What machines other than a CPU run, on this one."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", RULES_OF_KIND)
def test_joined_stretches_are_the_same_and_can_be_differentiated_again(elsewhere, name, reverse):
    assert_derivatives_of_reference(name, {"axis": 1, "reverse": reverse})


@pytest.mark.parametrize("reverse", [False, True])
def test_joined_stretches_of_an_exclusive_sum_are_the_same(elsewhere, reverse):
    assert_derivatives_of_reference("cumulative_sum", {"axis": 1, "reverse": reverse, "exclusive": True})


def assert_derivatives_of_reference(name, hyper):
    """y, dx, and the derivative of dx, of a batch under jit and vmap, beside those of the rule's reference."""
    layer, reference = getattr(bpref, name)(**hyper), RULES[name].reference
    rng = np.random.default_rng(3)
    x, dy, ddx = rng.normal(size=(3, 2, 7, 3))
    x[:, 2:5:2] = 0.0

    def ours(x, dy):
        return bpref.backpropagate(layer, (), x, dy)[::2]

    def theirs(x, dy):
        y, transpose = jax.vjp(lambda x: reference((), x, **hyper), x)
        return y, transpose(dy)[0]

    with jax.enable_x64(True):
        seen = []
        for both in (jax.jit(jax.vmap(lambda x, dy: ours(x[None], dy[None]))), theirs):
            values, transpose = jax.vjp(both, x, dy)
            again = transpose(jax.tree.map(lambda v: jnp.asarray(ddx).reshape(v.shape), values))
            seen.append([np.asarray(v).reshape(x.shape) for v in (*values, *again)])
    for came, expected in zip(*seen, strict=True):
        np.testing.assert_allclose(came, expected, rtol=1e-12, atol=1e-12)


def test_joined_products_with_zeros_have_exact_gradients(elsewhere):
    assert sweep(bpref.cumulative_product(), [2, 0, 3, 0], np.ones(4)) == ([2, 0, 0, 0], [1, 8, 0, 0])


def test_joined_stretches_of_nothing_have_no_gradient(elsewhere):
    y, dx = sweep(bpref.cumulative_logsumexp(), [-np.inf, -np.inf, 1000, 1000, -np.inf], [1, 1, 1, 1, 1])
    np.testing.assert_allclose(y, [-np.inf, -np.inf, 1000, 1000 + np.log(2), 1000 + np.log(2)], rtol=1e-7)
    np.testing.assert_allclose(dx, [0, 0, 2, 1, 0], rtol=1e-4)


def test_a_joined_exclusive_sum_ends_before_an_infinity(elsewhere):
    assert sweep(bpref.cumulative_sum(exclusive=True), [1, np.inf], [1, 1])[0] == [0, 1]


def off(came, expected):
    """The relative error in the norm."""
    return np.linalg.norm(np.asarray(came, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("hyper", [{}, {"reverse": True, "exclusive": True}])
def test_a_long_sum_has_one_roundings_error(hyper):
    """1.3e-6 when each addition was rounded; a tree of partial sums, autodiff's, has 6e-8."""
    x = abs(np.random.default_rng(0).normal(size=(2, 16384))).astype(np.float32)
    y, _, dx = backpropagate(bpref.cumulative_sum(**hyper), (), jnp.asarray(x), jnp.asarray(x))
    forwards, backwards = np.cumsum(x.astype(float), 1), np.cumsum(x[:, ::-1].astype(float), 1)[:, ::-1]
    if hyper:
        forwards, backwards = backwards - x, forwards - x
    assert off(y, forwards) < 4e-8
    assert off(dx, backwards) < 4e-8


def test_a_sum_is_infinite_behind_an_infinity():
    x = jnp.asarray([1.0, jnp.inf, 2.0, -jnp.inf])
    y, _ = bpref.cumulative_sum().forward((), x)
    np.testing.assert_array_equal(y, [1, np.inf, np.inf, np.nan])
