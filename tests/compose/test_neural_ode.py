"""neural_ode: beside the matrix exponential, SciPy's solver, and autodiff of the same steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg

import bpref
from bpref.verify import oracle
from bpref.verify.oracle import bytes_kept
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

N = 3


def f() -> bpref.Layer:
    return bpref.serial(bpref.linear(5), bpref.tanh(), bpref.linear(N))


def drawn(layer):
    rng = np.random.default_rng(SEED)
    x, dy = (jnp.asarray(rng.normal(size=(4, N))) for _ in range(2))
    return layer.init(jax.random.key(SEED), x), x, dy


def test_it_is_autodiff_of_the_same_steps():
    layer, h = bpref.neural_ode(f(), 4, 2.0), 0.5

    def unrolled(params, z):
        def rate(z):
            return f().forward(params, z)[0]

        for _ in range(4):
            k1 = rate(z)
            k2 = rate(z + h * k1 / 2)
            k3 = rate(z + h * k2 / 2)
            z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + rate(z + h * k3))
        return z

    with jax.enable_x64(True):
        params, x, dy = drawn(layer)

        def both(params, x):
            y, cotangents_of = oracle.with_cotangents(unrolled, params, x)
            return y, *cotangents_of(dy)

        came, expected = backpropagate(layer, params, x, dy), jax.jit(both)(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), came, expected)
        bridged = oracle.gradient(lambda p, x: jnp.vdot(bpref.as_function(layer)(p, x), dy))(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), came[1:], bridged)


@pytest.mark.parametrize("time", [1.0, -0.7])
def test_a_linear_equation_has_an_exponential_and_the_error_is_of_order_4(time):
    """y = exp(time W) x, dx = exp(time W)^T dy, and of twice the steps the error is a sixteenth."""
    with jax.enable_x64(True):
        errors = []
        for steps in (20, 40):
            layer = bpref.neural_ode(bpref.linear(N, bias=False), steps, time)
            params, x, dy = drawn(layer)
            y, _, dx = backpropagate(layer, params, x, dy)
            E = scipy.linalg.expm(time * np.asarray(params.W))
            errors.append(max(np.abs(y - x @ E.T).max(), np.abs(dx - dy @ E).max()))
        assert errors[0] < 1e-5
        assert 14 < errors[0] / errors[1] < 18


def test_a_rate_that_depends_on_the_time_has_it_in_x():
    """dz/dt = t z from t0 on is z = exp(((t0 + 1)^2 - t0^2) / 2) x = exp(t0 + 1/2) x, and so dt0 = z dz."""

    def forward(params, x):
        z, t = x
        return (t * z, jnp.ones_like(t)), x

    def backward(params, x, dy):
        (z, t), (d, _) = x, dy
        return (), (t * d, z * d)

    with jax.enable_x64(True):
        layer = bpref.neural_ode(bpref.Layer(lambda key, x: (), forward, backward, "timed"), 40)
        _, x, dz = drawn(layer)
        t0 = jnp.full_like(x, 0.3)
        (z, t), _, (dx, dt0) = backpropagate(layer, (), (x, t0), (dz, jnp.zeros_like(t0)))
        np.testing.assert_allclose(t, 1.3, rtol=1e-12)
        for came, expected in ((z, np.exp(0.8) * x), (dx, np.exp(0.8) * dz), (dt0, np.exp(0.8) * x * dz)):
            np.testing.assert_allclose(came, expected, rtol=1e-6)


def test_it_is_scipys_solution():
    with jax.enable_x64(True):
        layer = bpref.neural_ode(f(), 50)
        params, x, _ = drawn(layer)
        of_one = f()

        def rate(t, z):
            return np.asarray(of_one.forward(params, jnp.asarray(z)[None])[0][0])

        found = scipy.integrate.solve_ivp(rate, (0, 1), np.asarray(x[0]), rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(layer.forward(params, x)[0][0], found.y[:, -1], atol=1e-7)


def test_z_may_be_a_tree_with_the_time_in_it():
    """dz/dt = t z, dt/dt = 1: z(1) = z(0) exp(1/2); one of the outputs is not used."""
    rates = bpref.Layer(
        lambda key, x: (),
        lambda p, x: ((x[0] * x[1], jnp.ones_like(x[1])), x),
        lambda p, x, dy: ((), (dy[0] * x[1], dy[0] * x[0])),
        "rates",
    )
    with jax.enable_x64(True):
        layer = bpref.neural_ode(rates, 40)
        x = jnp.array([1.0, -2.0]), jnp.zeros(2)
        (z, t), cache = layer.forward((), x)
        np.testing.assert_allclose(z, x[0] * np.exp(0.5), rtol=1e-8)
        np.testing.assert_allclose(t, 1)
        np.testing.assert_allclose(layer.backward((), cache, (jnp.ones(2), None))[1][0], np.exp(0.5), rtol=1e-8)


def test_what_is_kept_is_z_before_each_step():
    layer = bpref.neural_ode(f(), 6)
    params, x, _ = drawn(layer)
    x = x.astype(jnp.float32)
    assert bytes_kept(lambda p, x: layer.forward(p, x)[1], params, x) == 6 * x.nbytes


def test_leaf_transformations_take_it_as_a_whole():
    layer = bpref.serial(bpref.neural_ode(f(), 3), bpref.linear(2))
    params, x, _ = drawn(layer)
    assert bpref.leaf_paths(layer) == ["0 neural_ode", "1 linear"]
    assert max(leaf.error for leaf in bpref.check_leaves(layer, params, x)) < 1e-5


test_wrong_calls_are_refused = refusals(
    {
        "neural_ode: steps is 0, expected a positive integer": lambda: bpref.neural_ode(f(), 0),
        "neural_ode: time is inf, expected a finite number": lambda: bpref.neural_ode(f(), 2, np.inf),
        "neural_ode: the output of linear is float32[1, 2], expected that of its input, float32[1, 3]": (
            lambda: bpref.neural_ode(bpref.linear(2), 2).forward(
                bpref.linear(2).init(jax.random.key(0), jnp.ones((1, 3))), jnp.ones((1, 3))
            )
        ),
    },
)
