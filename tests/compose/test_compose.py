"""Combinators: the sweep through any nesting of them is the derivative of the composition, leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpref
from bpref.verify import oracle
from bpref.verify.examining.held import ROUND_OFF
from bpref.verify.numbers.measure import relative_error
from bpref.verify.oracle import bytes_kept
from tests.conftest import SEED, SLOW_TO_COMPILE
from tests.refusing import refusals

WIDTH = 3


def networks(depth: int) -> st.SearchStrategy[bpref.Layer]:
    """Layers from (N, 3) to (N, 3), of every combinator, nested up to `depth` deep."""
    leaf = st.sampled_from([bpref.linear(WIDTH), bpref.linear(WIDTH, bias=False), bpref.tanh(), bpref.silu()])
    if depth == 0:
        return leaf
    inner = networks(depth - 1)
    return st.one_of(
        leaf,
        st.lists(inner, min_size=1, max_size=3).map(lambda layers: bpref.serial(*layers)),
        st.tuples(inner, inner).map(lambda pair: bpref.serial(z=pair[0], a=pair[1])),
        st.tuples(inner, inner, st.booleans()).map(lambda given: both_of_one(*given)),
        inner.map(bpref.residual),
        inner.map(bpref.remat),
        st.tuples(inner, st.integers(1, 3)).map(lambda given: bpref.scan(*given)),
        st.tuples(inner, inner).map(lambda pair: side_by_side(*pair)),
        st.tuples(inner, inner, st.integers(1, 3)).map(lambda given: on_two_streams(*given)),
    )


def both_of_one(f: bpref.Layer, g: bpref.Layer, by_name: bool) -> bpref.Layer:
    """`fan_out`, and the product of what it gives."""
    both = bpref.fan_out(z=f, a=g) if by_name else bpref.fan_out(f, g)
    return bpref.residual(both, bpref.fan_in("product"))


def copied() -> bpref.Layer:
    return bpref.fan_out(bpref.identity(), bpref.identity())


def side_by_side(left: bpref.Layer, right: bpref.Layer) -> bpref.Layer:
    return bpref.serial(copied(), bpref.parallel(left, right), bpref.fan_in())


def on_two_streams(f: bpref.Layer, g: bpref.Layer, length: int) -> bpref.Layer:
    return bpref.serial(copied(), bpref.reversible(f, g, length), bpref.fan_in("concatenation"), bpref.linear(WIDTH))


def assert_derivative(layer: bpref.Layer, x, key=SEED) -> None:
    """The hand's sweep through `layer` equals the oracle's, in float64; and its forward the bridge's."""
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64)
        params = layer.init(jax.random.key(key), x)

        @jax.jit
        def both(params, x):
            y, dparams, dx = bpref.backpropagate(layer, params, x, dy=jnp.cos(layer.forward(params, x)[0]))
            _, cotangents = oracle.with_cotangents(lambda p, x: layer.forward(p, x)[0], params, x)
            return (dparams, dx), cotangents(jnp.cos(y)), y, bpref.as_function(layer)(params, x)

        hand, truth, y, bridged = both(params, x)
    assert jax.tree.structure(hand) == jax.tree.structure(truth)
    errors = jax.tree.map(lambda h, t: float(relative_error(np.asarray(h), np.asarray(t))), hand, truth)
    assert max(jax.tree.leaves(errors)) <= ROUND_OFF, errors
    np.testing.assert_array_equal(y, bridged)


@settings(SLOW_TO_COMPILE, max_examples=15)
@given(networks(depth=3), st.integers(1, 3))
def test_any_nesting_of_combinators_is_differentiated_right(layer, N):
    assert_derivative(layer, np.random.default_rng(SEED).normal(size=(N, WIDTH)))


def test_the_nesting_of_the_design_document():
    body = bpref.remat(bpref.residual(bpref.serial(bpref.linear(5), bpref.tanh(), bpref.linear(5))))
    layer = bpref.serial(bpref.linear(5), bpref.scan(body, 4), bpref.tanh(), bpref.linear(2))
    assert_derivative(layer, np.random.default_rng(SEED).normal(size=(7, 3)))


