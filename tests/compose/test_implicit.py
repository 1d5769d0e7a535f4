"""fixed_point and root: beside closed forms, SciPy, and autodiff of their loops unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import bpref
from bpref.layer import no_params
from bpref.verify import oracle
from bpref.verify.oracle import bytes_kept
from tests.comparing import assert_same
from tests.conftest import SEED
from tests.refusing import refusals

N = 4


def both_taken(then: bpref.Layer) -> bpref.Layer:
    """then(W z + b + V x + c)."""
    return bpref.serial(bpref.parallel(bpref.linear(N), bpref.linear(N)), bpref.fan_in(), then)


def drawn(layer, shape=(5, N), shrunk=0.6):
    """Params under which f contracts, x, and a cotangent."""
    rng = np.random.default_rng(SEED)
    x, dz = rng.normal(size=shape), rng.normal(size=shape)
    params = jax.tree.map(lambda v: shrunk * v, layer.init(jax.random.key(SEED), jnp.asarray(x)))
    return params, jnp.asarray(x), jnp.asarray(dz)


def by_oracle(f, params, x, dz):
    """z, and the cotangents of params and x."""

    def both(params, x):
        z, cotangents_of = oracle.with_cotangents(f, params, x)
        return z, cotangents_of(dz)

    return jax.jit(both)(params, x)


def swept(layer, params, x, dz):
    z, dparams, dx = jax.jit(lambda p, x: bpref.backpropagate(layer, p, x, dz))(params, x)
    return z, (dparams, dx)


def test_a_linear_fixed_point_is_the_solution_of_a_system():
    """z = W z + b + V x + c has (1 - W) z = V x + b + c, and so has u with the transposed."""
    with jax.enable_x64(True):
        layer = bpref.fixed_point(both_taken(bpref.identity()))
        params, x, dz = drawn(layer)

        def closed(params, x):
            ((W, b), (V, c)), *_ = params
            return jnp.linalg.solve(jnp.eye(N) - W, (x @ V.T + (b + c)[None]).T).T

        assert_same(swept(layer, params, x, dz), by_oracle(closed, params, x, dz), 1e-11)


def test_a_fixed_point_beside_its_loop_unrolled():
    f = both_taken(bpref.tanh())
    layer = bpref.fixed_point(f)

    def unrolled(params, x):
        z = jnp.zeros_like(x)
        for _ in range(100):
            z, _ = f.forward(params, (z, x))
        return z

    with jax.enable_x64(True):
        params, x, dz = drawn(layer)
        expected = by_oracle(unrolled, params, x, dz)
        assert_same(swept(layer, params, x, dz), expected, 1e-11)
        assert_same(by_oracle(lambda p, x: layer.forward(p, x)[0], params, x, dz), expected, 1e-11)
        bridged = by_oracle(bpref.as_function(layer), params, x, dz)
        assert_same(bridged, expected, 1e-11)


def test_what_is_kept_is_what_f_keeps_once():
    f = both_taken(bpref.tanh())
    layer = bpref.fixed_point(f, steps=50)
    params, x, _ = drawn(layer)
    kept = bytes_kept(lambda p, x: layer.forward(p, x)[1], params, x)
    assert kept == bytes_kept(lambda p, x: f.forward(p, (x, jnp.cos(x)))[1], params, x)


def test_it_begins_where_it_is_told_and_z_may_be_no_array_and_unlike_x():
    """Of the pair (a, b): a = cos a; b = x / 2 + b / 2 + 0 a, with x as long as an example."""
    cosine = bpref.Layer(no_params, lambda p, z: (jnp.cos(z), z), lambda p, z, dy: ((), -jnp.sin(z) * dy), "cosine")
    half = bpref.Layer(no_params, lambda p, x: (sum(x) / 2, ()), lambda p, c, dy: ((), (dy / 2, dy / 2)), "half")

    def forward(params, given):
        (a, b), x = given
        of_a, of_b = cosine.forward((), a), half.forward((), (b, x))
        return (of_a[0], of_b[0]), (of_a[1], of_b[1])

    def backward(params, cache, dy):
        (da, _), (_, (db, dx)) = dy, half.backward((), cache[1], dy[1])
        return (), ((None if da is None else cosine.backward((), cache[0], da)[1], db), dx)

    f = bpref.Layer(no_params, forward, backward, "f")
    with jax.enable_x64(True):
        layer = bpref.fixed_point(f, start=lambda x: (jnp.ones(2), x))
        (a, b), _, dx = bpref.backpropagate(layer, (), jnp.arange(3.0), (jnp.ones(2), jnp.ones(3)))
        np.testing.assert_allclose(a, 0.7390851332151607, rtol=1e-14)
        np.testing.assert_array_equal(b, jnp.arange(3.0))
        np.testing.assert_allclose(dx, np.ones(3), rtol=1e-14)
        assert bpref.check_leaves(layer, (), jnp.arange(3.0))[0].error < 1e-12


def test_its_leaves_carry_what_they_are_told():
    """Updates in the backward, and each leaf's error, of what is swept over many times."""
    layer = bpref.fixed_point(both_taken(bpref.tanh()))
    params, x, dz = (jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), v) for v in drawn(layer))
    assert max(leaf.error for leaf in bpref.check_leaves(layer, params, x)) < 1e-5
    _, (dparams, _) = swept(layer, params, x, dz)
    descending = bpref.map_leaves(
        lambda leaf: leaf._replace(
            backward=lambda p, c, dy: (
                jax.tree.map(lambda v, d: v - 0.1 * d, p, leaf.backward(p, c, dy)[0]),
                leaf.backward(p, c, dy)[1],
            )
        ),
        layer,
    )
    _, (updated, _) = swept(descending, params, x, dz)
    assert_same(updated, jax.tree.map(lambda v, d: v - 0.1 * d, params, dparams), 1e-6)


