"""Learning without W on the way back: exact where the feedback is W's, as defined where not, and it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.train.data.embedded import digits
from bpref.train.data.split import split
from bpref.train.loop import fit
from bpref.train.network import accuracy
from tests.conftest import SEED
from tests.refusing import refusals
from tests.rules.sweeping import in_one_program
from tests.transforms.compositions import close, images

RNG = np.random.default_rng(SEED)


def is_feedback(node):
    return isinstance(node, bpref.Feedback)


def swept(network, params, x, dy=None):
    return jax.device_get(in_one_program(lambda p, x: bpref.backpropagate(network, p, x, dy)[1])(params, x))


def test_feedback_by_the_forwards_own_weights_is_the_gradient_and_every_turn_has_its_own():
    """Convolutions inside of scan and remat, a linear head."""
    with jax.enable_x64(True):
        J, x = images()
        x = jax.tree.map(jnp.asarray, x)
        fed = bpref.map_leaves(bpref.feedback_alignment, J)
        params = fed.init(jax.random.key(SEED), x)
        B = params["network"]["blocks"][0].B
        assert B.shape == (2, 3, 3, 3, 3)
        assert (B[0] != B[1]).all()
        same = jax.tree.map(lambda n: n._replace(B=n.params.W) if is_feedback(n) else n, params, is_leaf=is_feedback)
        plain = bpref.params_of(params)
        got, expected = swept(fed, same, x), swept(J, plain, x)
        other = swept(fed, params, x)
    close(jax.tree.map(lambda n: n.params if is_feedback(n) else n, got, is_leaf=is_feedback), expected, 1e-12)
    assert other["network"]["blocks"][0].B is None
    close(other["network"]["head"].params, expected["network"]["head"], 1e-12)
    assert np.abs(other["network"]["stem"].params.W - expected["network"]["stem"].W).max() > 1e-3


def mlp():
    J = bpref.objective(
        bpref.serial(bpref.linear(5), bpref.tanh(), bpref.linear(4), bpref.tanh(), bpref.linear(3)),
        bpref.square("batch_mean"),
    )
    return J, tuple(jnp.asarray(RNG.normal(size=s)) for s in ((6, 4), (6, 3)))


def by_definition(params, x, carried):
    """The gradient of `mlp`, written out, with `carried(l, dZ)` in the place of dZ W."""
    ((W1, b1), _, (W2, b2), _, (W3, b3)), (X, y) = jax.device_get((params[0], x))
    A1 = np.tanh(X @ W1.T + b1)
    A2 = np.tanh(A1 @ W2.T + b2)
    dZ3 = (A2 @ W3.T + b3 - y) / len(X)
    dZ2 = np.asarray(carried(3, dZ3)) * (1 - A2**2)
    dZ1 = np.asarray(carried(2, dZ2)) * (1 - A1**2)
    return [(dZ.T @ A, dZ.sum(0)) for dZ, A in ((dZ1, X), (dZ2, A1), (dZ3, A2))]


def test_all_are_what_they_are_defined_as():
    with jax.enable_x64(True):
        J, x = mlp()
        fed, signed = (bpref.map_leaves(f, J) for f in (bpref.feedback_alignment, bpref.sign_symmetry))
        params = fed.init(jax.random.key(SEED), x)
        plain = bpref.params_of(params)
        Bs = {3: params[0][4].B, 2: params[0][2].B}
        signs = {l: jnp.abs(W).mean() * jnp.sign(W) for l, W in ((3, plain[0][4].W), (2, plain[0][2].W))}
        got = [tuple(d.params) for d in swept(fed, params, x)[0][::2]]
        close(got, by_definition(plain, x, lambda l, dZ: dZ @ Bs[l]), 1e-12)
        got = [tuple(d) for d in swept(signed, plain, x)[0][::2]]
        close(got, by_definition(plain, x, lambda l, dZ: dZ @ signs[l]), 1e-12)

        hidden, head = [bpref.serial(bpref.linear(n), bpref.tanh()) for n in (5, 4)], bpref.linear(3)
        direct = bpref.objective(bpref.direct_feedback(*hidden, head), bpref.square("batch_mean"))
        B1, B2 = feedback = direct.init(jax.random.key(SEED), x)[0]["feedback"]
        own = {"feedback": feedback, "network": ((plain[0][0], ()), (plain[0][2], ()), plain[0][4])}
        dparams = swept(direct, (own, ()), x)[0]
        got, es = [tuple(d) for d in (*(d[0] for d in dparams["network"][:2]), dparams["network"][2])], []
        expected = by_definition(plain, x, lambda l, dZ: es.append(dZ) or es[0] @ {3: B2, 2: B1}[l])
        close(got, expected, 1e-12)
        assert dparams["feedback"] == (None, None)


def test_direct_feedback_by_the_product_of_the_weights_above_is_the_gradient():
    with jax.enable_x64(True):
        widths, x = (5, 4, 3), (jnp.asarray(RNG.normal(size=(6, 4))), jnp.asarray(RNG.normal(size=(6, 3))))
        layers = {name: bpref.linear(n) for name, n in zip("abc", widths, strict=True)}
        direct, plain = (
            bpref.objective(f(**layers), bpref.square("batch_mean")) for f in (bpref.direct_feedback, bpref.serial)
        )
        (params, _) = direct.init(jax.random.key(SEED), x)
        of = params["network"]
        exact = {"feedback": (of["c"].W @ of["b"].W, of["c"].W), "network": of}
        close(swept(direct, (exact, ()), x)[0]["network"], swept(plain, (of, ()), x)[0], 1e-12)


def test_direct_feedback_goes_into_images_and_through_layers_with_state():
    hidden = bpref.serial(bpref.convolution(2, (3, 3)), bpref.relu(), bpref.dropout(0.5))
    network = bpref.direct_feedback(hidden, bpref.serial(bpref.flatten(), bpref.linear(3)))
    J = bpref.stateful(bpref.objective(network, bpref.softmax_cross_entropy()))
    given = bpref.With((jnp.ones((2, 4, 4, 1)), jnp.arange(2)))
    params, state = bpref.begin(J, jax.random.key(0), given)
    assert params[0]["feedback"][0].shape == (3, 4, 4, 2)
    _, dparams, _ = bpref.backpropagate(J, params, given._replace(state=state))
    assert float(jnp.abs(dparams[0]["network"][0][0].W).max()) > 0


def test_target_propagation_through_the_transposed_of_an_orthogonal_matrix_is_the_gradient():
    with jax.enable_x64(True):
        Q = jnp.asarray(np.linalg.qr(RNG.normal(size=(4, 4)))[0])
        x = tuple(jnp.asarray(RNG.normal(size=s)) for s in ((6, 4), (6, 3)))
        plain = bpref.objective(
            bpref.serial(bpref.linear(4), bpref.linear(4), bpref.linear(3)), bpref.square("batch_mean")
        )
        down = [bpref.target_propagation(bpref.linear(4), bpref.linear(4), step) for step in (1.0, 0.5)]
        J = bpref.objective(bpref.serial(*down, bpref.linear(3)), bpref.square("batch_mean"))
        head = bpref.linear(3).init(jax.random.key(1), x[0])
        f, g = bpref.LinearParams(Q, jnp.zeros(4)), bpref.LinearParams(Q.T, jnp.zeros(4))
        got = swept(J, (((f, g), (f, g), head), ()), x)[0]
        expected = swept(plain, ((f, f, head), ()), x)[0]
    close([got[0][0], got[1][0], got[2]], list(expected), 1e-12)
    close(got[0][1], jax.tree.map(np.zeros_like, got[0][1]), 1e-12)  # all of x is found again


def test_target_propagation_is_what_it_is_defined_as():
    with jax.enable_x64(True):
        f, g, step = bpref.serial(bpref.linear(5), bpref.tanh()), bpref.serial(bpref.linear(4), bpref.tanh()), 0.7
        layer = bpref.target_propagation(f, g, step)
        x, dh = (jnp.asarray(RNG.normal(size=(6, n))) for n in (4, 5))
        params = layer.init(jax.random.key(SEED), x)
        h, dparams, dx = bpref.backpropagate(layer, params, x, dh)
        G, x, h, dh = jax.device_get((params[1][0], x, h, dh))

        def inverse(h):
            return np.tanh(h @ G.W.T + G.b)

        target = h - step * dh
        close(dx, (inverse(h) - inverse(target)) / step, 1e-12)
        dZ = (h - target) / step * (1 - h**2)
        close(tuple(dparams[0][0]), (dZ.T @ x, dZ.sum(0)), 1e-12)
        dZ = (inverse(h) - x) / 6 * (1 - inverse(h) ** 2)
        close(tuple(dparams[1][0]), (dZ.T @ h, dZ.sum(0)), 1e-12)


def plain_digits():
    return bpref.serial(bpref.linear(64), bpref.tanh(), bpref.linear(64), bpref.tanh(), bpref.linear(10))


def blocks(n):
    return bpref.serial(bpref.linear(n), bpref.tanh())


LEARNING = {
    "feedback alignment": lambda: bpref.map_leaves(bpref.feedback_alignment, plain_digits()),
    "sign symmetry": lambda: bpref.map_leaves(bpref.sign_symmetry, plain_digits()),
    "direct feedback": lambda: bpref.direct_feedback(blocks(64), blocks(64), bpref.linear(10)),
    "target propagation": lambda: bpref.serial(
        blocks(64), bpref.target_propagation(blocks(64), blocks(64), 10.0), bpref.linear(10)
    ),
}


@pytest.mark.parametrize("made", LEARNING.values(), ids=LEARNING)
def test_the_digits_are_learnt(made, standard_promotion):
    of = split(digits(), 0)
    train, test = ((X.astype(np.float32), y) for X, y in ((of.X, of.y), (of.X_test, of.y_test)))
    fitted = fit(
        made(), bpref.softmax_cross_entropy(), optax.adam(3e-3), train, test, epochs=10, batch_size=32, metric=accuracy
    )
    assert fitted.history[-1].test_score > 0.95


BAD_CALLS = {
    "TypeError: feedback_alignment: leaf is an int, expected a Layer, one...": lambda: bpref.feedback_alignment(3),
    "TypeError: sign_symmetry: leaf is an int, expected a Layer, one that...": lambda: bpref.sign_symmetry(3),
    "direct_feedback: no layer was given, expected at least one": lambda: bpref.direct_feedback(),
    "direct_feedback: the output of fan_out is a tuple of 2, expected an array of examples (N, ...)": (
        lambda: bpref.direct_feedback(bpref.fan_out(bpref.tanh(), bpref.tanh()), bpref.fan_in("sum")).init(
            jax.random.key(0), jnp.ones((2, 3))
        )
    ),
    "target_propagation: step is 0, expected a positive number": (
        lambda: bpref.target_propagation(bpref.linear(3), bpref.linear(3), 0)
    ),
    "target_propagation: the output of linear is float32[2, 3], expected that of its input, float32[2, 4]": (
        lambda: bpref.target_propagation(bpref.linear(3), bpref.linear(3)).init(jax.random.key(0), jnp.ones((2, 4)))
    ),
    "TypeError: target_propagation: dropout in it is stateful, or shares arrays, and target_propagation gives its "
    "parts...": (lambda: bpref.target_propagation(bpref.stateful(bpref.dropout(0.5)), bpref.linear(3))),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)