@pytest.mark.parametrize("y", [jnp.zeros((4, 4)), jnp.zeros((3, 3))], ids=["classes", "rows"])
def test_labels_that_do_not_fit_what_the_network_gives_are_refused_and_both_are_named(y):
    J = bpref.objective(network=bpref.serial(bpref.linear(3), bpref.tanh()), loss=bpref.softmax_cross_entropy())
    X, key = jnp.ones((4, 5)), jax.random.key(SEED)
    params = J.init(key, (X, jnp.zeros((4, 3))))
    said = r"^softmax_cross_entropy: .*; in objective the network serial gives float32\[4, 3\], y is float32\["
    for call in (lambda: J.init(key, (X, y)), lambda: J.forward(params, (X, y))):
        with pytest.raises(ValueError, match=said):
            call()
    for x, came in ((X[:2], "an array"), ((X, y, y), "a tuple of 3")):
        with pytest.raises(TypeError, match=rf"^objective: x is {came}, expected a pair \(X, y\)"):
            J.init(key, x)


@pytest.mark.parametrize("integer", [True, False], ids=["integer target", "dense target"])
def test_objective_is_a_layer_whose_target_may_have_no_cotangent(integer):
    rng = np.random.default_rng(SEED)
    layer = bpref.objective(bpref.serial(bpref.linear(4), bpref.tanh(), bpref.linear(3)), bpref.softmax_cross_entropy())
    X = rng.normal(size=(6, 2)).astype(np.float32)
    y = np.array([0, 1, 2, 2, 1, 0]) if integer else np.full((6, 3), 1 / 3, np.float32)
    params = layer.init(jax.random.key(SEED), (X, y))
    J, (dnetwork, dloss), (dX, dy) = bpref.backpropagate(layer, params, (X, y))
    assert J.shape == ()
    assert dloss == ()
    assert dX.shape == X.shape
    assert dnetwork[0].W.shape == (4, 2)
    assert dy is None if integer else dy.shape == y.shape
    through_bridge = oracle.gradient(lambda p, X: bpref.as_function(layer)(p, (X, y)))(params, X)
    np.testing.assert_allclose(through_bridge[0][0][0].W, dnetwork[0].W, rtol=1e-6)


def test_an_objective_gives_its_loss_all_that_comes_with_the_targets():
    """Labels and which of them are real; and four sequences and lengths, by name."""
    X = jnp.asarray(np.random.default_rng(SEED).normal(size=(2, 5, 3)), jnp.float32)
    labels, real = jnp.asarray([[0, 1, 3, 2, 0], [2, 2, 1, 0, 0]]), jnp.asarray([5, 3])
    spoken, lengths = jnp.asarray([[1, 2], [3, 0]]), jnp.asarray([2, 1])
    for loss, y in (
        (bpref.sequence_cross_entropy(), (labels, real)),
        (bpref.ctc(reduction="mean"), (spoken, real, lengths)),
    ):
        layer = bpref.objective(network=bpref.serial(bpref.linear(4), bpref.tanh()), loss=loss)
        params = layer.init(jax.random.key(0), (X, y))
        J, dparams, (dX, dy) = jax.jit(lambda p, x, layer=layer: bpref.backpropagate(layer, p, x))(params, (X, y))
        assert dy == (None,) * len(y)

        def plain(params, X, layer=layer, y=y):
            return layer.forward(params, (X, y))[0]

        J_oracle, cotangents = oracle.with_cotangents(plain, params, X)
        np.testing.assert_allclose(J, J_oracle, rtol=1e-6)
        for d, t in zip(jax.tree.leaves((dparams, dX)), jax.tree.leaves(cotangents(jnp.ones(()))), strict=True):
            np.testing.assert_allclose(d, t, rtol=1e-4, atol=1e-6)
        assert max(leaf.error for leaf in bpref.check_leaves(layer, params, (X, y))) < 1e-5


