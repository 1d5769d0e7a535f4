"""Paths: with all open the gradient, with one closed the gradient without that term of the chain rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpref.verify.diagnosis.terms import split_paths


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@jax.custom_vjp
def mean(x):
    return jnp.mean(x, -1, keepdims=True)


mean.defvjp(lambda x: (mean(x), x), lambda x, d: (jnp.zeros_like(x),))


def layer_norm(x):
    centred = x - mean(x)
    rstd = lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-5)
    return centred * rstd


def gradients(program, dy, *inputs, limit=64):
    masked, labels = split_paths(program, limit)
    return jax.jit(lambda masks: jax.vjp(lambda *xs: masked(masks, *xs)[0], *inputs)[1](dy)), masked, labels


def test_layer_norm_has_three_terms():
    x = 2 * jnp.sin(jnp.arange(12.0)).reshape(3, 4)
    dy = jnp.cos(x)
    of, masked, labels = gradients(jax.make_jaxpr(jax.jit(layer_norm))(x), dy, x)
    line = layer_norm.__code__.co_firstlineno
    assert labels == (
        f"the path of `x` into `reduce_sum` (test_terms.py:{mean.__wrapped__.__code__.co_firstlineno + 2})",
        f"the path of `x` into `sub` (test_terms.py:{line + 1})",
        f"the path of the result of `sub` (test_terms.py:{line + 1}) into `square` (test_terms.py:{line + 2})",
        f"the path of the result of `sub` (test_terms.py:{line + 1}) into `mul` (test_terms.py:{line + 3})",
    )
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
    through_variance = -centred * rstd**3 * jnp.mean(dy * centred, -1, keepdims=True)
    direct = dy * rstd
    through_mean = -jnp.mean(direct + through_variance, -1, keepdims=True) * jnp.ones_like(x)

    np.testing.assert_allclose(of(jnp.ones(4))[0], direct + through_variance + through_mean, atol=1e-14)
    np.testing.assert_allclose(of(jnp.array([0.0, 1, 1, 1]))[0], direct + through_variance, atol=1e-14)
    np.testing.assert_allclose(of(jnp.array([1.0, 0, 1, 1]))[0], through_mean, atol=1e-14)
    np.testing.assert_allclose(of(jnp.array([0.0, 1, 0, 1]))[0], direct, atol=1e-14)
    np.testing.assert_allclose(of(jnp.array([0.0, 1, 2, 0]))[0], 2 * through_variance, atol=1e-14)
    np.testing.assert_array_equal(masked(jnp.zeros(4), x)[0], layer_norm(x))


def test_infinities_of_a_mask_change_nothing():
    def attention(q, k):
        scores = jnp.where(jnp.tri(3, dtype=bool), q @ k.T, -jnp.inf)
        e = jnp.exp(scores - scores.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    q = jnp.sin(jnp.arange(12.0)).reshape(3, 4)
    dy = jnp.arange(9.0).reshape(3, 3)
    of, masked, labels = gradients(jax.make_jaxpr(attention)(q, q), dy, q, q)
    np.testing.assert_array_equal(masked(-jnp.ones(len(labels)), q, q)[0], attention(q, q))
    for ours, autodiff in zip(of(jnp.ones(len(labels))), jax.vjp(attention, q, q)[1](dy), strict=True):
        np.testing.assert_allclose(ours, autodiff, atol=1e-15)


def test_what_passes_no_cotangent_is_no_path():
    def fun(x):
        return x * (x > 0).astype(x.dtype) + lax.stop_gradient(x) + jnp.round(x) + x.astype(jnp.int32).astype(x.dtype)

    assert split_paths(jax.make_jaxpr(fun)(jnp.ones(3)))[1] == ()


def test_a_loop_is_one_use_and_the_output_is_one():
    def fun(tree):
        return lax.scan(lambda c, v: (c * v * v, c), tree["b"], tree["a"])[0] + tree["b"], tree["b"]

    labels = split_paths(jax.make_jaxpr(fun)({"a": jnp.ones(3), "b": jnp.float64(1)}))[1]
    assert [label.partition(" (")[0] for label in labels] == [
        "the path of `tree['b']` into `scan`",
        "the path of `tree['b']` into `add`",
        "the path of `tree['b']` into the output",
    ]


def test_the_limit_prefers_what_is_near_the_arguments():
    def powers(x):
        for _ in range(5):
            x = jnp.sin(x) * x
        return x

    x = jnp.float64(0.7)
    of, _, labels = gradients(jax.make_jaxpr(powers)(x), jnp.float64(1), x, limit=5)
    assert len(labels) == 4
    assert [label.split("`")[1] for label in labels] == ["x", "x", "mul", "mul"]
    np.testing.assert_allclose(of(jnp.ones(4))[0], jax.grad(powers)(x), rtol=1e-14)
