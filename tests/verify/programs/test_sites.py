"""Sites: every rule that runs, where it stands, and what flows into it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpref.verify.programs.sites import sites


@jax.custom_vjp
def wrong(x):
    return jnp.sin(x)


def wrong_forward(x):
    return jnp.sin(x), x


def wrong_backward(x, dy):
    return (2 * dy * jnp.cos(x),)


wrong.defvjp(wrong_forward, wrong_backward)


@jax.custom_jvp
def outer(x):
    return wrong(x) * x


@outer.defjvp
def outer_tangents(primals, tangents):
    (x,), (dx,) = primals, tangents
    return outer(x), (jnp.cos(x) * x + jnp.sin(x)) * dx


X = jnp.linspace(0.1, 0.6, 3)


def here(function, lines):
    return f"{__file__}:{function.__code__.co_firstlineno + lines}"


def at(site):
    return f"{site.file}:{site.line}"


def ratio(site, inputs):
    """The rule's cotangent over that of its body."""
    of_rule, of_body = (jax.vjp(f, *inputs)[1]([jnp.ones_like(inputs[0])])[0] for f in (site.bound, site.primal))
    return np.asarray(of_rule / of_body)


def test_a_rule_in_everything_with_the_values_that_flow_into_it():
    def fun(x):
        def step(carry, v):
            return wrong(carry) + v, outer(v)

        carry, _ = lax.scan(jax.checkpoint(jax.jit(step)), x[0], jnp.arange(7.0), reverse=True)
        _, z = lax.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 1, wrong(s[1]) + 1), (0, x))
        taken = lax.cond(x[0] > 9, lambda x: wrong(x), lambda x: outer(x), x)
        return carry + jnp.sum(z + taken + jax.vmap(wrong)(x))

    in_carry, of_step, in_outer, in_while, in_branch, in_branch_outer, in_vmap, not_taken = sites(jax.jit(fun), X)
    assert [s.name for s in (in_carry, of_step, in_outer, in_while)] == ["wrong", "outer", "wrong", "wrong"]
    assert [s.kind for s in (in_carry, of_step)] == ["custom_vjp", "custom_jvp"]
    assert [at(s) for s in (in_carry, of_step)] == [here(fun, 2)] * 2
    assert at(in_outer) == at(in_branch_outer) == here(outer.__wrapped__, 2)
    assert [at(s) for s in (in_while, in_branch, in_vmap)] == [here(fun, k) for k in (5, 6, 7)]
    assert in_carry.defined == here(wrong_backward, 0)
    assert of_step.defined == here(outer_tangents, 0)

    carries = [float(X[0])]
    for v in range(6, 0, -1):
        carries.append(np.sin(carries[-1]) + v)
    np.testing.assert_allclose(in_carry.calls, [[carries[0]], [carries[3]], [carries[6]]], rtol=1e-6)
    assert of_step.calls == in_outer.calls == ((6.0,), (3.0,), (0.0,))
    states = [np.asarray(X)]
    for _ in range(8):
        states.append(np.sin(states[-1]) + 1)
    np.testing.assert_allclose(in_while.calls, [[states[0]], [states[4]], [states[8]]], rtol=1e-6)
    for site in (in_branch, in_branch_outer, in_vmap):
        np.testing.assert_array_equal(site.calls, [[X]])
    assert type(in_vmap.calls[0][0]) is np.ndarray

    assert (not_taken.name, at(not_taken), not_taken.calls, not_taken.ran) == ("wrong", here(fun, 6), (), False)
    for site in (in_carry, in_outer, in_while, in_vmap):
        for inputs in site.calls:
            np.testing.assert_allclose(ratio(site, inputs), 2, rtol=1e-6)
    np.testing.assert_allclose(ratio(in_branch, in_branch.calls[0]), 1, rtol=1e-6)


def test_relu_passes_inside_modules_and_calls_from_one_line_are_one_site():
    def layer(w):
        return SimpleNamespace(w=w, apply=lambda x: jax.nn.relu(x @ w))

    layers = [layer(jnp.full((3, 3), 0.1 * k)) for k in range(1, 6)]

    def model(x):
        for one in layers:
            x = one.apply(x)
        return x

    (site,) = sites(model, np.ones((2, 3), np.float32))
    assert (site.name, at(site)) == ("relu", here(layer, 1))
    assert site.defined.split(":")[0].endswith("functions.py")
    assert len(site.calls) == 3
    np.testing.assert_allclose([c[0][0, 0] for c in site.calls], [0.3, 0.1944, 0.2916], rtol=1e-6)
    assert all((ratio(site, inputs) == 1).all() for inputs in site.calls)


def test_a_batched_while_loop_and_loops_that_do_not_run():
    def fun(x):
        doubled = jax.vmap(lambda v: lax.while_loop(lambda v: v < 1, lambda v: v + wrong(v), v))(x)
        nothing = lax.scan(lambda c, v: (wrong(c), v), x, jnp.zeros((0, 2)))[0]
        return doubled, lax.fori_loop(0, x.size - 3, lambda _, v: wrong(v), nothing)

    first, *others = sites(fun, X)
    assert len(first.calls) == 3
    np.testing.assert_array_equal(first.calls[0][0], X)
    assert [s.calls for s in others] == [(), ()]


def test_static_arguments_make_different_sites():
    power = jax.custom_vjp(lambda x, n: x**n, nondiff_argnums=(1,))
    power.defvjp(lambda x, n: (x**n, x), lambda n, x, d: (d,))
    cube, square = sites(lambda x: [power(x, n) for n in (3, 2)], X)
    np.testing.assert_allclose(cube.bound(X)[0], X**3, rtol=1e-6)
    np.testing.assert_allclose(square.primal(X)[0], X**2, rtol=1e-6)


def test_a_function_without_rules_has_none():
    assert sites(lambda x: lax.map(jnp.tanh, x) @ x, X) == []


def test_a_literal_that_is_a_plain_bool_is_an_input():
    @jax.custom_vjp
    def chosen(x, is_doubled):
        return jnp.where(is_doubled, 2 * x, x)

    chosen.defvjp(lambda x, b: (chosen(x, b), b), lambda b, dy: (jnp.where(b, 2 * dy, dy), None))
    (site,) = sites(lambda x: chosen(x, True), np.ones(3, np.float32))
    assert [v.dtype.name for v in site.calls[0]] == ["float32", "bool"]
