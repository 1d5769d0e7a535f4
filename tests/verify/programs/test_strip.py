"""A stripped function: the same values, and autodiff's derivative of the body itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from bpref.tangents import by_decision
from bpref.verify.programs.strip import has_custom_rules, strip_custom_rules


@jax.custom_vjp
def wrong(x):
    return jnp.sin(x) * x


wrong.defvjp(lambda x: (wrong(x), x), lambda x, d: (7 * d,))


@jax.custom_jvp
def wrong_over_wrong(x):
    return jnp.tanh(wrong(x))


@wrong_over_wrong.defjvp
def _(primals, tangents):
    return wrong_over_wrong(*primals), 5 * tangents[0]


def right(x):
    return jnp.sin(x) * x


X = jnp.linspace(0.1, 0.9, 3)


def cotangent(f, *args):
    y, transpose = jax.vjp(f, *args)
    return jax.tree.leaves(transpose(jax.tree.map(jnp.ones_like, y)))


def nested(f):
    """A rule in a scan in a jit in a remat in a cond, and in a loop of fixed length."""

    def step(carry, v):
        return f(carry) * v, f(v) + carry

    def when_positive(x):
        return jax.checkpoint(jax.jit(lambda x: lax.scan(step, jnp.float32(0.3), x, reverse=True)))(x)

    def fun(x):
        carry, ys = lax.cond(x[0] > 0, when_positive, lambda x: (x[0], x), x)
        return carry, lax.fori_loop(0, 2, lambda _, y: f(y), ys)

    return fun


def test_a_wrong_rule_nested_in_everything_is_taken_out():
    fun, truth = jax.jit(nested(wrong)), nested(right)
    stripped = jax.jit(strip_custom_rules(fun))
    np.testing.assert_array_equal(stripped(X)[1], fun(X)[1])
    np.testing.assert_allclose(cotangent(stripped, X)[0], cotangent(truth, X)[0], rtol=1e-6)
    assert np.max(np.abs(cotangent(fun, X)[0] - cotangent(truth, X)[0])) > 1
    assert has_custom_rules(jax.make_jaxpr(fun)(X))
    assert not has_custom_rules(jax.make_jaxpr(stripped)(X))


def test_rules_inside_rules_are_taken_out_in_forward_mode_too():
    stripped = strip_custom_rules(wrong_over_wrong)
    truth = (1 - jnp.tanh(right(X)) ** 2) * (jnp.cos(X) * X + jnp.sin(X))
    np.testing.assert_allclose(jax.jvp(stripped, (X,), (jnp.ones(3),))[1], truth, rtol=1e-6)
    np.testing.assert_allclose(cotangent(stripped, X)[0], truth, rtol=1e-6)


def test_while_loops_of_one_and_of_many():
    def until_large(f, x):
        return lax.while_loop(lambda s: s[1] < 3.0, lambda s: (s[0] + 1, f(s[1]) + s[1] + 0.2), (0, x))

    stripped = strip_custom_rules(partial(until_large, wrong))
    one_by_one = [until_large(right, x) for x in X]
    n, y = jax.vmap(stripped)(X)
    inside = strip_custom_rules(jax.vmap(partial(until_large, wrong)))(X)
    assert n.tolist() == inside[0].tolist() == [int(i) for i, _ in one_by_one]
    np.testing.assert_allclose(y, [v for _, v in one_by_one], rtol=1e-6)
    np.testing.assert_array_equal(inside[1], y)
    ours, theirs = (jax.jvp(f, (X[2],), (jnp.float32(1),))[1] for f in (stripped, partial(until_large, right)))
    assert ours[1] == theirs[1]


def test_static_arguments_keywords_and_trees_reach_the_function_as_they_are():
    @partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
    def powers(x, name, n, g, scale):
        assert isinstance(name, str)
        assert isinstance(n, int)
        assert isinstance(scale, float)
        return {"y": g(x) ** n * scale, "none": None}

    powers.defvjp(
        lambda x, *static: (powers(x, *static), x), lambda name, n, g, scale, x, d: (jax.tree.map(jnp.zeros_like, x),)
    )

    def fun(tree, *, n):
        return powers(tree["x"], "sin", n, jnp.sin, 2.0)

    stripped = strip_custom_rules(fun)
    assert stripped.__name__ == "fun"
    np.testing.assert_allclose(stripped({"x": X, "of": None}, n=3)["y"], 2 * jnp.sin(X) ** 3, rtol=1e-6)
    gradient = jax.grad(lambda x: stripped({"x": x}, n=3)["y"].sum())(X)
    np.testing.assert_allclose(gradient, 6 * jnp.sin(X) ** 2 * jnp.cos(X), rtol=1e-6)


def test_the_derivative_of_relu_at_its_tie_is_chosen_by_its_rule():
    assert jax.grad(jax.nn.relu)(0.0) == 0
    assert jax.grad(strip_custom_rules(jax.nn.relu))(0.0) == 0.5


MATRIX = 3 * jnp.eye(3) + jnp.arange(9.0).reshape(3, 3) / 9

LIBRARY = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "softmax": jax.nn.softmax,
    "logsumexp": lambda A: jax.scipy.special.logsumexp(A, axis=1),
    "sinc": jnp.sinc,
    "solve": lambda A: jnp.linalg.solve(A, X),
    "cholesky": lambda A: jnp.linalg.cholesky(A @ A.T),
    "conjugate gradients": lambda A: jax.scipy.sparse.linalg.cg(A @ A.T, X)[0],
    "root": lambda A: lax.custom_root(
        lambda z: z * z - A,
        A,
        lambda f, z: lax.fori_loop(0, jnp.int32(20), lambda _, z: 0.5 * (z + A / z), z),
        lambda g, y: y / g(jnp.ones_like(y)),
    ),
    "cross entropy": lambda A: optax.softmax_cross_entropy(A, jax.nn.softmax(A)),
    "platform": lambda A: lax.platform_dependent(A, cpu=jax.nn.silu, default=jnp.cos),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", LIBRARY)
def test_library_functions_keep_their_values_and_derivatives(name):
    f, stripped = LIBRARY[name], strip_custom_rules(LIBRARY[name])
    np.testing.assert_allclose(stripped(MATRIX), f(MATRIX), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cotangent(stripped, MATRIX)[0], cotangent(f, MATRIX)[0], rtol=1e-5, atol=2e-6)
    assert not has_custom_rules(jax.make_jaxpr(stripped)(MATRIX))


def test_what_has_another_derivative_by_decision_keeps_it_and_nothing_that_looks_alike():
    @jax.custom_jvp
    def decided(x):
        return jnp.round(x)

    decided.defjvp(lambda primals, tangents: (decided(*primals), tangents[0]))
    ours = by_decision(jnp.round, lambda x: 3 * x)
    assert [cotangent(strip_custom_rules(f), X)[0].tolist() for f in (ours, decided)] == [[3.0] * 3, [0.0] * 3]
    assert not has_custom_rules(jax.make_jaxpr(ours)(X))


def test_a_rule_over_a_callback_stays():
    def host_sine(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")

    sine = jax.custom_vjp(host_sine)
    sine.defvjp(lambda x: (host_sine(x), x), lambda x, d: (jnp.cos(x) * d,))
    stripped = strip_custom_rules(lambda x: wrong(sine(x)))
    np.testing.assert_allclose(cotangent(stripped, X)[0], cotangent(lambda x: right(jnp.sin(x)), X)[0], rtol=1e-6)
    assert has_custom_rules(jax.make_jaxpr(stripped)(X))
