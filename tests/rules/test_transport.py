"""Plans and costs of transport: by hand, beside SciPy's linear program, and derived at the end beside step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import expit

import bpref
from bpref.formulas.sinkhorn import end_of_steps, steps_taken, weights
from tests.rules.sweeping import backpropagate, forward

ACROSS = np.array([[0.0, 1.0], [1.0, 0.0]])
EVEN = np.zeros(2)


def drawn(n=5, m=4):
    rng = np.random.default_rng(0)
    return tuple(map(jnp.asarray, (rng.uniform(size=(n, m)), rng.normal(size=n), rng.normal(size=m))))


@pytest.mark.parametrize("epsilon", [0.02, 1.0, 30.0])
def test_two_places_by_hand(epsilon):
    """P is p on the diagonal and q off it, with p + q = 1/2 and p / q = exp(1 / epsilon): p = sigmoid(1 / epsilon) / 2.

    J is 2 q and epsilon times the divergence. Of dP = I, what is taken from C on the diagonal is added off it.
    """
    with jax.enable_x64(True):
        p, q = expit(1 / epsilon) / 2, expit(-1 / epsilon) / 2
        x = ACROSS, EVEN, EVEN
        P, _, (dC, _, _) = backpropagate(bpref.sinkhorn(epsilon), (), x, np.eye(2))
        np.testing.assert_allclose(P, [[p, q], [q, p]], rtol=1e-10)
        slope = 2 * p * q / epsilon
        np.testing.assert_allclose(dC, slope * np.array([[-1, 1], [1, -1]]), rtol=1e-9, atol=1e-15)
        J, _, (dC, _, _) = backpropagate(bpref.transport_cost(epsilon), (), x)
        divergence = 2 * (p * np.log(4 * p) + q * np.log(4 * q))
        np.testing.assert_allclose(J, 2 * q + epsilon * divergence, rtol=1e-9)
        np.testing.assert_allclose(dC, P, rtol=1e-12)


def test_with_no_price_on_unevenness_it_is_the_linear_program():
    with jax.enable_x64(True):
        C, alpha, beta = drawn()
        a, b = jax.nn.softmax(alpha), jax.nn.softmax(beta)
        sums = np.concatenate([np.kron(np.eye(5), np.ones(4)), np.kron(np.ones(5), np.eye(4))])
        least = scipy.optimize.linprog(np.ravel(C), A_eq=sums, b_eq=np.concatenate([a, b]))
        J, _, (dC, dalpha, _) = backpropagate(bpref.transport_cost(0.01, steps=5000), (), (C, alpha, beta))
        assert least.fun < J < least.fun + 0.01 * np.log(20)
        np.testing.assert_allclose(dC, least.x.reshape(5, 4), atol=1e-2)
        price = least.eqlin.marginals[:5]
        np.testing.assert_allclose(dalpha, a * (price - a @ price), atol=2e-2)


def test_the_plan_derived_at_its_end_is_what_many_steps_unrolled_give():
    with jax.enable_x64(True):
        x, dP = drawn(), jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
        at_end = backpropagate(bpref.sinkhorn(0.2, 400), (), x, dP)
        unrolled = backpropagate(bpref.sinkhorn(0.2, 400, unrolled=True), (), x, dP)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12), at_end, unrolled)
        few = backpropagate(bpref.sinkhorn(0.2, 2, unrolled=True), (), x, dP)
        assert np.max(np.abs(few[2][0] - at_end[2][0])) > 1e-3


def test_the_sums_of_a_plan_are_the_weights_and_its_gradient_moves_none():
    with jax.enable_x64(True):
        x = drawn()
        P, _, (dC, dalpha, dbeta) = backpropagate(bpref.sinkhorn(0.1, 500), (), x, jnp.cos(10 * x[0]))
        np.testing.assert_allclose(jnp.sum(P, 1), jax.nn.softmax(x[1]), rtol=1e-10)
        np.testing.assert_allclose(jnp.sum(P, 0), jax.nn.softmax(x[2]), rtol=1e-12)
        for d in (jnp.sum(dC, 0), jnp.sum(dC, 1), jnp.sum(dalpha), jnp.sum(dbeta)):
            np.testing.assert_allclose(d, 0, atol=1e-9)


@pytest.mark.parametrize("layer", [bpref.sinkhorn(), bpref.sinkhorn(unrolled=True), bpref.transport_cost()])
def test_what_has_no_weight_takes_no_part(layer):
    """A row more, at whatever cost, whose alpha is -inf."""
    C, alpha, beta = (jnp.asarray(v, jnp.float32) for v in drawn())
    more = jnp.concatenate([C, -100 * jnp.ones((1, 4))]), jnp.concatenate([alpha, jnp.full(1, -jnp.inf)]), beta
    y, _, d = backpropagate(layer, (), (C, alpha, beta))
    y_more, _, d_more = backpropagate(layer, (), more)
    np.testing.assert_allclose(y_more[:5] if y.ndim else y_more, y, rtol=1e-5)
    np.testing.assert_allclose(d_more[0], jnp.concatenate([d[0], jnp.zeros((1, 4))]), atol=1e-5)
    np.testing.assert_allclose(d_more[1], jnp.concatenate([d[1], jnp.zeros(1)]), atol=1e-5)


def test_costs_far_beyond_epsilon_do_not_overflow():
    """K is -1e4: exp of it is 0 in every dtype. The cheapest plan is that of the diagonal."""
    P = forward(bpref.sinkhorn(1e-4), (), bpref.Transport(jnp.asarray(ACROSS, jnp.float32), jnp.zeros(2), jnp.zeros(2)))
    np.testing.assert_allclose(P, np.eye(2) / 2, atol=1e-6)


@pytest.mark.parametrize("make", [bpref.sinkhorn, bpref.transport_cost])
def test_wrong_calls_are_refused(make):
    who, x = make.__name__, jnp.ones(3)
    for call, message in (
        (lambda: make(0.0), f"{who}: epsilon is 0.0, expected a positive number"),
        (lambda: make(steps=0), f"{who}: steps is 0, expected a positive integer"),
        (
            lambda: make().forward((), (jnp.ones((3, 2)), x, x)),
            f"{who}: beta has shape (3,), expected (*b, m) = (2,) by C (3, 2)",
        ),
    ):
        with pytest.raises(ValueError) as refused:
            call()
        assert str(refused.value) == message


@pytest.mark.parametrize("epsilon", [1.0, 0.03, 0.001])
@pytest.mark.parametrize("steps", [3, 25, 200])
def test_steps_that_are_products_end_where_steps_in_logarithms_do(epsilon, steps):
    """Also where f and g move too far for products, and where a weight is 0."""
    C, alpha, beta = drawn(7, 9)
    x = C / epsilon, alpha.at[2].set(-jnp.inf), beta.at[3].set(-jnp.inf)
    with jax.enable_x64(True):
        K, a, b = -jnp.asarray(x[0], jnp.float64), *(weights(jnp.asarray(v, jnp.float64)) for v in x[1:])
        found = end_of_steps(K, a, b, steps, None)
        one_by_one = (v[-1] for v in steps_taken(K, a, b, steps + 1))
        for came, expected in zip(found, one_by_one, strict=True):
            np.testing.assert_allclose(came, expected, rtol=1e-11, atol=1e-11)
