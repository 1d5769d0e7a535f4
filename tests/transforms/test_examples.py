"""The examples of the signals' docstrings run as they stand."""

import doctest

import jax
import jax.numpy as jnp
import optax
import pytest

import bpref

SHOWN = (
    bpref.per_example_gradients,
    bpref.per_example_norms,
    bpref.per_example_products,
    bpref.clipped_gradient,
    bpref.private_gradient,
    bpref.privacy_spent,
    bpref.gradient_noise_scale,
    bpref.split_backward,
    bpref.kronecker_factors,
    bpref.gauss_newton_diagonal,
    bpref.gauss_newton_product,
    bpref.fisher_diagonal,
    bpref.hessian_product,
    bpref.hutchinson_diagonal,
    bpref.kfac,
    bpref.shampoo,
    bpref.update_by_sweeps,
    bpref.feedback_alignment,
    bpref.sign_symmetry,
    bpref.direct_feedback,
    bpref.target_propagation,
    bpref.fixed_point,
    bpref.root,
    bpref.neural_ode,
    bpref.offload,
    bpref.fit_memory,
    bpref.watch,
)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda f: f.__name__)
def test_the_example_runs(shown, standard_promotion):
    J = bpref.objective(bpref.linear(3), bpref.softmax_cross_entropy())
    X, y = jax.random.normal(jax.random.key(0), (4, 2)), jnp.arange(4) % 3
    params = J.init(jax.random.key(0), (X, y))
    given = {
        "bpref": bpref,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "J": J,
        "X": X,
        "y": y,
        "params": params,
        "dy": jnp.ones((4, 3)),
    }
    example = doctest.DocTestParser().get_doctest(shown.__doc__, given, shown.__name__, None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