def test_scan_equals_the_same_layers_in_series():
    block = bpref.serial(bpref.linear(3), bpref.tanh())
    stacked, unrolled = bpref.scan(block, 4), bpref.serial(*[block] * 4)
    x = jnp.asarray(np.random.default_rng(SEED).normal(size=(5, 3)), jnp.float32)
    params = stacked.init(jax.random.key(SEED), x)
    slices = tuple(jax.tree.map(lambda v, l=l: v[l], params) for l in range(4))
    y, dparams, dx = bpref.backpropagate(stacked, params, x, x)
    y_unrolled, dslices, dx_unrolled = bpref.backpropagate(unrolled, slices, x, x)
    np.testing.assert_allclose(y, y_unrolled, rtol=1e-6)
    np.testing.assert_allclose(dx, dx_unrolled, rtol=1e-5)
    for l, of_layer in enumerate(dslices):
        jax.tree.map(lambda a, b, l=l: np.testing.assert_allclose(a[l], b, rtol=1e-5, atol=1e-7), dparams, of_layer)


def test_remat_keeps_its_input_alone_and_pays_inside_a_scan():
    block = bpref.serial(*[bpref.serial(bpref.linear(64), bpref.gelu())] * 3)
    x = jnp.zeros((128, 64), jnp.float32)

    def compiled(layer):
        params = layer.init(jax.random.key(SEED), x)
        sweep = jax.jit(lambda p, x: bpref.backpropagate(layer, p, x, x)[1:])
        kept = bytes_kept(lambda p, x: layer.forward(p, x)[1], params, x)
        return kept, sweep.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    kept, temp = compiled(bpref.scan(block, 16))
    kept_remat, temp_remat = compiled(bpref.scan(bpref.remat(block), 16))
    assert kept_remat == 16 * x.size * 4
    assert kept == 6 * kept_remat
    assert temp_remat < 0.5 * temp


def test_a_reversible_stack_keeps_its_output_alone_however_deep():
    streams = jnp.ones((5, WIDTH)), jnp.zeros((5, WIDTH))
    sizes = set()
    for length in (1, 4):
        layer = bpref.reversible(bpref.linear(WIDTH), bpref.tanh(), length)
        params = layer.init(jax.random.key(0), streams)
        assert jax.tree.map(jnp.shape, params[0]) == ((length, WIDTH, WIDTH), (length, WIDTH))
        y, cache = layer.forward(params, streams)
        np.testing.assert_array_equal(jax.tree.leaves(cache), jax.tree.leaves(y))
        sizes.add(bytes_kept(lambda p, x, layer=layer: layer.forward(p, x)[1], params, streams))
    assert sizes == {2 * 5 * WIDTH * 4}


def test_leaves_are_named_by_where_they_stand_and_map_leaves_reaches_each_once():
    layer = bpref.serial(
        bpref.linear(3, name="in"), bpref.scan(bpref.residual(bpref.tanh()), 2), bpref.parallel(bpref.relu())
    )
    assert bpref.leaf_paths(layer) == ["0 linear 'in'", "1 tanh", "2.0 relu"]
    seen = []
    again = bpref.map_leaves(lambda leaf: (seen.append(leaf.name), leaf)[1], layer)
    assert seen == ["linear 'in'", "tanh", "relu"]
    assert bpref.leaf_paths(again) == bpref.leaf_paths(layer)
    assert again.name == "serial"


def named_network() -> bpref.Layer:
    block = bpref.residual(norm=bpref.rms_norm(), up=bpref.linear(3), act=bpref.tanh())
    return bpref.serial(embed=bpref.linear(3), blocks=bpref.scan(block, 2), head=bpref.linear(2, name="out"))


