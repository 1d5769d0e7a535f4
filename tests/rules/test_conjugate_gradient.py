"""conjugate_gradient: beside SciPy's and by hand, and what it is where there is no solution or none was reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

A = jnp.array([[4.0, 1.0], [1.0, 3.0]])
B = jnp.array([1.0, 2.0])


def poisson(n):
    """The second difference, of condition number about n^2 / 2."""
    return 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


def test_a_system_by_hand():
    """X = (1, 7) / 11; of dX = (11, 0), dB = (3, -1) and dA = -1/2 (dB X^T + X dB^T)."""
    X, _, (dA, dB) = backpropagate(bpref.conjugate_gradient(), (), (A, B), jnp.array([11.0, 0.0]))
    np.testing.assert_allclose(X, [1 / 11, 7 / 11], rtol=1e-6)
    np.testing.assert_allclose(dB, [3, -1], rtol=1e-6)
    np.testing.assert_allclose(dA, [[-3 / 11, -10 / 11], [-10 / 11, 7 / 11]], rtol=1e-6)


def test_the_steps_are_those_of_scipy():
    """After the first half of the steps; what is left is then computed anew, and the directions with it."""
    n, b = 40, np.random.default_rng(0).normal(size=40)
    with jax.enable_x64(True):
        for steps in (1, 7, 19):
            layer = bpref.conjugate_gradient(steps=steps)
            first, _ = scipy.sparse.linalg.cg(poisson(n), b, rtol=1e-14, maxiter=steps)
            both, _ = scipy.sparse.linalg.cg(poisson(n), b, x0=first, rtol=1e-14, maxiter=steps)
            np.testing.assert_allclose(layer.forward((), (poisson(n), b))[0], both, rtol=1e-9)


@pytest.mark.parametrize("n", [3, 50])
def test_a_condition_number_of_a_thousand(n):
    with jax.enable_x64(True):
        b = np.random.default_rng(1).normal(size=(n, 2))
        X, _, (dA, dB) = backpropagate(bpref.conjugate_gradient(), (), (poisson(n), b), b[::-1].copy())
        np.testing.assert_allclose(X, np.linalg.solve(poisson(n), b), rtol=1e-10)
        np.testing.assert_allclose(dB, np.linalg.solve(poisson(n), b[::-1]), rtol=1e-10)
        np.testing.assert_allclose(dA, -(dB @ X.T + X @ dB.T) / 2, rtol=1e-12, atol=1e-12)


def test_what_is_not_positive_definite_is_nan_and_spoils_no_other():
    X, _, (dA, dB) = backpropagate(
        bpref.conjugate_gradient(), (), (jnp.stack([-A, A]), jnp.stack([B, B])), jnp.ones((2, 2))
    )
    for v in (X, dA, dB):
        assert np.isnan(v[0]).all()
        np.testing.assert_array_equal(np.isfinite(v[1]), True)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_right_hand_sides_of_any_size_beside_one_of_zeros(scale):
    b = scale * jnp.stack([B, jnp.zeros(2)], 1)
    X = bpref.conjugate_gradient().forward((), (A, b))[0]
    np.testing.assert_allclose(X / scale, [[1 / 11, 0], [7 / 11, 0]], rtol=1e-6)


def test_a_tolerance_ends_it_early():
    wide = jnp.diag(jnp.linspace(1, 100, 50))
    X = bpref.conjugate_gradient(tolerance=0.1).forward((), (wide, jnp.ones(50)))[0]
    left = float(jnp.linalg.norm(1 - wide @ X) / 50**0.5)
    assert 1e-3 < left <= 0.1


test_wrong_calls_are_refused = refusals(
    {
        "conjugate_gradient: tolerance is 0.0, expected a positive number or None": (
            lambda: bpref.conjugate_gradient(tolerance=0.0)
        ),
        "conjugate_gradient: steps is 0, expected a positive integer": lambda: bpref.conjugate_gradient(steps=0),
    },
)
