"""State beside params: what is trained, what is carried along, and what comes with the data, each in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bpref
from bpref.rules import RULES
from bpref.verify import oracle
from bpref.verify.rules.draw import all_of_size, draw
from tests.conftest import SEED
from tests.refusing import refusals

RNG = np.random.default_rng(SEED)
V, D = 7, 8


def resnet() -> tuple[bpref.Layer, tuple]:
    """Two residual blocks with batch norm, on images of two classes."""
    half = [bpref.convolution(4, (3, 3), bias=False, padding="same"), bpref.batch_norm(momentum=0.5)]
    block = bpref.serial(bpref.residual(*half, bpref.relu(), *half), bpref.relu())
    network = bpref.serial(
        stem=bpref.convolution(4, (3, 3), padding="same"),
        blocks=bpref.scan(bpref.remat(block), 2),
        pool=bpref.global_pool(),
        head=bpref.linear(2),
    )
    X, y = RNG.normal(size=(8, 4, 4, 1)).astype(np.float32), np.arange(8) % 2
    return bpref.objective(network=network, loss=bpref.softmax_cross_entropy()), bpref.With((X, y))


def packed_transformer() -> tuple[bpref.Layer, bpref.With]:
    """Two scanned blocks with dropout, over rows into which two sequences are packed."""
    attention = bpref.multi_head_attention(2, causal=True, rope=1e4, bias=False)
    block = bpref.serial(
        bpref.residual(bpref.rms_norm(), bpref.reading(attention, bpref.Sequences, "segments"), bpref.dropout(0.1)),
        bpref.residual(bpref.mlp_block(12), bpref.dropout(0.1)),
    )
    network = bpref.serial(
        embed=bpref.embedding(V, D),
        blocks=bpref.scan(bpref.remat(block), 2),
        norm=bpref.rms_norm(),
        head=bpref.linear(V),
    )
    tokens, real = RNG.integers(V, size=(2, 6)), np.ones((2, 6), bool)
    data = {"segments": np.array([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])}
    batch = (tokens, (np.roll(tokens, -1, 1), real))
    return bpref.objective(network=network, loss=bpref.sequence_cross_entropy()), bpref.With(batch, data=data)


NETWORKS = {"a ResNet with batch norm": resnet, "a packed transformer with dropout": packed_transformer}
EVERY_NETWORK = pytest.mark.parametrize("made", NETWORKS.values(), ids=NETWORKS)
OPTIMIZERS = {
    "adamw": optax.adamw(1e-2),
    "adafactor": optax.adafactor(1e-2),
    "lamb": optax.lamb(1e-2),
    "clipped momentum": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
}


def begun(made):
    J, x = made()
    J = bpref.stateful(J)
    return J, x, *bpref.begin(J, jax.random.key(0), x)


def numbers(tree):
    """The leaves as numbers, keys too."""
    leaves = jax.tree.leaves(tree)
    are_keys = [jnp.issubdtype(v.dtype, jax.dtypes.prng_key) for v in leaves]
    return [np.asarray(jax.random.key_data(v) if is_key else v) for v, is_key in zip(leaves, are_keys, strict=True)]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@EVERY_NETWORK
def test_any_optimizer_trains_it(made, optimizer):
    J, x, params, state = begun(made)

    def step(carry, _):
        params, state, of_optimizer = carry
        (value, state), dparams, _ = bpref.backpropagate(J, params, x._replace(state=state))
        updates, of_optimizer = optimizer.update(dparams, of_optimizer, params)
        return (optax.apply_updates(params, updates), state, of_optimizer), value

    with jax.numpy_rank_promotion("allow"):
        run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30))
        (params, after, _), values = run((params, state, optimizer.init(params)))
    assert values.dtype == np.float32
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    evaluated = bpref.evaluation(J)
    (value, still), _ = jax.jit(evaluated.forward)(params, x._replace(state=after))
    assert np.isfinite(value)
    for a, b, c in zip(numbers(state), numbers(after), numbers(still), strict=True):
        assert (a != b).any(), "training moves every key and statistic"
        np.testing.assert_array_equal(b, c, "evaluation moves none")


@EVERY_NETWORK
def test_params_are_what_is_trained_and_the_gradient_is_exact(made):
    J, x, params, state = begun(made)
    given = x._replace(state=state)
    assert all(jax.tree.leaves(bpref.trainable(J, params, given)))
    bridged = bpref.as_function(J)

    @jax.jit
    def all_of(params, given):
        truth, cotangents = oracle.with_cotangents(lambda p: J.forward(p, given)[0][0], params)
        through = oracle_gradient(lambda p: bridged(p, given))(params)
        return bpref.backpropagate(J, params, given), through, truth, cotangents(jnp.ones(()))

    ((value, after), dparams, dx), through, truth, expected = all_of(params, given)
    assert jax.tree.structure(dparams) == jax.tree.structure(params)
    assert (dx.state, dx.data) == (None, None)
    np.testing.assert_allclose(value, truth, rtol=1e-5)
    for d, t in zip(jax.tree.leaves(dparams), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(d, t, rtol=2e-3, atol=2e-5)
    for came, own in zip(numbers(through), numbers((dparams, after)), strict=True):
        np.testing.assert_allclose(came, own, rtol=1e-5, atol=1e-6)


def oracle_gradient(f):
    """The gradient of f's first output, and its second."""

    def both(params):
        (_, state), cotangents = oracle.with_cotangents(f, params)
        zero = jax.tree.map(lambda v: oracle.as_cotangent(jnp.zeros(v.shape), v), state)
        return cotangents((jnp.ones(()), zero))[0], state

    return both


