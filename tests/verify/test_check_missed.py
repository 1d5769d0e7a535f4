"""check of what the usual checkers miss: seeds of their own, few elements, NaN, cotangents of another size."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import bpref
from tests.conftest import SEED
from tests.verify.written import X, kinds, rms_norm, rule, verdicts


def test_inputs_made_with_the_checkers_own_seed():
    state = np.random.RandomState(0)
    x, g = state.randn(5, 7).astype(np.float32), state.randn(7).astype(np.float32)
    for key in (0, 1):
        x2 = np.random.default_rng(key).normal(size=(5, 7)).astype(np.float32)
        assert kinds(bpref.check(rms_norm(-1.0), x, g, key=key)) == {("x", "sign")}
        assert kinds(bpref.check(rms_norm(0.0), x2, g, key=key)) == {("x", "zero")}


def test_a_derivative_slightly_wrong_in_one_of_many_elements():
    x = np.random.default_rng(SEED).normal(size=100_000).astype(np.float32)
    f = rule(jnp.sin, lambda args, dy: ((dy * jnp.cos(args[0])).at[1234].multiply(1.0001),))
    report = bpref.check(f, x)
    assert kinds(report) == {("x", "sparse")}
    assert "1234" in str(report)


def test_nan_is_never_equal():
    f = rule(jnp.sin, lambda args, dy: ((dy * jnp.cos(args[0])).at[0, 0].set(jnp.nan),))
    assert kinds(bpref.check(f, X)) == {("x", "nonfinite")}


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e3])
def test_a_clip_is_found_wherever_it_is_set_and_may_be_declared(limit):
    f = rule(jnp.sin, lambda args, dy: (jnp.clip(dy, -limit, limit) * jnp.cos(args[0]),))
    assert kinds(bpref.check(f, X)) == {("x", "clipped")}
    if limit >= 1:
        assert bpref.check(f, X, linear=False).ok


def test_a_backward_that_is_not_linear():
    f = rule(jnp.sin, lambda args, dy: (jnp.abs(dy) * jnp.cos(args[0]),))
    report = bpref.check(f, X, key=1)
    assert kinds(report) == {("x", "nonlinear")}
    assert report.findings[0].detail == "not linear in dy: b(2u - 3v) is 1.9e+00 off 2b(u) - 3b(v)"


@pytest.mark.parametrize(
    ("like", "said"),
    [
        (lambda dy: jnp.all(dy < 0), "wrong where the cotangent is negative everywhere, and right for others"),
        (lambda dy: jnp.all(dy > 0), "wrong where the cotangent is positive everywhere, and right for others"),
        (lambda dy: jnp.sum(dy != 0) == 1, "not linear in dy: b(2u - 3v) is "),
        (lambda dy: jnp.any(jnp.all(dy == 0, axis=1)) & jnp.any(dy != 0), "not linear in dy: b(2u - 3v) is "),
    ],
)
def test_what_is_wrong_for_one_sort_of_cotangent_alone(like, said):
    f = rule(jnp.sin, lambda args, dy: (jnp.where(like(dy), 2, 1) * dy * jnp.cos(args[0]),))
    report = bpref.check(f, X, key=1)
    assert kinds(report) == {("x", "nonlinear")}
    assert report.findings[0].detail.startswith(said)


def test_tangents_that_do_not_vanish():
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), tangents[0] * jnp.cos(primals[0]) + 0.1))
    report = bpref.check(lambda x: 2 * sine(x), X, key=1)
    assert kinds(report) == {("y", "nonlinear")}
    assert report.findings[0].detail.endswith("where no argument moves its tangent is up to 0.2")


def test_a_backward_that_counts_its_calls():
    calls = itertools.count()

    def backward(args, dy):
        return (dy * np.cos(args[0]) * (1 if next(calls) < 20 else 2),)

    assert verdicts(bpref.check(lambda x: np.sin(x), X, backward=backward, key=1)) == {"x": "cannot tell"}


def test_a_function_with_two_answers_is_no_function():
    f = lambda x: x * np.float32(np.random.rand())  # noqa: E731
    report = bpref.check(f, X, backward=lambda args, dy: (dy,))
    assert verdicts(report)["x"] == "cannot tell"
    assert "called twice with the same arguments it gives two answers" in str(report)


@pytest.mark.parametrize("call", [partial(jax.pure_callback, vmap_method="sequential"), io_callback])
def test_a_backward_whose_callback_has_two_answers_cannot_be_told(call):
    calls = itertools.count()

    def on_host(x, dy):
        return (np.cos(x) * dy * (1 + next(calls) % 2)).astype(dy.dtype)

    f = rule(jnp.sin, lambda args, dy: (call(on_host, jax.ShapeDtypeStruct(dy.shape, dy.dtype), args[0], dy),))
    assert verdicts(bpref.check(f, X, key=1)) == {"x": "cannot tell"}


def test_a_function_that_answers_otherwise_eagerly_or_under_vmap():
    def shy(x):
        return jnp.sin(x) if isinstance(x, jax.core.Tracer) else 2 * jnp.sin(x)

    backward = lambda args, dy: (dy * jnp.cos(args[0]),)  # noqa: E731
    assert bpref.check(shy, X, backward=backward).ok
    report = bpref.check(shy, X, backward=backward, eager=True)
    assert ("y", "impure") in kinds(report)
    batched = jax.custom_batching.custom_vmap(lambda dy: dy)
    batched.def_vmap(lambda size, in_batched, dy: (2 * dy, in_batched[0]))
    report = bpref.check(jnp.sin, X, backward=lambda args, dy: (batched(dy) * jnp.cos(args[0]),))
    assert not report.ok


@pytest.mark.parametrize("spoilt", ["forward", "backward"])
def test_a_function_that_is_another_under_vmap_over_its_arguments(spoilt):
    def batched(f):
        f = jax.custom_batching.custom_vmap(f)
        f.def_vmap(lambda size, in_batched, x: (2 * x, in_batched[0]))
        return f

    sin, cos = (batched(f) if name == spoilt else f for f, name in ((jnp.sin, "forward"), (jnp.cos, "backward")))
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (sin(x), x), lambda x, dy: (dy * cos(x),))
    report = bpref.check(f, X, key=1)
    assert kinds(report) == {("x" if spoilt == "backward" else "y", "impure")}
    assert "under vmap over its arguments" in report.findings[0].detail
