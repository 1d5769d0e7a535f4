"""Products of the examples' gradients are those of gradients that are made; the noise scale is that of its formula."""

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import EVERY_COMPOSITION, close, gradients_of

RNG = np.random.default_rng(SEED)


@EVERY_COMPOSITION
def test_every_composition_gives_the_products_of_the_gradients(made):
    with jax.enable_x64(True):
        J, x, params, expected, _ = gradients_of(made)
        f = bpref.map_leaves(bpref.per_example_products, J)
        K = in_one_program(lambda p, x: bpref.gradient_products(bpref.backpropagate(f, p, x)[1]))(
            params, jax.tree.map(jnp.asarray, x)
        )
        flat = np.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(expected)], 1)
        close(np.asarray(K), flat @ flat.T)


def test_the_noise_scale_is_that_of_two_unbiased_estimates():
    """Over many batches of 4, their means are the square of the population's gradient and its covariance's trace."""
    J = bpref.objective(bpref.linear(1), bpref.square())
    X, y = RNG.normal(size=(4000, 4, 3)), RNG.normal(size=(4000, 4, 1))
    with jax.enable_x64(True):
        params = bpref.LinearParams(jnp.full((1, 3), 0.5), jnp.zeros(1)), ()

        def of_batch(X, y):
            _, dparams, norms = bpref.clipped_gradient(J, params, (X, y), 1e30)
            whole = sum(jnp.sum(d**2) for d in jax.tree.leaves(dparams))
            return bpref.gradient_noise_scale(norms, dparams), norms, whole

        B, norms, whole = jax.device_get(jax.jit(jax.vmap(of_batch))(X, y))
    errors = X @ np.full((3, 1), 0.5) - y
    each = np.concatenate([errors * X, errors], -1).reshape(-1, 4)
    noise = (4 * (norms**2).sum(-1) - whole) * 4 / 3
    np.testing.assert_allclose(B, noise / (whole - noise / 4), rtol=1e-9)
    np.testing.assert_allclose(noise.mean(), each.var(0).sum(), rtol=0.05)
    np.testing.assert_allclose((whole - noise / 4).mean(), (each.mean(0) ** 2).sum(), rtol=0.1)


BAD_CALLS = {
    "gradient_noise_scale: norms has shape (1,), expected (N,) of at least 2 examples": (
        lambda: bpref.gradient_noise_scale(jnp.ones(1), ())
    ),
    "gradient_products: products have the shapes (3,), expected (..., N, N) of one N": (
        lambda: bpref.gradient_products((jnp.ones(3),))
    ),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)
