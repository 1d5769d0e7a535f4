"""hyper_connection and hyper_merge: beside PyTorch's autograd, and what a network of them is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.formulas.sinkhorn import steps_taken
from bpref.rules.block.hyper_connection import maps, mixing
from bpref.verify import oracle
from tests.refusing import refusals
from tests.rules.beside_torch import assert_same
from tests.rules.sweeping import backpropagate

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

STREAMS, WIDTH = 4, 3


def drawn(rng, T=5):
    m = STREAMS * (STREAMS + 2)
    W = rng.uniform(-0.5, 0.5, (m, STREAMS * WIDTH))
    return bpref.HyperConnectionParams._make((W, rng.normal(size=3), rng.normal(size=m))), rng.normal(
        size=(T, STREAMS, WIDTH)
    )


def test_hyper_connection(rng):
    def twin(params, x):
        """Sinkhorn and Knopp's division by sums, of exponentials."""
        W, alpha, bias = params
        X = torch.nn.functional.rms_norm(x.flatten(1), (STREAMS * WIDTH,), eps=1e-6)
        of = [X @ W[k].T * alpha[i] + bias[k] for i, k in enumerate((slice(0, 4), slice(4, 8), slice(8, 24)))]
        M = torch.exp(of[2].unflatten(1, (STREAMS, STREAMS)))
        for _ in range(20):
            M = M / M.sum(1, keepdim=True)
            M = M / M.sum(2, keepdim=True)
        return (torch.sigmoid(of[0])[:, None] @ x)[:, 0], M @ x, 2 * torch.sigmoid(of[1])

    assert_same(bpref.hyper_connection(), twin, *drawn(rng))


def test_the_mixing_has_rows_and_columns_of_sum_1():
    with jax.enable_x64(True):
        params, x = drawn(np.random.default_rng(0))
        s = 3 * jnp.asarray(np.random.default_rng(1).normal(size=(5, 24)))
        _, _, K = maps(params, s, STREAMS)
        one = jnp.ones((5, STREAMS))
        M = mixing(K, *steps_taken(K, one, one, 300))
        np.testing.assert_allclose(jnp.sum(M, 1), 1, rtol=1e-8)
        np.testing.assert_allclose(jnp.sum(M, 2), 1, rtol=1e-12)
        assert np.all(np.linalg.norm(M, 2, (1, 2)) <= 1 + 1e-8)
        (_, mixed, _), _ = bpref.hyper_connection(steps=300).forward(params, jnp.asarray(x))
        np.testing.assert_allclose(jnp.sum(mixed, 1), jnp.sum(x, 1), rtol=1e-6)


def test_one_stream_is_a_residual_connection_with_gates():
    layer = bpref.hyper_connection()
    x = jnp.arange(6.0).reshape(2, 1, 3)
    params = layer.init(jax.random.key(0), x)._replace(alpha=jnp.zeros(3))
    (read, mixed, gates), _ = layer.forward(params, x)
    np.testing.assert_allclose(mixed, x)
    np.testing.assert_allclose(read, x[:, 0] / 2)
    np.testing.assert_allclose(gates, 1)


def test_a_network_of_them_is_differentiated_right():
    f = bpref.serial(bpref.linear(WIDTH), bpref.tanh())
    around = bpref.serial(
        bpref.hyper_connection(), bpref.parallel(f, bpref.identity(), bpref.identity()), bpref.hyper_merge()
    )
    network = bpref.scan(around, 3)
    with jax.enable_x64(True):
        x = jnp.asarray(drawn(np.random.default_rng(0))[1])
        params = network.init(jax.random.key(0), x)
        y, dparams, dx = backpropagate(network, params, x, jnp.cos(x))
        assert y.shape == x.shape
        expected = jax.jit(
            lambda p, x: oracle.with_cotangents(lambda p, x: network.forward(p, x)[0], p, x)[1](jnp.cos(x))
        )(params, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), (dparams, dx), expected)
    assert max(leaf.error for leaf in bpref.check_leaves(network, params, x)) < 1e-10


test_wrong_calls_are_refused = refusals(
    {
        "hyper_connection: steps is 0, expected a positive integer": lambda: bpref.hyper_connection(steps=0),
        "hyper_connection: x has shape (2, 0, 3), expected (*b, n, C) with n > 0 and C > 0": (
            lambda: bpref.hyper_connection().init(jax.random.key(0), jnp.ones((2, 0, 3)))
        ),
        "hyper_merge: gates has shape (2, 3), expected (*b, n) = (2, 4) by made (2, 3) and mixed (2, 4, 3)": (
            lambda: bpref.hyper_merge().forward((), (jnp.ones((2, 3)), jnp.ones((2, 4, 3)), jnp.ones((2, 3))))
        ),
    },
)