@EVERY_NETWORK
def test_every_leaf_is_held_against_the_oracle(made):
    J, x, params, state = begun(made)
    reports = bpref.check_leaves(J, params, x._replace(state=state))
    assert [r.path for r in reports] == bpref.leaf_paths(J)
    assert max(r.error for r in reports) < 1e-10


@EVERY_NETWORK
def test_an_update_in_the_backward_is_one_step_after_the_gradient(made):
    J, x, params, state = begun(made)
    updating = bpref.map_leaves(bpref.update_in_backward(optax.sgd(0.1)), J)
    started, of_updating = bpref.begin(updating, jax.random.key(0), x)
    given = x._replace(state=state)
    ((_, after), updated, _), (_, dparams, _) = jax.jit(
        lambda started, params: (
            bpref.backpropagate(updating, started, given),
            bpref.backpropagate(J, params, given),
        )
    )(started, params)
    expected = jax.tree.map(lambda p, d: p - 0.1 * d, params, dparams)
    for a, b in zip(jax.tree.leaves(bpref.params_of(updated)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(of_updating) == jax.tree.structure(after)


def test_what_is_packed_beside_a_sequence_does_not_reach_it():
    J, x, params, state = begun(packed_transformer)
    network = bpref.evaluation(J).parts[0]
    tokens, _ = x.x
    other = tokens.copy()
    other[0, :3] = (tokens[0, :3] + 1) % V
    given = [bpref.With(t, state["network"], x.data) for t in (tokens, other)]
    (y, _), (y_of_other, _) = (network.forward(params["network"], g)[0] for g in given)
    np.testing.assert_array_equal(y[0, 3:], y_of_other[0, 3:])
    assert (y[0, :3] != y_of_other[0, :3]).any()


def test_running_statistics_are_those_of_the_batch_and_are_read_in_evaluation():
    layer = bpref.stateful(bpref.batch_norm(momentum=0.5))
    x = jnp.asarray([[1.0], [3.0]])
    params, state = bpref.begin(layer, jax.random.key(0), x)
    assert (params.mean, params.var) == (None, None)
    (_, after), _ = layer.forward(params, bpref.With(x, state))
    assert (float(after["mean"][0]), float(after["var"][0])) == (1.0, 1.5)  # of 0 and 2, and of 1 and the unbiased 2
    (y, still), _ = bpref.evaluation(layer).forward(params, bpref.With(x, after))
    np.testing.assert_allclose(y, (x - 1) / np.sqrt(1.5), rtol=1e-5)
    assert still == after


def test_a_key_is_used_once_and_a_scanned_layer_has_one_for_every_turn():
    layer = bpref.stateful(bpref.scan(bpref.dropout(0.5), 2))
    x = jnp.ones((4, 8))
    params, state = bpref.begin(layer, jax.random.key(0), x)
    seen = []
    for _ in range(3):
        (y, state), _ = layer.forward(params, bpref.With(x, state))
        seen.append(np.asarray(y))
    assert len({y.tobytes() for y in seen}) == 3
    kept = np.mean([y != 0 for y in seen])
    assert 0.1 < kept < 0.4, "a quarter stays of two drops of a half"


def heads_of(x):
    return bpref.Heads(*(x[..., None, :],) * 3)


ATTENTION = {
    "multi_head_attention": (bpref.multi_head_attention(2, dropout=0.5), lambda x: x),
    "of sequences": (bpref.multi_head_attention(2, causal=True, dropout=0.5, blockwise=False), bpref.Sequences),
    "dot_product_attention": (bpref.dot_product_attention(dropout=0.5), heads_of),
    "blockwise_attention": (bpref.blockwise_attention(dropout=0.5), heads_of),
}


@pytest.mark.parametrize(("plain", "given"), ATTENTION.values(), ids=ATTENTION)
def test_attention_drops_by_a_key_of_its_state(plain, given):
    layer = bpref.stateful(plain)
    x = given(jnp.asarray(RNG.normal(size=(1, 6, 4)), jnp.float32))
    params, state = bpref.begin(layer, jax.random.key(SEED), x)
    assert set(state) == {"key"}
    sweep = jax.jit(lambda state: bpref.backpropagate(layer, params, bpref.With(x, state), jnp.ones(shape)))
    shape = jax.eval_shape(lambda: layer.forward(params, bpref.With(x, state))[0][0]).shape
    (y, after), dparams, dx = sweep(state)
    (other, _), _, _ = sweep(after)
    assert (y != other).any(), "a key is used once"
    explicit = x if isinstance(x, tuple) else bpref.Sequences(x)
    with_key = explicit._replace(key=jax.random.split(state["key"])[0])
    own, dparams_own, dx_own = bpref.backpropagate(plain, params, with_key, jnp.ones(shape))
    dx_own = dx_own if isinstance(x, tuple) else dx_own.x
    for a, b in zip(jax.tree.leaves((y, dparams, dx.x)), jax.tree.leaves((own, dparams_own, dx_own)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    evaluated = bpref.evaluation(layer)
    (y, still), _ = evaluated.forward(params, bpref.With(x, state))
    (again, _), _ = evaluated.forward(params, bpref.With(x, after))
    np.testing.assert_array_equal(y, again, "nothing is dropped")
    assert still == state


def test_a_reversible_stack_drops_again_what_it_dropped():
    f = bpref.serial(bpref.linear(4), bpref.dropout(0.5))
    layer = bpref.stateful(bpref.reversible(f, bpref.serial(bpref.linear(4), bpref.batch_norm()), 2))
    with jax.enable_x64(True):
        x = (jnp.asarray(RNG.normal(size=(5, 4))), jnp.asarray(RNG.normal(size=(5, 4))))
        params, state = bpref.begin(layer, jax.random.key(SEED), x)
        given = bpref.With(x, state)
        (_, after), dparams, dx = bpref.backpropagate(layer, params, given, x)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        _, cotangents = oracle.with_cotangents(lambda p, x: layer.forward(p, given._replace(x=x))[0][0], params, x)
        expected, own = cotangents(x), (dparams, dx.x)
        assert jax.tree.structure(own) == jax.tree.structure(expected)
        for d, t in zip(jax.tree.leaves(own), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(d, t, rtol=1e-9, atol=1e-11)
        kept = jax.tree.leaves(layer.forward(params, given)[1].y)
        assert [v.shape for v in kept] == [(5, 4), (5, 4)]
    for before, later in zip(numbers(state), numbers(after), strict=True):
        assert (before != later).any()


def test_what_is_inside_of_a_leaf_is_evaluated_too():
    ids = np.array([0, 2, 1])
    drops, not_ = (bpref.tied_embedding(3, 2, inner) for inner in (bpref.dropout(0.9), bpref.identity()))
    params = drops.init(jax.random.key(SEED), ids)
    expected, _ = not_.forward(params._replace(inner=()), ids)
    np.testing.assert_array_equal(bpref.evaluation(drops).forward(params, ids)[0], expected)


def test_every_rule_that_holds_what_is_not_trained_says_so():
    for rule in RULES.values():
        example = draw(rule, rule.cases[0], all_of_size(rule.cases[0], 3), SEED)
        mask = bpref.trainable(example.layer, example.params, example.x) if jax.tree.leaves(example.params) else ()
        constant = {path[0].name for path, trained in jax.tree_util.tree_flatten_with_path(mask)[0] if not trained}
        held = example.layer.held
        assert constant == set(held.fields if held else ()), rule.name


BAD_CALLS = {
    "TypeError: serial: x is an array, expected bpref.With(x, state), since a layer in it has state": (
        lambda: bpref.stateful(bpref.serial(bpref.dropout())).forward((bpref.DropoutParams(None),), jnp.ones(2))
    ),
    "TypeError: dropout: its state is a dict of nothing, expected a dict of key, as bpref.begin gives it": (
        lambda: bpref.stateful(bpref.dropout()).forward(bpref.DropoutParams(None), bpref.With(jnp.ones(2), {}))
    ),
    "TypeError: dropout: its state is a DropoutParams, expected a dict of key, as bpref.begin gives it": (
        lambda: bpref.stateful(bpref.dropout()).forward(p := bpref.DropoutParams(None), bpref.With(jnp.ones(2), p))
    ),
    "TypeError: dropout: x is an array, expected bpref.With(x, state)": (
        lambda: bpref.stateful(bpref.dropout()).forward(bpref.DropoutParams(None), jnp.ones(2))
    ),
    "serial: state is a dict, expected a tuple of 1, one for each of (dropout)": (
        lambda: bpref.stateful(bpref.serial(bpref.dropout())).forward(
            (bpref.DropoutParams(None),), bpref.With(jnp.ones(2), {})
        )
    ),
    "TypeError: tied_embedding: dropout in it is stateful, or shares arrays, and tied_embedding gives its parts x "
    "alone; ...": (lambda: bpref.tied_embedding(3, 2, bpref.stateful(bpref.dropout()))),
    "TypeError: stateful: tied_embedding has dropout in it, and no place for its state; expected serial, whose "
    "ends shared...": (
        lambda: bpref.stateful(bpref.tied_embedding(3, 2, bpref.serial(bpref.linear(2), bpref.dropout())))
    ),
    "TypeError: stateful: dropout has dropout in it, and no place for its state; expected serial, whose ends "
    "shared ties": (
        lambda: bpref.stateful(bpref.over_devices(bpref.dropout(), "data", 2, params=0, x=0, cache=0, y=0))
    ),
    "TypeError: stateful: dropout is transformed by watch already; expected map_leaves of what stateful or shared "
    "gives": (lambda: bpref.stateful(bpref.map_leaves(bpref.watch, bpref.serial(bpref.dropout())))),
    "TypeError: bidirectional: lstm in it is stateful, or shares arrays, and bidirectional gives its parts x "
    "alone; ...": (lambda: bpref.shared(bpref.bidirectional(bpref.lstm(2), bpref.lstm(2, reverse=True)), ("0", "1"))),
    "TypeError: stateful: layer is an int, expected a Layer, one that is made, as by ...": lambda: bpref.stateful(3),
    "TypeError: evaluation: layer is None, expected a Layer, one that is...": lambda: bpref.evaluation(None),
    "reading multi_head_attention: data have (mask), expected (segments)": (
        lambda: bpref.begin(
            bpref.reading(bpref.multi_head_attention(2), bpref.Sequences, "segments"),
            jax.random.key(0),
            bpref.With(jnp.ones((1, 3, 4)), data={"mask": 1}),
        )
    ),
    "reading: names are (), expected at least one name of what comes with the data": (
        lambda: bpref.reading(bpref.multi_head_attention(2), bpref.Sequences)
    ),
}


test_bad_calls_are_refused = refusals(BAD_CALLS)


def test_one_word_evaluates_over_devices_too():
    layer = bpref.over_devices(
        bpref.serial(bpref.linear(3), bpref.dropout(0.5)), "model", 2, params=0, x=0, cache=0, y=0
    )
    x = jnp.ones((2, 4, 5))
    params = layer.init(jax.random.key(0), x)
    assert jnp.any(layer.forward(params, x)[0] == 0)
    assert not jnp.any(bpref.evaluation(layer).forward(params, x)[0] == 0)
