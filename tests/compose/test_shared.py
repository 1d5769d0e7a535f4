"""One array at several places: its cotangent is the sum over them, whatever a leaf makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.verify import oracle
from tests.conftest import SEED
from tests.refusing import refusals

V, D, TURNS = 7, 4, 3
RNG = np.random.default_rng(SEED)
TOKENS, LABELS = RNG.integers(V, size=(2, 5)), RNG.integers(V, size=(2, 5))
X = RNG.normal(size=(5, D)).astype(np.float32)


def block() -> bpref.Layer:
    return bpref.residual(norm=bpref.rms_norm(), up=bpref.linear(6), act=bpref.tanh(), down=bpref.linear(D))


def rms(gamma, x):
    return gamma[None] * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def plain_block(params, x):
    n = rms(params["norm"].scale, x)
    h = jnp.tanh(n @ params["up"].W.T + params["up"].b[None])
    return x + h @ params["down"].W.T + params["down"].b[None]


def cross_entropy(z):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), LABELS.reshape(-1, 1), 1))


def gpt(head: bpref.Layer, **more: bpref.Layer) -> bpref.Layer:
    return bpref.serial(embed=bpref.embedding(V, D), block=block(), **more, head=head)


def plain_gpt(params):
    W, net = params["shared"]["network.embed.W"], params["network"]["network"]
    return cross_entropy(plain_block(net["block"], W[TOKENS].reshape(-1, D)) @ W.T)


def tied_head() -> bpref.Layer:
    J = bpref.objective(network=gpt(bpref.linear(V, bias=False)), loss=bpref.softmax_cross_entropy())
    return bpref.shared(J, ("network.embed.W", "network.head.W"))


def tied_loss() -> bpref.Layer:
    J = bpref.objective(network=gpt(bpref.identity()), loss=bpref.fused_linear_cross_entropy(V, block=3))
    return bpref.shared(J, ("network.embed.W", "loss.W"))


def plain_universal(params):
    x = X.astype(np.float64)
    of_block = {
        name: type_(*(params["shared"].get(f"blocks.{name}.{field}") for field in type_._fields))
        for name, type_ in (("norm", bpref.RmsNormParams), ("up", bpref.LinearParams), ("down", bpref.LinearParams))
    }
    for _ in range(TURNS):
        x = plain_block(of_block, x)
    return jnp.mean((x @ params["network"]["head"].W.T + params["network"]["head"].b[None]) ** 2) / 2


def universal(turn=bpref.remat) -> bpref.Layer:
    network = bpref.serial(blocks=bpref.scan(turn(block()), TURNS), head=bpref.linear(D), J=mean_of_squares())
    return bpref.shared(network, "blocks")


def mean_of_squares() -> bpref.Layer:
    def forward(params, x):
        return jnp.mean(x**2) / 2, x

    return bpref.Layer(lambda key, x: (), forward, lambda params, x, dJ: ((), dJ * x / x.size), "mean of squares")


def plain_couplings(params):
    x1 = x2 = X.astype(np.float64)
    W = params["shared"]["streams.0.W"]
    for _ in range(TURNS):
        x1 = x1 + x2 @ W.T
        x2 = x2 + x1 @ W.T
    return (jnp.mean(x1**2) + jnp.mean((x2 @ W.T) ** 2)) / 4


def couplings() -> bpref.Layer:
    """f and g of every coupling are one, and a layer of `parallel` after them too."""
    f = bpref.linear(D, bias=False)
    network = bpref.serial(
        both=bpref.fan_out(bpref.identity(), bpref.identity()),
        streams=bpref.reversible(f, f, TURNS),
        after=bpref.parallel(bpref.identity(), f),
        one=bpref.fan_in("concatenation"),
        J=mean_of_squares(),
    )
    return bpref.shared(network, ("streams.0", "streams.1", "after.1"))


NETWORKS = {
    "a tied head": (tied_head, (TOKENS.reshape(-1), LABELS.reshape(-1)), plain_gpt),
    "a tied fused loss": (tied_loss, (TOKENS.reshape(-1), LABELS.reshape(-1)), plain_gpt),
    "a universal transformer": (universal, X, plain_universal),
    "a universal transformer without remat": (lambda: universal(lambda f: f), X, plain_universal),
    "couplings and streams": (couplings, X, plain_couplings),
}
EVERY_NETWORK = pytest.mark.parametrize(("made", "x", "plain"), NETWORKS.values(), ids=NETWORKS)


def begun(made, x):
    """The objective, its params and x; in float64 where JAX has it."""
    J = made()
    x = jax.tree.map(lambda v: v.astype(float) if v.dtype == X.dtype and jax.config.jax_enable_x64 else v, x)
    return J, J.init(jax.random.key(SEED), x), x


def assert_equal(a, b, atol=1e-12):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for v, w in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(v, w, rtol=1e-12, atol=atol)


@EVERY_NETWORK
def test_the_gradient_is_that_of_the_plain_function(made, x, plain):
    with jax.enable_x64(True):
        J, params, x = begun(made, x)

        @jax.jit
        def both(params):
            through = bpref.as_function(J)
            return (
                bpref.backpropagate(J, params, x)[:2],
                oracle.with_cotangents(plain, params)[0],
                oracle.gradient(plain)(params)[0],
                oracle.gradient(lambda p: through(p, x))(params)[0],
            )

        (value, dparams), truth, expected, bridged = both(params)
        np.testing.assert_allclose(value, truth, rtol=1e-13)
        assert_equal(dparams, expected)
        assert_equal(dparams, bridged)
        assert_equal(bpref.backpropagate(J, params, x)[1], expected)


OPTIMIZERS = {"sgd": optax.sgd(1e-2), "momentum": optax.sgd(1e-2, 0.9), "adam": optax.adam(1e-2)}


@pytest.mark.usefixtures("standard_promotion")
@EVERY_NETWORK
def test_an_update_in_the_backward_is_that_of_the_summed_gradient(made, x, plain):
    with jax.enable_x64(True):
        J, params, x = begun(made, x)
        for optimizer in OPTIMIZERS.values():
            updating = bpref.map_leaves(bpref.update_in_backward(optimizer), J)
            wrapped = updating.init(jax.random.key(SEED), x)
            stepped, state = params, optimizer.init(params)
            assert_equal(bpref.params_of(wrapped), params)
            step = jax.jit(lambda p, J=updating: bpref.backpropagate(J, p, x)[1])
            gradient = jax.jit(lambda p: oracle.gradient(plain)(p)[0])
            for _ in range(3):
                wrapped = step(wrapped)
                updates, state = optimizer.update(gradient(stepped), state, stepped)
                stepped = optax.apply_updates(stepped, updates)
            assert_equal(bpref.params_of(wrapped), stepped, atol=1e-11)


def test_one_entry_is_shown_drawn_and_trained():
    x = (TOKENS.reshape(-1), LABELS.reshape(-1))
    J = tied_head()
    params = J.init(jax.random.key(SEED), x)
    assert jax.tree.map(jnp.shape, params["shared"]) == {"network.embed.W": (V, D)}
    arrays = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(params)]
    assert sum(name.endswith("embed.W") or name.endswith("head.W") for name in arrays) == 1
    assert all(jax.tree.leaves(bpref.trainable(J, params, x)))
    assert bpref.leaf_paths(J)[-1] == "shared network.embed.W"
    untied = bpref.objective(network=gpt(bpref.linear(V, bias=False)), loss=bpref.softmax_cross_entropy())
    drawn = untied.init(jax.random.key(SEED), x)["network"]
    assert_equal(params["shared"]["network.embed.W"], drawn["embed"].W)
    assert_equal(params["network"]["network"]["block"], drawn["block"])
    assert {v.shape for v in jax.tree.leaves(universal().init(jax.random.key(0), X)["shared"])} == {
        (D,),
        (6, D),
        (6,),
        (D, 6),
    }


@EVERY_NETWORK
def test_check_leaves_accepts_it_and_names_a_wrong_reader(made, x, plain):
    J, params, x = begun(made, x)
    reports = bpref.check_leaves(J, params, x)
    assert [r.path for r in reports] == bpref.leaf_paths(J)
    assert max(r.error for r in reports) < 1e-10
    wrong = [path for path, leaf in zip(bpref.leaf_paths(J), list(each_leaf(J)), strict=True) if leaf.reads][-1]
    paths = iter(bpref.leaf_paths(J))
    spoilt = bpref.map_leaves(lambda leaf: doubled(leaf) if next(paths) == wrong else leaf, J)
    (found,) = [r for r in bpref.check_leaves(spoilt, params, x) if r.error > 1e-10]
    assert (found.path, round(found.error, 6)) == (wrong, 1.0)
    assert found.where.startswith("data['")


def each_leaf(layer):
    seen = []
    bpref.map_leaves(lambda leaf: (seen.append(leaf), leaf)[1], layer)
    return seen


def doubled(leaf: bpref.Layer) -> bpref.Layer:
    """The leaf with twice the cotangent of what it shares."""

    def backward(params, cache, dy):
        dparams, dx = leaf.backward(params, cache, dy)
        return dparams, dx._replace(data=jax.tree.map(lambda d: 2 * d, dx.data))

    return leaf._replace(backward=backward)


def test_a_universal_transformer_with_dropout_and_segments_has_a_state():
    attention = bpref.reading(bpref.multi_head_attention(2, causal=True), bpref.Sequences, "segments")
    turn = bpref.serial(bpref.residual(attend=attention, drop=bpref.dropout(0.4)), bpref.residual(mlp=bpref.linear(D)))
    network = bpref.serial(
        embed=bpref.embedding(V, D), blocks=bpref.scan(bpref.remat(turn), TURNS), head=bpref.linear(V, bias=False)
    )
    J = bpref.objective(network=network, loss=bpref.sequence_cross_entropy())
    J = bpref.stateful(bpref.shared(J, ("network.embed.W", "network.head.W"), "network.blocks"))
    segments = np.repeat([[0, 0, 1, 1, 1]], 2, 0)
    given = bpref.With((TOKENS, (LABELS, np.ones((2, 5), bool))), data={"segments": segments})
    params, state = bpref.begin(J, jax.random.key(SEED), given)
    given = given._replace(state=state)
    assert (
        len({k.tobytes() for k in jax.random.key_data(state["network"]["network"]["blocks"][0]["drop"]["key"])})
        == TURNS
    )
    (value, after), dparams, dx = jax.jit(lambda p: bpref.backpropagate(J, p, given))(params)
    assert (dx.state, dx.data) == (None, None)

    def plain(params):
        return J.forward(params, given)[0][0]

    expected = jax.jit(lambda p: oracle.gradient(plain)(p)[0])(params)
    for d, t in zip(jax.tree.leaves(dparams), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(d, t, rtol=1e-3, atol=1e-6)
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert max(r.error for r in bpref.check_leaves(J, params, given)) < 1e-10
    (dropped, _), _ = bpref.evaluation(J).forward(params, given)
    assert abs(float(dropped - value)) > 1e-3


def test_in_bfloat16_the_sum_over_turns_is_rounded_once():
    """Cotangents of 1.0, one for each turn: added up in bfloat16, each further one is lost above 256."""
    turns = 1024
    add = bpref.Layer(
        lambda key, x: jnp.zeros((), x.dtype), lambda W, x: (x + W, ()), lambda W, cache, dy: (dy, dy), "add"
    )
    layer = bpref.shared(bpref.scan(add, turns))
    params = layer.init(jax.random.key(0), jnp.zeros((), jnp.bfloat16))
    _, dparams, _ = bpref.backpropagate(layer, params, jnp.zeros((), jnp.bfloat16), jnp.ones((), jnp.bfloat16))
    (d,) = jax.tree.leaves(dparams)
    assert (d.dtype, float(d)) == (jnp.bfloat16, turns)


def test_params_in_float32_are_cast_where_they_are_read():
    net = bpref.shared(gpt(bpref.linear(V, bias=False)), ("embed.W", "head.W"))
    mixed = bpref.map_leaves(bpref.cast_params(jnp.bfloat16), net)
    params = mixed.init(jax.random.key(SEED), TOKENS)
    y, dparams, _ = bpref.backpropagate(mixed, params, TOKENS, jnp.ones((2, 5, V), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves((params, dparams))} == {jnp.dtype(jnp.float32)}


def test_nothing_shared_is_kept_for_the_backward():
    kept = jax.eval_shape(lambda p: universal().forward(p, X)[1], universal().init(jax.random.key(0), X))
    assert {v.shape for v in jax.tree.leaves(kept["blocks"])} == {(TURNS, *X.shape)}


def test_a_part_that_shares_may_stand_in_one_that_shares_more():
    inner = bpref.shared(bpref.scan(bpref.serial(a=bpref.linear(D), b=bpref.linear(D)), 2), "a")
    layer = bpref.shared(bpref.serial(first=inner, last=bpref.linear(D)), ("first.network.b", "last"))
    params = layer.init(jax.random.key(SEED), X)
    assert set(params["shared"]) == {"first.network.b.W", "first.network.b.b"}
    assert set(params["network"]["first"]["shared"]) == {"a.W", "a.b"}
    _, dparams, _ = bpref.backpropagate(layer, params, X, X)
    _, cotangents = oracle.with_cotangents(lambda p: layer.forward(p, X)[0], params)
    for d, t in zip(jax.tree.leaves(dparams), jax.tree.leaves(cotangents(X)[0]), strict=True):
        np.testing.assert_allclose(d, t, rtol=1e-4, atol=1e-5)


TWO = bpref.serial(a=bpref.linear(3), b=bpref.linear(2, bias=False), c=bpref.dropout())
BAD_CALLS = {
    "TypeError: shared: network is an int, expected a Layer...": lambda: bpref.shared(3),
    "TypeError: shared: places are (('a', 3),), expected paths, or tuples of paths that mean the same arrays": (
        lambda: bpref.shared(TWO, ("a", 3))
    ),
    "shared: 'head.W' is no path; the leaves are a linear, b linear, c dropout": (
        lambda: bpref.shared(TWO, ("a.W", "head.W"))
    ),
    "shared: 'b.V' is no path of arrays that are trained; there are a.W, a.b, b.W": (
        lambda: bpref.shared(TWO, ("a.W", "b.V")).init(jax.random.key(0), X)
    ),
    "shared: 'c.key' is no path of arrays that are trained; there are a.W, a.b, b.W": (
        lambda: bpref.shared(TWO, "c.key").init(jax.random.key(0), X)
    ),
    "shared: b.W is float32[2, 3], a.W is float32[3, 4]; expected the same": (
        lambda: bpref.shared(TWO, ("a.W", "b.W")).init(jax.random.key(0), jnp.ones((1, 4)))
    ),
    "shared: a.W is float32[3, 3], b.W is float32[2, 3]; expected the same": (
        lambda: bpref.shared(TWO, ("b", "a")).init(jax.random.key(0), jnp.ones((1, 3)))
    ),
    "shared: there is no b.b, which a.b is to be the same as": (
        lambda: bpref.shared(bpref.serial(a=bpref.linear(4), b=bpref.linear(4, False)), ("b", "a")).init(
            jax.random.key(0), jnp.ones((1, 4))
        )
    ),
    "shared: 'b.W' is shared twice": lambda: bpref.shared(TWO, ("a.W", "b.W"), ("b.W", "a.b")),
    "shared: 'a.W' is shared twice, as 'a' is": lambda: bpref.shared(TWO, "a", ("b.W", "a.W")),
}


NO_GRADIENT = {
    "update_in_backward": bpref.update_in_backward(optax.sgd(0.1)),
    "per_example_norms": bpref.per_example_norms,
    "per_example_gradients": bpref.per_example_gradients,
    "split_backward": bpref.split_backward,
    "watch": bpref.watch,
    "feedback_alignment": bpref.feedback_alignment,
    "sign_symmetry": bpref.sign_symmetry,
    "checked": bpref.checked,
}


@pytest.mark.parametrize("transform", NO_GRADIENT)
def test_a_transformed_network_is_refused(transform):
    network = bpref.map_leaves(NO_GRADIENT[transform], TWO)
    for taking, places in ((bpref.shared, [("a.W", "b.W")]), (bpref.stateful, [])):
        with pytest.raises(TypeError) as refused:
            taking(network, *places)
        message = f"linear is transformed by {transform} already; expected map_leaves of what stateful or shared gives"
        assert str(refused.value) == f"{taking.__name__}: {message}"


test_bad_calls_are_refused = refusals(BAD_CALLS)
