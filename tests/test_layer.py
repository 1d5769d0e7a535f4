"""The bridge, and what tells trainable leaves from the rest."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.verify import oracle
from tests.conftest import SEED

pytestmark = pytest.mark.quick

NETWORK = bpref.serial(bpref.linear(5), bpref.gelu(), bpref.linear(1))
X = jnp.asarray(np.random.default_rng(SEED).normal(size=(7, 3)), jnp.float32)


def test_what_differentiates_the_bridge_runs_the_hand_written_backward():
    """A backward that is twice too large is what `jax.vjp` of the bridge then gives: it is the one that runs."""
    layer = bpref.tanh()
    double = layer._replace(backward=lambda p, c, dy: layer.backward(p, c, 2 * dy))
    _, cotangents = oracle.with_cotangents(bpref.as_function(layer), (), X)
    _, twice = oracle.with_cotangents(bpref.as_function(double), (), X)
    np.testing.assert_allclose(twice(X)[1], 2 * cotangents(X)[1], rtol=1e-6)


def test_a_flax_module_trains_a_layer_through_its_hand_written_backward():
    class Hand(nn.Module):
        @nn.compact
        def __call__(self, x):
            params = self.param("network", NETWORK.init, x)
            return nn.Dense(1, name="head")(bpref.as_function(NETWORK)(params, x))

    model = Hand()
    variables = model.init(jax.random.key(SEED), X)
    gradient = oracle.gradient(lambda v: (model.apply(v, X) ** 2).mean())(variables)[0]["params"]

    head = variables["params"]["head"]
    y, cache = NETWORK.forward(variables["params"]["network"], X)
    dy = 2 * (y * head["kernel"] + jnp.broadcast_to(head["bias"], y.shape)) / len(X) * head["kernel"]
    dparams, _ = NETWORK.backward(variables["params"]["network"], cache, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), gradient["network"], dparams)


def test_a_cotangent_of_none_is_zero_through_the_bridge():
    layer = bpref.Layer(
        bpref.tanh().init,
        lambda params, x: (params["scale"] * x, x),
        lambda params, x, dy: ({"scale": jnp.vdot(x, dy), "mean": None, "count": None}, params["scale"] * dy),
        "scale",
    )
    params = {"scale": jnp.float32(2), "mean": jnp.ones(3), "count": jnp.int32(4)}
    dparams, dx = oracle.gradient(lambda p, x: bpref.as_function(layer)(p, x).sum())(params, X)
    assert float(dparams["scale"]) == pytest.approx(float(X.sum()), rel=1e-5)
    np.testing.assert_array_equal(dparams["mean"], 0)
    assert dparams["count"] is None
    np.testing.assert_array_equal(dx, 2)
    assert bpref.trainable(layer, params, X) == {"scale": True, "mean": False, "count": False}


def test_a_layer_may_be_written_where_functions_know_no_module():
    names = {"bpref": bpref}
    exec(
        "double = bpref.Layer(bpref.tanh().init, lambda p, x: (2 * x, ()), lambda p, c, dy: ((), 2 * dy), 'double')",
        names,
    )
    np.testing.assert_array_equal(bpref.backpropagate(names["double"], (), X, X)[2], 2 * X)


def test_a_subtree_without_cotangent_is_not_trained():
    layer = bpref.Layer(
        bpref.tanh().init,
        lambda params, x: (x, ()),
        lambda params, cache, dy: ({"state": None, "W": dy}, dy),
        "state",
    )
    params = {"state": {"mean": jnp.ones(2), "key": jax.random.key(0)}, "W": jnp.ones((7, 3))}
    assert bpref.trainable(layer, params, X) == {"state": {"mean": False, "key": False}, "W": True}


OF_TWO = bpref.parallel(bpref.tanh(), bpref.softmax())
WRONG_COTANGENTS = {
    "fewer axes": (bpref.relu(), (), X, jnp.ones(3), ValueError, "relu: dy has shape (3,), y has (7, 3)"),
    "one column": (bpref.softmax(), (), X, jnp.ones((7, 1)), ValueError, "softmax: dy has shape (7, 1), y has (7, 3)"),
    "integers": (
        bpref.relu(),
        (),
        X,
        jnp.ones((7, 3), jnp.int32),
        TypeError,
        "relu: dy has dtype int32, y has float32; cast it to y's",
    ),
    "a list": (bpref.relu(), (), X, [X], TypeError, "relu: dy is a list, expected an array"),
    "one for two": (
        OF_TWO,
        ((), ()),
        (X, X),
        X,
        ValueError,
        "parallel: dy has the tree PyTreeDef(*), y has PyTreeDef((*, *))",
    ),
    "a word of two": (OF_TWO, ((), ()), (X, X), (X, "one"), TypeError, "parallel: dy[1] is a str, expected an array"),
    "another of two": (
        OF_TWO,
        ((), ()),
        (X, X),
        (X, X[:1]),
        ValueError,
        "parallel: dy[1] has shape (1, 3), y[1] has (7, 3)",
    ),
}


@pytest.mark.parametrize(
    ("layer", "params", "x", "dy", "kind", "message"), WRONG_COTANGENTS.values(), ids=WRONG_COTANGENTS
)
def test_a_cotangent_that_does_not_fit_the_output_is_refused(layer, params, x, dy, kind, message):
    with pytest.raises(kind) as refused:
        bpref.backpropagate(layer, params, x, dy)
    assert str(refused.value) == message


def test_integers_in_the_output_need_no_cotangent():
    layer, x = bpref.top_k(2), X
    y, _, dx = bpref.backpropagate(layer, (), x, jax.tree.map(_cotangent, layer.forward((), x)[0]))
    assert dx.shape == x.shape
    assert any(jnp.issubdtype(v.dtype, jnp.integer) for v in jax.tree.leaves(y))


def _cotangent(v):
    return jnp.ones_like(v) if jnp.issubdtype(v.dtype, jnp.floating) else None


def test_backpropagate_takes_the_cotangent_of_a_tree():
    both = bpref.parallel(bpref.tanh(), bpref.relu())
    y, dparams, dx = bpref.backpropagate(both, ((), ()), (X, X), (X, X))
    assert dparams == ((), ())
    np.testing.assert_allclose(dx[0], X * (1 - y[0] ** 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dx[1], np.where(X > 0, X, 0))
