"""A slope that is not the function's: named by its line wherever it stands, and nothing else is taken for one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import bpref

X = np.linspace(-1.3, 1.1, 12, dtype=np.float32).reshape(3, 4)
W, V = (np.random.default_rng(i).normal(size=(4, 4)).astype(np.float32) for i in (0, 1))


def found(fwd, bwd, *args):
    """By argument, the kind and the first line of what is said."""
    f = jax.custom_vjp(fwd)
    f.defvjp(lambda *args: (fwd(*args), args), bwd)
    findings = bpref.check(f, *args, key=3).findings
    return {finding.where: (finding.kind, finding.detail.splitlines()[0]) for finding in findings}


def line_of(f, further=0):
    return f"(test_slopes.py:{f.__code__.co_firstlineno + further})"


SLOPES = {
    "left out": (jnp.tanh, lambda v: 1),
    "applied twice": (jax.nn.sigmoid, lambda v: (jax.nn.sigmoid(v) * jax.nn.sigmoid(-v)) ** 2),
    "taken of its output": (jnp.tanh, lambda v: 1 - jnp.tanh(jnp.tanh(v)) ** 2),
    "1 over what it is": (jnp.tanh, lambda v: 1 / (1 - jnp.tanh(v) ** 2)),
    "the function itself": (jnp.sin, jnp.sin),
    "1 - v^2 of its input v, as tanh's is of the output": (jnp.tanh, lambda v: 1 - v**2),
    "v (1 - v) of its input v, as sigmoid's is of the output": (jax.nn.sigmoid, lambda v: v * (1 - v)),
    "1 - u^2 of its output u, which is tanh's": (jax.nn.sigmoid, lambda v: 1 - jax.nn.sigmoid(v) ** 2),
    "u (1 - u) of its output u, which is sigmoid's": (jnp.tanh, lambda v: jnp.tanh(v) * (1 - jnp.tanh(v))),
    "1 - u of its output u, of tanh's 1 - u^2 or sigmoid's u (1 - u)": (jnp.tanh, lambda v: 1 - jnp.tanh(v)),
}


@pytest.mark.parametrize(("said", "g", "slope"), [(said, *of) for said, of in SLOPES.items()], ids=list(SLOPES))
def test_what_stands_for_a_slope_is_named(said, g, slope):
    def fwd(x):
        return 3 * g(2 * x)

    name = {jnp.tanh: "tanh", jnp.sin: "sin", jax.nn.sigmoid: "logistic"}[g]
    seen = found(fwd, lambda args, dy: (6 * dy * slope(2 * args[0]),), X)
    assert seen == {"x": ("slope", f"the slope of `{name}` {line_of(fwd, 1)} is {said}")}


def test_another_slope_is_not_explained():
    assert found(jnp.tanh, lambda args, dy: (dy * (1 - jnp.tanh(args[0]) ** 4),), X)["x"][0] == "unexplained"


def two(W, V, x):
    return jnp.tanh(jnp.tanh(x @ W) @ V)


def backward_of_two(of_first, of_second):
    def backward(args, dy):
        W, V, x = args
        a = jnp.tanh(x @ W)
        dz = dy * of_second(jnp.tanh(a @ V))
        da = (dz @ V.T) * of_first(a)
        return x.T @ da, a.T @ dz, da @ W.T

    return backward


def right(u):
    return 1 - u**2


def test_of_two_calls_in_a_line_one_is_named_or_both():
    forgotten = jnp.ones_like
    where = line_of(two, 1)
    one = ("slope", f"the slope of `tanh` {where}, call 1 of 2 is left out")
    assert found(two, backward_of_two(forgotten, right), W, V, X) == {"W": one, "x": one}
    both = ("slope", f"the slope of `tanh` {where} is left out")
    assert found(two, backward_of_two(forgotten, forgotten), W, V, X) == dict.fromkeys(("W", "V", "x"), both)


def test_all_calls_of_a_function_are_tried_together_wherever_they_stand():
    def three(x):
        a = jnp.tanh(x)
        b = jnp.tanh(2 * a)
        return jnp.tanh(3 * b) + jnp.sin(x)

    def backward(args, dy):
        return (dy * (6 + jnp.cos(args[0])),)

    assert found(three, backward, X) == {"x": ("slope", "the slope of `tanh` of every call is left out")}


def test_in_a_loop_too():
    def through_time(W, x):
        def step(h, x):
            h = jnp.tanh(W @ h + x)
            return h, h

        return lax.scan(step, jnp.zeros(4, x.dtype), x)[1]

    def backward(args, dy):
        W, x = args
        h = through_time(W, x)
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

        def back(carry, one):
            (dh, dW), (before, d) = carry, one
            da = dh + d
            return (W.T @ da, dW + jnp.outer(da, before)), da

        (_, dW), dx = lax.scan(back, (jnp.zeros_like(x[0]), jnp.zeros_like(W)), (before, dy), reverse=True)
        return dW, dx

    said = ("slope", f"the slope of `tanh` {line_of(through_time, 2)} is left out")
    assert found(through_time, backward, 0.5 * W, X) == {"W": said, "x": said}