def test_without_a_cotangent_nothing_comes_back():
    for make in (bpref.fixed_point, bpref.root):
        layer = make(both_taken(bpref.tanh()))
        params, x, _ = drawn(layer)
        dparams, dx = layer.backward(params, layer.forward(params, x)[1], None)
        assert dx is None
        assert not any(np.any(d) for d in jax.tree.leaves(dparams))


def kepler() -> bpref.Layer:
    """z - e sin z - M, of the mean anomaly M, x: (N, 1), and the eccentricity e, its param."""

    def forward(e, given):
        z, M = given
        return z - e * jnp.sin(z) - M, z

    def backward(e, z, dy):
        return -jnp.sum(dy * jnp.sin(z)), (dy * (1 - e * jnp.cos(z)), -dy)

    return bpref.Layer(lambda key, given: jnp.full((), 0.3), forward, backward, "kepler")


def test_keplers_equation():
    """dz/dM = 1 / (1 - e cos z), dz/de = sin z / (1 - e cos z)."""
    with jax.enable_x64(True):
        layer, M = bpref.root(kepler(), start=lambda M: M), jnp.linspace(-3, 3, 11)[:, None]
        z, (de, dM) = swept(layer, jnp.full((), 0.3), M, jnp.ones_like(M))
        expected = [scipy.optimize.brentq(lambda v, m=m: v - 0.3 * np.sin(v) - m, -4, 4, xtol=1e-14) for m in M[:, 0]]
        np.testing.assert_allclose(z[:, 0], np.asarray(expected, float), atol=1e-13)
        np.testing.assert_allclose(dM, 1 / (1 - 0.3 * np.cos(z)), rtol=1e-12)
        np.testing.assert_allclose(de, np.sum(np.sin(z) / (1 - 0.3 * np.cos(z))), rtol=1e-11, atol=1e-13)


def test_a_root_beside_scipy_and_newtons_loop_unrolled():
    """z + tanh(W z + b) + V x + c."""
    parts = bpref.parallel(bpref.residual(bpref.serial(bpref.linear(N), bpref.tanh())), bpref.linear(N))
    f = bpref.serial(parts, bpref.fan_in())
    layer = bpref.root(f)

    def equations(params, z, x):
        (((W, b), _), (V, c)), _ = params
        return z + jnp.tanh(W @ z + b) + V @ x + c

    def unrolled(params, x):
        def one(x):
            z = jnp.zeros_like(x)
            for _ in range(12):
                ((W, b), _) = params[0][0]
                J = jnp.eye(N) + (1 - jnp.tanh(W @ z + b) ** 2)[:, None] * W
                z = z - jnp.linalg.solve(J, equations(params, z, x))
            return z

        return jax.vmap(one)(x)

    with jax.enable_x64(True):
        params, x, dz = drawn(layer)
        z, cotangents = swept(layer, params, x, dz)
        for z_n, x_n in zip(z, x, strict=True):
            found = scipy.optimize.root(lambda v, x=x_n: np.asarray(equations(params, v, x)), np.zeros(N), tol=1e-13)
            np.testing.assert_allclose(z_n, found.x, atol=1e-11)
        assert_same((z, cotangents), by_oracle(unrolled, params, x, dz), 1e-11)


@pytest.mark.parametrize("make", [bpref.fixed_point, bpref.root])
def test_vmap_is_a_loop(make):
    layer = make(both_taken(bpref.tanh()))
    with jax.enable_x64(True):
        params, x, dz = drawn(layer, (3, 2, N))
        together = jax.vmap(lambda x, dz: bpref.backpropagate(layer, params, x, dz))(x, dz)
        each = [swept(layer, params, *pair) for pair in zip(x, dz, strict=True)]
        np.testing.assert_allclose(together[0], [z for z, _ in each], atol=1e-13)
        np.testing.assert_allclose(together[2], [dx for _, (_, dx) in each], atol=1e-13)


TANH = both_taken(bpref.tanh())
X = jnp.ones((2, N))
WRONG = {
    "fixed_point: steps is 0, expected a positive integer": lambda: bpref.fixed_point(TANH, steps=0),
    "root: tolerance is -1.0, expected a positive number or None": lambda: bpref.root(TANH, tolerance=-1.0),
    "TypeError: root: start is a float, expected a function of x or None": lambda: bpref.root(TANH, start=0.0),
    "fixed_point: the output of serial is float32[2, 3], expected that of its input, float32[2, 4]": (
        lambda: bpref.fixed_point(bpref.serial(TANH, bpref.linear(3))).forward(
            bpref.serial(TANH, bpref.linear(3)).init(jax.random.key(0), (X, X)), X
        )
    ),
    "root: z has shape (), expected (..., n)": lambda: bpref.root(kepler()).forward(jnp.ones(()), jnp.ones(())),
    "TypeError: root: what start gives has dtype int32, expected a floating-point dtype such as float32": (
        lambda: bpref.root(kepler()).forward(jnp.ones(()), jnp.ones(2, jnp.int32))
    ),
    "TypeError: fixed_point: dropout in it is stateful, or shares arrays, and fixed_point gives its parts x alone; "
    "expected layers without, or serial and its like around them": (
        lambda: bpref.fixed_point(bpref.stateful(bpref.dropout(0.5)))
    ),
}


test_wrong_calls_are_refused = refusals(WRONG)
