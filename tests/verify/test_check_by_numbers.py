"""check of functions that JAX cannot differentiate: by numbers in place of an oracle."""

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from tests.verify.written import X, kinds, rule, verdicts


def host(x, w):
    return np.tanh(x @ w)


def host_backward(args, dy):
    x, w = args
    d = dy * (1 - np.tanh(x @ w) ** 2)
    return d @ w.T, x.T @ d


def test_a_numpy_function_is_checked_by_numbers():
    w = np.random.default_rng(3).normal(size=(7, 3)) / 4  # tanh is not saturated, where 1 - y^2 is imprecise
    right = bpref.check(host, X, w, backward=host_backward, key=1)
    assert verdicts(right) == {"x": "ok", "w": "ok"}
    assert right.oracle.startswith("numerical oracle")
    wrong = bpref.check(
        host, X, w, backward=lambda a, dy: (host_backward(a, dy)[0] * 2, host_backward(a, dy)[1]), key=1
    )
    assert kinds(wrong) == {("x", "factor")}


def test_a_host_function_in_float32_and_one_that_is_too_noisy():
    single = lambda x: np.sin(x.astype(np.float32))  # noqa: E731
    assert bpref.check(single, X, backward=lambda a, dy: (np.cos(a[0]) * dy,), key=1).ok
    assert bpref.check(single, X, backward=lambda a, dy: (1.05 * np.cos(a[0]) * dy,), key=1).verdict == "wrong"
    noise = lambda x: np.asarray(x) + 0.1 * np.sin(1e9 * np.asarray(x))  # noqa: E731
    assert bpref.check(noise, X, backward=lambda a, dy: (dy,), key=1).verdict != "ok"


def test_a_rule_over_a_callback_is_not_its_own_oracle():
    def sine(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    small = X[:2, :3]
    assert bpref.check(rule(sine, lambda args, dy: (dy * jnp.cos(args[0]),)), small, key=1).ok
    report = bpref.check(rule(sine, lambda args, dy: (-dy * jnp.cos(args[0]),)), small, key=1)
    assert kinds(report) == {("x", "sign")}
    assert "kernel or callback" in report.notes[0]


def test_a_loop_that_jax_cannot_reverse_is_checked_by_numbers():
    def cube(x):
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, jnp.ones_like(x)))[1]

    report = bpref.check(rule(cube, lambda args, dy: (3 * args[0] ** 2 * dy,)), X[:2, :2], key=1)
    assert report.ok
    assert "cannot be differentiated" in report.notes[0]


def test_a_host_function_may_write_into_its_arguments():
    sine = lambda x: np.sin(x, out=x)  # noqa: E731
    assert bpref.check(sine, X, backward=lambda args, dy: (np.cos(args[0]) * dy,), key=1).ok
