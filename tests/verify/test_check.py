"""check: it accuses what is wrong, names where and why, and accuses nothing that is right."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.verify.examining.refusals import CannotCheck
from tests.conftest import SEED
from tests.verify.written import RNG, G, X, kinds, rms_norm, rule, verdicts


def test_a_report_says_where_and_why():
    report = bpref.check(rms_norm(2.0), X, G, key=1729)
    assert not report.ok
    assert verdicts(report) == {"x": "wrong", "g": "ok"}
    assert kinds(report) == {("x", "factor")}
    lines = str(report).splitlines()
    assert lines[0] == "primal   float64 oracle: its own primal, differentiated   key 1729"
    assert lines[1] == "  x   WRONG   2.000 x the reference, every element: a constant factor 2"
    assert lines[2].startswith("  g   ok      ")
    assert " in float64; float32 " in lines[2]


def test_a_report_is_json_and_raises():
    wrong, right = bpref.check(rms_norm(2.0), X, G, key=1), bpref.check(rms_norm(), X, G, key=1)
    plain = json.loads(wrong.to_json())
    assert (plain["verdict"], plain["ok"], plain["key"]) == ("wrong", False, 1)
    assert [v["where"] for v in plain["verdicts"]] == ["x", "g"]
    with pytest.raises(AssertionError, match=r"2\.000 x the reference"):
        wrong.raise_if_wrong()
    assert right.raise_if_wrong() is right
    with pytest.raises(AssertionError, match=r"2\.000 x the reference"):
        bpref.assert_gradient(rms_norm(2.0), X, G)
    bpref.assert_gradient(rms_norm(), X, G)


def test_the_same_key_gives_the_same_report_and_a_new_one_is_drawn_and_named():
    f = rms_norm()
    assert bpref.check(f, X, G, key=3) == bpref.check(f, X, G, key=3)
    assert bpref.check(f, X, G).key != bpref.check(f, X, G).key


def test_x64_never_leaks():
    bpref.check(rms_norm(), X, G)
    with pytest.raises(ValueError, match="raised ZeroDivisionError"):
        bpref.check(jnp.tanh, X, backward=lambda args, dy: 1 / 0)
    assert jnp.ones(1).dtype == jnp.float32


def test_a_custom_vjp_with_nondiff_argnums_and_static_arguments():
    @partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def power(x, n, name):
        return x**n

    power.defvjp(lambda x, n, name: (x**n, x), lambda n, name, x, dy: (dy * n * x ** (n - 1),))
    assert verdicts(bpref.check(power, jnp.abs(X), 3, "cube")) == {"x": "ok"}
    power.defvjp(lambda x, n, name: (x**n, x), lambda n, name, x, dy: (dy * x ** (n - 1),))
    report = bpref.check(power, jnp.abs(X), 3, "cube")
    assert kinds(report) == {("x", "factor")}
    assert "0.3333 x the reference" in str(report)


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_a_custom_jvp_inside_jit_inside_scan(slope):
    relu = jax.custom_jvp(lambda x: jnp.maximum(x, 0))
    relu.defjvp(lambda primals, tangents: (relu(*primals), jnp.where(primals[0] > 0, slope * tangents[0], 0)))

    def f(x, w):
        def step(c, _):
            return jax.jit(relu)(c @ w), None

        return jax.lax.scan(jax.checkpoint(step), x, None, length=2)[0]

    w = np.random.default_rng(SEED).normal(size=(7, 7)).astype(np.float32)
    assert verdicts(bpref.check(f, X, w)) == dict.fromkeys("xw", "ok" if slope == 1 else "wrong")


def test_a_layer_is_named_by_its_params():
    layer = bpref.serial(bpref.linear(4), bpref.tanh())
    params = layer.init(jax.random.key(SEED), X)
    assert verdicts(bpref.check(layer, params, X)) == {"params[0].W": "ok", "params[0].b": "ok", "x": "ok"}
    linear = bpref.linear(4)
    halved = linear._replace(
        backward=lambda p, c, dy: (linear.backward(p, c, dy)[0]._replace(b=dy.mean(0)), linear.backward(p, c, dy)[1])
    )
    report = bpref.check(halved, params[0], X)
    assert kinds(report) == {("params.b", "mean_for_sum")}


def test_a_reference_is_held_against_the_output_too():
    f = rule(lambda x: 3 * jnp.sin(x), lambda args, dy: (3 * dy * jnp.cos(args[0]),))
    report = bpref.check(f, X, reference=jnp.sin)
    assert verdicts(report) == {"y": "wrong", "x": "wrong"}
    assert bpref.check(f, X).ok


def test_specifications_are_filled_and_retried_where_the_function_is_not_defined():
    f = rule(jnp.log, lambda args, dy: (dy / args[0],))
    assert bpref.check(f, jax.ShapeDtypeStruct((4, 3), jnp.float32), key=1).ok
    chol = lambda a: jnp.linalg.cholesky(a, symmetrize_input=True)  # noqa: E731
    f = rule(chol, lambda args, dy: (jnp.zeros_like(args[0]),))
    report = bpref.check(f, jax.ShapeDtypeStruct((3, 3), jnp.float32), key=1)
    assert kinds(report) == {("a", "zero")}


def test_an_argument_called_y_and_integers_among_the_arguments():
    f = rule(
        lambda x, y, ids: x[ids] * y,
        lambda args, dy: (jnp.zeros_like(args[0]).at[args[2]].add(dy * args[1]), dy * args[0][args[2]], None),
    )
    ids = np.array([1, 3, 1])
    assert verdicts(bpref.check(f, X, X[:3], ids)) == {"x": "ok", "y": "ok"}


def test_what_comes_back_in_the_wrong_form():
    f = lambda x, w: jnp.tanh(x) * w  # noqa: E731
    both = lambda args, dy: (dy * args[1] * (1 - jnp.tanh(args[0]) ** 2), dy * jnp.tanh(args[0]))  # noqa: E731
    check = partial(bpref.check, f, X, X)
    assert check(backward=both).ok
    said = {
        "returned 1 cotangent; expected a tuple of 2": lambda a, dy: both(a, dy)[:1],
        "returned a generator": lambda a, dy: (v for v in both(a, dy)),
        "returned float32[5, 7], not a tuple": lambda a, dy: both(a, dy)[0],
        "returned None for it, which stands for zero": lambda a, dy: (both(a, dy)[0], None),
        "its cotangent is float16, expected float32": lambda a, dy: (
            both(a, dy)[0],
            both(a, dy)[1].astype(jnp.float16),
        ),
    }
    for message, backward in said.items():
        report = check(backward=backward)
        assert verdicts(report)["w"] == "wrong"
        assert message in str(report)
        assert {k for w, k in kinds(report) if w == "w"} <= {"structure", "dtype"}


def test_a_forgotten_sum_and_a_transposed_matrix_by_their_shapes():
    f = lambda x, W, b: x @ W.T + b[None, :]  # noqa: E731
    W, b = RNG.normal(size=(4, 7)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
    report = bpref.check(f, X, W, b, backward=lambda a, dy: (dy @ a[1], a[0].T @ dy, dy))
    assert kinds(report) == {("W", "transposed"), ("b", "missing_sum")}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bpref.check(jnp.sin, X, key="a"), "check: key is a str, expected a whole number"),
        (
            lambda: bpref.check(bpref.linear(3, name="fc"), X),
            "check: linear 'fc' is a Layer, which takes 2 arguments, params and x (params = ",
        ),
        (lambda: bpref.check("f"), "check: fun is a str, expected a function or a Layer"),
        (lambda: bpref.check(jnp.sin, X, backward=3), "check: backward is 3, expected a function"),
        (lambda: bpref.check(jnp.sin, X), "sin: nothing in it is derived by hand"),
        (lambda: bpref.check(jnp.sin, 1.0, backward=lambda a, d: (d,)), "sin: no argument is an array"),
        (lambda: bpref.check(jnp.sin, np.arange(3), backward=lambda a, d: (d,)), "sin: no argument is an array"),
        (lambda: bpref.check(jnp.sin, X, X, backward=lambda a, d: (d,)), "sin raised TypeError: sin() takes 1"),
        (lambda: bpref.check(jnp.sin, X, backward=lambda a, d: (d[9, 9, 9],)), "the backward of sin raised "),
        (lambda: bpref.check(jnp.sin, X, reference=lambda x: 1 / 0), "the reference raised ZeroDivisionError"),
        (
            lambda: bpref.check(lambda x: "a", X, backward=lambda a, d: (d,)),
            "<lambda> returned a str, expected an array",
        ),
        (lambda: bpref.check(lambda x: None, X, backward=lambda a, d: (d,)), "<lambda>: it returns no floating-point"),
        (
            lambda: bpref.check(lambda x: jax.nn.relu(x) if x.sum() > 0 else x, X),
            "<lambda> works on arrays but cannot be traced by JAX",
        ),
    ],
)
def test_a_call_that_cannot_be_checked_says_who_is_at_fault(call, message):
    with pytest.raises((TypeError, ValueError)) as refused:
        call()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_empty_arrays_and_complex_functions():
    square = lambda z: z * z  # noqa: E731
    right, wrong = (lambda a, dy: (2 * a[0] * dy,)), (lambda a, dy: (2 * jnp.conj(a[0]) * dy,))
    assert bpref.check(square, np.zeros((0, 3), np.float32), backward=right).ok
    z = (X + 1j * X[::-1]).astype(np.complex64)
    assert bpref.check(square, z, backward=right).ok
    assert not bpref.check(square, z, backward=wrong).ok


def test_integer_outputs_and_typed_random_keys():
    def largest(x):
        return x.max(-1), jnp.argmax(x, -1), x > 0

    def backward(args, dy):
        return (jax.nn.one_hot(jnp.argmax(args[0], -1), 7, dtype=dy[0].dtype) * dy[0][:, None],)

    assert bpref.check(rule(largest, backward), X, key=1).ok
    noisy = rule(
        lambda seed, x: x * jax.random.normal(seed, x.shape, x.dtype),
        lambda args, dy: (None, dy * jax.random.normal(args[0], dy.shape, dy.dtype)),
    )
    assert verdicts(bpref.check(noisy, jax.random.key(SEED), X, key=1)) == {"x": "ok"}


def test_the_other_order_of_bytes_is_read_and_what_jax_has_not_is_named():
    f = rule(jnp.sin, lambda args, dy: (dy * jnp.cos(args[0]),))
    assert bpref.check(f, X.astype(X.dtype.newbyteorder()), key=1).ok
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(TypeError, match="which JAX has not; expected one such as float64"):
            bpref.check(f, X.astype(np.longdouble))


def test_of_an_error_that_announces_its_reason_the_reason_is_said():
    f = rule(jnp.sin, lambda args, dy: (dy * jnp.cos(args[0]),))
    with pytest.raises(CannotCheck, match="Binding failed with the error: too many positional arguments"):
        bpref.check(f, X, backward=f)