def test_named_layers_have_params_caches_and_paths_by_their_names():
    net, x = named_network(), jnp.ones((4, 3))
    params = net.init(jax.random.key(SEED), x)
    y, cache = net.forward(params, x)
    dparams, _ = net.backward(params, cache, y)
    assert set(params) == set(cache) == set(dparams) == {"embed", "blocks", "head"}
    assert params["blocks"]["up"].W.shape == (2, 3, 3)
    # as JAX orders the leaves of a dict: by name
    paths = ["blocks.act tanh", "blocks.norm rms_norm", "blocks.up linear", "embed linear", "head linear 'out'"]
    assert bpref.leaf_paths(net) == paths
    seen = []
    again = bpref.map_leaves(lambda leaf: (seen.append(leaf.name), leaf)[1], net)
    assert seen == [path.split(" ", 1)[1] for path in paths]
    assert jax.tree.structure(again.init(jax.random.key(SEED), x)) == jax.tree.structure(params)
    by_number = bpref.serial(*net.parts)
    expected = by_number.forward(tuple(params[name] for name in ("embed", "blocks", "head")), x)[0]
    np.testing.assert_array_equal(y, expected)


def test_a_wrong_leaf_is_found_by_its_path():
    def spoilt(leaf):
        def backward(params, cache, dy):
            dparams, dx = leaf.backward(params, cache, dy)
            return jax.tree.map(lambda v: 2 * v, dparams), dx

        return bpref.Layer(leaf.init, leaf.forward, backward, leaf.name)

    net = bpref.objective(network=named_network(), loss=bpref.square("batch_mean"))
    paths = iter(bpref.leaf_paths(net))
    net = bpref.map_leaves(lambda leaf: spoilt(leaf) if next(paths) == "network.blocks.up linear" else leaf, net)
    x = jnp.ones((4, 3)), jnp.zeros((4, 2))
    wrong = [r.path for r in bpref.check_leaves(net, net.init(jax.random.key(SEED), x), x) if r.error > ROUND_OFF]
    assert wrong == ["network.blocks.up linear"]


def test_fan_out_adds_what_comes_back_and_leaves_out_what_is_constant():
    ids = jnp.array([[0, 2], [1, 1]])
    both = bpref.fan_out(bpref.embedding(3, 4), bpref.embedding(3, 2))
    params = both.init(jax.random.key(SEED), ids)
    (wide, narrow), cache = both.forward(params, ids)
    assert (wide.shape, narrow.shape) == ((2, 2, 4), (2, 2, 2))
    assert both.backward(params, cache, (wide, narrow))[1] is None
    x = jnp.array([[1.0, -2.0]])
    of_one = bpref.fan_out(plain=bpref.identity(), square=bpref.serial(bpref.fan_out(bpref.relu(), bpref.identity())))
    y, cache = of_one.forward(of_one.init(jax.random.key(SEED), x), x)
    ones = jax.tree.map(jnp.ones_like, y)
    np.testing.assert_array_equal(of_one.backward({"plain": (), "square": (((), ()),)}, cache, ones)[1], [[3.0, 2.0]])


