"""The numerical oracle: its error bars hold, and are tight where the function is smooth."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpref.verify.numbers.numerical import FIRST_STEP, numerical_cotangents

RNG = np.random.default_rng(7)
X = RNG.normal(size=(60,))
POSITIVE = RNG.uniform(0.01, 3, 60)
W = RNG.normal(size=(60, 5))


def real_only(f):
    """`f`, but refusing complex numbers, so that it is differenced."""

    def g(x):
        if np.iscomplexobj(x):
            raise TypeError("real numbers only")
        return f(x)

    return g


def in_float32(f):
    return lambda x: np.asarray(f(x.astype(np.float32)), np.float32)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def softmax_cotangent(x, dy):
    y = softmax(x)
    return y * (dy - np.sum(y * dy))


SMOOTH = {
    "square": (lambda x: x**2, X, lambda x, dy: 2 * x * dy),
    "exp(100 x)": (lambda x: np.exp(100 * x), X / 3, lambda x, dy: 100 * np.exp(100 * x) * dy),
    "sin(300 x)": (lambda x: np.sin(300 * x), X, lambda x, dy: 300 * np.cos(300 * x) * dy),
    "sin(128 pi x)": (lambda x: np.sin(128 * np.pi * x), X, lambda x, dy: 128 * np.pi * np.cos(128 * np.pi * x) * dy),
    "dense": (lambda x: x @ W, X, lambda x, dy: W @ dy),
    "softmax": (softmax, X, softmax_cotangent),
    "log": (np.log, POSITIVE, lambda x, dy: dy / x),
    "sqrt near 0": (np.sqrt, POSITIVE**4, lambda x, dy: dy / (2 * np.sqrt(x))),
    "cumulative product": (
        np.cumprod,
        1 + X[:12] / 4,
        lambda x, dy: np.array([np.sum((np.cumprod(x) * dy)[i:]) / x[i] for i in range(len(x))]),
    ),
    "1 / (1e-3 + x^2)": (lambda x: 1 / (1e-3 + x**2), X, lambda x, dy: -2 * x * dy / (1e-3 + x**2) ** 2),
    "tanh": (np.tanh, 4 * X, lambda x, dy: dy / np.cosh(x) ** 2),
}


def judged(f, x, cotangent, dtype=np.float64):
    """Errors in units of the bar, and bars relative to the values, of all elements, for two cotangents."""
    rng = np.random.default_rng(0)  # its own, whatever test of the module was run before
    dys = [rng.normal(size=np.shape(f(x))) for _ in range(2)]
    errors, relative = [], []
    for found, dy in zip(numerical_cotangents(f, (x.astype(dtype),), dys), dys, strict=True):
        truth = cotangent(x.astype(dtype).astype(np.float64), dy)
        (value,), (bar,) = found.cotangents, found.bars
        errors.append(np.abs(value - truth) / bar)
        relative.append(bar / np.abs(truth))
        for p in found.projections[0]:
            assert abs(p.value - np.sum(truth * p.direction)) <= 2 * p.bar
    return np.concatenate(errors), np.concatenate(relative)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("variant", ["complex step", "differences", "float32 alone"])
def test_the_bars_hold_and_are_tight(name, variant):
    f, x, cotangent = SMOOTH[name]
    if variant == "float32 alone":
        errors, relative = judged(in_float32(f), x, cotangent, np.float32)
    else:
        errors, relative = judged(f if variant == "complex step" else real_only(f), x, cotangent)
    assert np.mean(errors <= 2) >= 0.995
    assert np.median(relative) <= (1e-3 if variant == "float32 alone" else 1e-11)


@pytest.mark.parametrize("turns", [512 * 30.003, 1024 * 7.001, 256 * 5.01])
def test_steps_that_are_nearly_whole_periods_are_taken_for_no_slope(turns):
    """All of the first steps may be, since they halve; the function then looks as if it hardly changed."""
    rate = 2 * math.pi * turns / FIRST_STEP
    value, bar = only(numerical_cotangents(real_only(lambda x: np.sin(rate * x)), (np.ones(1),), [np.ones(1)]))
    assert abs(value - rate * math.cos(rate)) <= 2 * bar
    assert bar <= 1e-6 * rate


def only(found):
    """Value and bar, where there is one dy and one argument."""
    ((value,), (bar,), *_) = found[0]
    return value, bar


def test_the_complex_step_is_exact_and_saves_calls():
    values = {}
    for name, f in (("complex", np.exp), ("real", real_only(np.exp))):
        calls = []
        value, bar = only(numerical_cotangents(lambda x, f=f, c=calls: (c.append(0), f(x))[1], (X,), [np.ones(60)]))
        values[name] = (value, bar, len(calls))
    value, bar, calls = values["complex"]
    assert np.max(np.abs(value / np.exp(X) - 1)) <= 1e-15
    assert np.max(bar / value) <= 3e-14
    assert calls < values["real"][2] / 2


@pytest.mark.parametrize(
    ("f", "derivative"),
    [
        (lambda x: x * np.abs(x), lambda x: 2 * np.abs(x)),
        (lambda x: np.abs(x) ** 3, lambda x: 3 * x * np.abs(x)),
        (lambda x: np.real(x) ** 2 + 0 * x, lambda x: 2 * x),
        (lambda x: x * np.conj(x), lambda x: 2 * x),
        (lambda x: np.where(np.arange(60) == 7, np.real(x) + 0j, x) ** 2, lambda x: 2 * x),
    ],
    ids=["x |x|", "|x|^3", "real part", "conjugate", "one element of 60"],
)
def test_a_function_that_means_something_else_by_complex_numbers_is_differenced(f, derivative):
    value, bar = only(numerical_cotangents(f, (X,), [np.ones(60)]))
    assert np.all(np.abs(value - derivative(X)) <= 2 * bar)
    assert np.median(bar) <= 1e-9


@pytest.mark.parametrize("complex_too", [True, False])
def test_a_kink_raises_the_bar(complex_too):
    def relu(x):
        return np.maximum(x, 0) if complex_too else np.maximum(np.real(x), 0).astype(np.float64)

    x = np.array([0.0, 1.0, -1.0, 1e-12])
    value, bar = only(numerical_cotangents(relu, (x,), [np.ones(4)]))
    assert value[1:3].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert np.all(bar[1:3] <= 1e-4)
    assert bar[0] >= 0.5
    assert abs(value[3] - 1) <= 2 * bar[3]


def test_a_kink_nearby_is_stepped_over_to_neither_side():
    distances = 10.0 ** np.arange(-9, 1)
    value, bar = only(numerical_cotangents(real_only(np.abs), (distances,), [np.ones(10)]))
    assert np.all(np.abs(value - 1) <= 2 * bar)
    assert np.all(bar[3:] <= 1e-5)


def test_noise_raises_the_bar():
    rng = np.random.default_rng(3)
    value, bar = only(numerical_cotangents(lambda x: x**2 + 1e-4 * rng.normal(size=60), (X,), [np.ones(60)]))
    assert np.mean(np.abs(value - 2 * X) <= 2 * bar) >= 0.95
    assert np.median(bar) >= 1e-5


def test_a_cast_down_inside_raises_the_bar():
    """float64 in and out, float32 between: steps too small for it must not count as no change."""
    f = real_only(lambda x: (x.astype(np.float32) ** 2).astype(np.float64))
    value, bar = only(numerical_cotangents(f, (X,), [np.ones(60)]))
    assert np.all(np.abs(value - 2 * X) <= 2 * bar)
    assert 1e-8 <= np.median(bar) <= 1e-4


def test_a_large_constant_beside_it_raises_the_bar():
    value, bar = only(numerical_cotangents(real_only(lambda x: 1e12 + x**2), (X,), [np.ones(60)]))
    assert np.all(np.abs(value - 2 * X) <= 2 * bar)
    assert np.median(bar) >= 1e-5


def test_jumps_and_ends_of_the_domain_have_large_bars():
    x = np.array([1.0, 2.5])
    value, bar = only(numerical_cotangents(real_only(np.floor), (x,), [np.ones(2)]))
    assert bar[0] >= 1
    assert abs(value[1]) <= 2 * bar[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, bar = only(numerical_cotangents(np.sqrt, (np.array([0.0, 4.0]),), [np.ones(2)]))
        assert bar[0] == np.inf
        assert value[1] == pytest.approx(0.25, abs=1e-9)
        value, bar = only(numerical_cotangents(real_only(np.log), (np.array([1e-6, 1.0]),), [np.ones(2)]))
        assert np.all(np.abs(value - [1e6, 1.0]) <= 2 * bar)
        assert np.all(bar <= [1.0, 1e-8])


@pytest.mark.parametrize(
    ("f", "dy"),
    [
        (lambda xp, z: z**2 * xp.conj(z), X[:4] + 1j),
        (lambda xp, z: xp.abs(z) ** 2, X[:4]),
        (lambda xp, z: xp.fft.ifft(xp.exp(z)), X[:4] - 2j),
        (lambda xp, z: z.real * z.imag**2, X[:4]),
    ],
)
def test_complex_arguments_have_the_cotangents_of_jax(f, dy):
    z = X[:4] + 1j * X[4:8]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        truth = np.asarray(jax.vjp(lambda z: f(jnp, z), jnp.asarray(z))[1](jnp.asarray(dy))[0])
    found = numerical_cotangents(lambda z: f(np, z), (z,), [dy])
    value, bar = only(found)
    assert np.all(np.abs(value - truth) <= 2 * bar)
    assert np.max(bar / np.abs(truth)) <= 1e-8
    for p in found[0].projections[0]:
        assert abs(p.value - np.real(np.sum(truth * p.direction))) <= 2 * p.bar


def test_a_real_argument_of_a_complex_function_has_the_cotangent_of_jax():
    dy = X[:4] - 2j
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        truth = np.asarray(jax.vjp(lambda x: jnp.exp(1j * x), jnp.asarray(X[:4]))[1](jnp.asarray(dy))[0])
    value, bar = only(numerical_cotangents(lambda x: np.exp(1j * x), (X[:4],), [dy]))
    assert np.all(np.abs(value - truth) <= 2 * bar)
    assert np.max(bar) <= 1e-8


def test_pytrees_integers_and_what_the_function_writes_into():
    params, i = {"W": X[:6].reshape(2, 3), "b": X[:2]}, np.array([2, 0])

    def f(params, i):
        params["W"] *= 2
        picked = params["W"][[0, 1], i] + params["b"]
        i[:] = 0
        return picked, (picked.sum(), picked.argmax())

    kept = jax.tree.map(np.copy, params)
    dy = (np.array([1.0, -3.0]), (2.0, None))
    (found,) = numerical_cotangents(f, (params, i), [dy])
    assert jax.tree.all(jax.tree.map(np.array_equal, params, kept))
    dW = np.zeros((2, 3))
    dW[[0, 1], [2, 0]] = [6, -2]
    cotangent, none = found.cotangents
    assert none is None
    assert np.max(np.abs(cotangent["W"] - dW)) <= 1e-11
    assert np.max(np.abs(cotangent["b"] - [3, -1])) <= 1e-11
    assert found.projections[2] == ()


def test_what_is_not_looked_at_has_an_infinite_bar_and_is_in_the_projections():
    x = RNG.normal(size=(50, 40))
    (found,) = numerical_cotangents(lambda x: np.sin(x), (x,), [np.ones((50, 40))], limit=30)
    (value,), (bar,) = found.cotangents, found.bars
    assert np.isfinite(bar).sum() == 30
    assert not np.any(value[np.isinf(bar)])
    wrong = np.cos(x)
    wrong[49, 39] *= -1
    first, second = found.projections[0]
    assert abs(first.value - np.sum(np.cos(x) * first.direction)) <= 2 * first.bar
    assert abs(second.value - np.sum(wrong * second.direction)) > 1e3 * second.bar


def test_a_jax_function_without_double_precision_is_judged_by_its_own():
    value, bar = only(numerical_cotangents(jnp.tanh, (X[:5],), [np.ones(5, np.float32)]))
    assert np.all(np.abs(value - 1 / np.cosh(X[:5]) ** 2) <= 2 * bar)
    assert 1e-8 <= np.median(bar) <= 1e-4


def test_one_that_refuses_double_precision_gets_its_own():
    def f(x):
        if x.dtype != np.float32:
            raise TypeError("float32 only")
        return np.sin(x)

    value, bar = only(numerical_cotangents(f, (X.astype(np.float32),), [np.ones(60)]))
    assert np.all(np.abs(value - np.cos(X.astype(np.float32))) <= 2 * bar)


def test_a_function_that_raises_outside_of_its_domain_is_tried_closer_by():
    value, bar = only(
        numerical_cotangents(lambda x: np.array([math.log(x[0])]), (np.array([1e-3, 1.0]),), [np.ones(1)])
    )
    assert np.all(np.abs(value - [1e3, 0]) <= 2 * bar)
    assert bar[0] <= 1e-5


def test_a_function_that_raises_next_to_the_argument_has_an_infinite_bar():
    _, bar = only(numerical_cotangents(lambda x: np.array([math.sqrt(x[0])]), (np.zeros(1),), [np.ones(1)]))
    assert bar[0] == np.inf


def test_a_saturated_output_has_a_bar():
    """In float32 tanh(9.5) is 1, and stays it at every step; its derivative is 2e-8."""
    value, bar = only(numerical_cotangents(in_float32(np.tanh), (np.float32([9.5, 0.1]),), [np.ones(2)]))
    assert np.all(np.abs(value - 1 / np.cosh([9.5, 0.1]) ** 2) <= 2 * bar)
    assert bar[0] <= 1e-6


def test_what_the_function_raises_is_raised():
    def f(x):
        raise RuntimeError("no such device")

    with pytest.raises(RuntimeError, match=r"^no such device$"):
        numerical_cotangents(f, (X,), [X])


def test_a_dy_that_does_not_fit_is_refused():
    with pytest.raises(ValueError) as e:
        numerical_cotangents(np.sin, (X,), [np.ones(3)])
    assert str(e.value) == "dy has leaves of shapes [(3,)], the output of f [(60,)]"


def test_empty_arrays_and_no_cotangents():
    assert numerical_cotangents(np.sin, (X,), []) == []
    value, bar = only(numerical_cotangents(np.sin, (np.zeros((0, 3)),), [np.zeros((0, 3))]))
    assert value.shape == bar.shape == (0, 3)