BAD_CALLS = {
    "serial: no layer was given, expected at least one": lambda: bpref.serial(),
    "parallel: no layer was given, expected at least one": lambda: bpref.parallel(),
    "residual: no layer was given, expected at least one": lambda: bpref.residual(),
    "channels_first: no layer was given, expected at least one": lambda: bpref.channels_first(),
    "scan: length is 0, expected a positive integer": lambda: bpref.scan(bpref.tanh(), 0),
    "serial: params is a tuple of 1, expected a tuple of 2, one for each of (tanh, relu)": (
        lambda: bpref.serial(bpref.tanh(), bpref.relu()).forward(((),), jnp.ones(2))
    ),
    "parallel: x is an array, expected a tuple of 2, one for each of (tanh, relu)": (
        lambda: bpref.parallel(bpref.tanh(), bpref.relu()).forward(((), ()), jnp.ones(2))
    ),
    "serial: params is a dict of (hidden), expected a dict of (hidden, out)": (
        lambda: bpref.serial(hidden=bpref.tanh(), out=bpref.relu()).forward({"hidden": ()}, jnp.ones(2))
    ),
    "serial: params is a tuple, expected a dict of (hidden, out)": (
        lambda: bpref.serial(hidden=bpref.tanh(), out=bpref.relu()).forward(((), ()), jnp.ones(2))
    ),
    "fan_out: dy is a tuple of 1, expected a tuple of 2, one for each of (tanh, relu)": (
        lambda: bpref.fan_out(bpref.tanh(), bpref.relu()).backward(((), ()), (None, None), (jnp.ones(2),))
    ),
    "residual: the output of linear is float32[2, 3], expected that of its input, float32[2, 4]": (
        lambda: (
            bpref.residual(bpref.linear(3)).init(jax.random.key(0), jnp.ones((2, 4)))
            and bpref.residual(bpref.linear(3)).forward(
                bpref.linear(3).init(jax.random.key(0), jnp.ones((2, 4))), jnp.ones((2, 4))
            )
        )
    ),
    "scan: the output of linear is float32[2, 3], expected that of its input, float32[2, 4]": (
        lambda: bpref.scan(bpref.linear(3), 2).forward(
            jax.tree.map(lambda v: jnp.stack([v, v]), bpref.linear(3).init(jax.random.key(0), jnp.ones((2, 4)))),
            jnp.ones((2, 4)),
        )
    ),
    "reversible: length is 0, expected a positive integer": lambda: bpref.reversible(bpref.tanh(), bpref.tanh(), 0),
    "reversible: the output of linear is float32[2, 3], expected that of its input, float32[2, 4]": (
        lambda: (
            bpref.reversible(bpref.linear(3), bpref.tanh()).init(jax.random.key(0), (jnp.ones((2, 4)),) * 2)
            and bpref.reversible(bpref.linear(3), bpref.tanh()).forward(
                bpref.reversible(bpref.linear(3), bpref.tanh()).init(jax.random.key(0), (jnp.ones((2, 4)),) * 2),
                (jnp.ones((2, 4)),) * 2,
            )
        )
    ),
    "tanh: dy is needed, since the output is not a scalar but (2,)": (
        lambda: bpref.backpropagate(bpref.tanh(), (), jnp.ones(2))
    ),
}


def test_what_is_no_layer_is_refused():
    with pytest.raises(
        TypeError, match=r"^serial: layer 0 is a list, expected a Layer, one that is made, as by linear\(64\)$"
    ):
        bpref.serial([bpref.tanh()])
    with pytest.raises(TypeError, match=r"^parallel: layer 1 is the function tanh, expected a Layer"):
        bpref.parallel(bpref.relu(), bpref.tanh)
    with pytest.raises(TypeError, match=r"^serial: 1 layers have no name and 1 have one; name all of them or none$"):
        bpref.serial(bpref.tanh(), out=bpref.relu())
    with pytest.raises(TypeError, match=r"^objective: it was given network; expected a network and"):
        bpref.objective(network=bpref.tanh())
    with pytest.raises(TypeError, match=r"^reversible: x is an array, expected a pair \(x1, x2\)$"):
        bpref.reversible(bpref.tanh(), bpref.tanh()).forward(((), ()), jnp.ones(2))


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def test_a_layer_that_stands_several_times_is_traced_once():
    traced, leaf = [], bpref.linear(3)

    def counted(f):
        def call(*args):
            traced.append(f)
            return f(*args)

        return call

    network = bpref.serial(*[leaf._replace(forward=counted(leaf.forward), backward=counted(leaf.backward))] * 4)
    x = np.ones((2, 3), np.float32)
    params = network.init(jax.random.key(0), x)
    expected = bpref.backpropagate(bpref.serial(*[bpref.linear(3) for _ in range(4)]), params, x, x)
    traced.clear()
    swept = jax.jit(lambda params, x: bpref.backpropagate(network, params, x, x))(params, x)
    assert len(traced) == 2
    for a, b in zip(jax.tree.leaves(swept), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
