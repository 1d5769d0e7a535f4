"""What a NaN does to a gradient, and what is read where nothing should be: eagerly and compiled the same."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.layer import backpropagate
from tests.rules import sweeping

NAN = math.nan
ONE_ROW = jnp.asarray([NAN, 0.0, 1.0])
IMAGE = jnp.asarray([[[0.0], [NAN], [2.0], [NAN]]])

GRADIENTS = {
    "largest": (bpref.reduce_max(), ONE_ROW, [NAN] * 3),
    "smallest": (bpref.reduce_max(minimum=True), ONE_ROW, [NAN] * 3),
    "of one row": (bpref.reduce_max(axis=1), jnp.asarray([[NAN, 1.0], [1.0, 1.0]]), [[NAN, NAN], [0.5, 0.5]]),
    "maxout": (bpref.maxout(), jnp.asarray([NAN, 1.0, 2.0, 3.0]), [NAN, 0, NAN, 1]),
    "segment_max": (bpref.segment_max(2), (ONE_ROW, jnp.asarray([0, 0, 1])), ([NAN, NAN, 1], None)),
    "p = inf": (bpref.vector_norm(math.inf), ONE_ROW, [NAN] * 3),
    "p = 3": (bpref.vector_norm(3), ONE_ROW, [NAN] * 3),
    "p = 2": (bpref.vector_norm(2), ONE_ROW, [NAN] * 3),
    "p = 1, whose slopes do not depend on others": (bpref.vector_norm(1), ONE_ROW, [NAN, 0, 1]),
    "variance": (bpref.variance(), ONE_ROW, [NAN] * 3),
    "deviation": (bpref.variance(root=True), ONE_ROW, [NAN] * 3),
    "logsumexp": (bpref.logsumexp(), ONE_ROW, [NAN] * 3),
    "absolute": (bpref.absolute(), (ONE_ROW, jnp.zeros(3)), ([NAN, 0, 1 / 3], [NAN, 0, -1 / 3])),
    "quantile": (bpref.quantile(), (ONE_ROW, jnp.zeros(3)), ([NAN, 0, 1 / 6], [NAN, 0, -1 / 6])),
    # Those that choose one element hand dy to it, and a NaN is chosen: the first of them.
    "max_pool": (bpref.max_pool((4,)), IMAGE, [[[0], [1], [0], [0]]]),
    "adaptive_pool": (bpref.adaptive_pool((1,), "max"), IMAGE, [[[0], [1], [0], [0]]]),
    "global_pool": (bpref.global_pool("max"), IMAGE, [[[0], [1], [0], [0]]]),
    "top_k": (bpref.top_k(1), ONE_ROW, [1, 0, 0]),
}


@pytest.mark.parametrize("sweep", [backpropagate, sweeping.backpropagate], ids=["eager", "compiled"])
@pytest.mark.parametrize(("layer", "x", "expected"), GRADIENTS.values(), ids=GRADIENTS)
def test_a_nan_is_not_swallowed(layer, x, expected, sweep):
    y = layer.forward((), x)[0]
    dy = jax.tree.map(lambda v: jnp.ones_like(v) if jnp.issubdtype(v.dtype, jnp.floating) else None, y)
    y, _, dx = sweep(layer, (), x, dy)
    assert np.isnan(np.asarray(jax.tree.leaves(y)[0], np.float32)).any()
    jax.tree.map(lambda came, wanted: np.testing.assert_allclose(came, wanted, rtol=1e-6), dx, _as_arrays(expected, dx))


def _as_arrays(expected, like):
    """Lists as arrays, in the tree of the cotangents."""
    return jax.tree.unflatten(
        jax.tree.structure(like),
        [
            np.asarray(v, np.float32)
            for v in (expected if isinstance(expected, tuple) else (expected,))
            if v is not None
        ],
    )


T, S, UNSEEN = 7, 9, 5
ONE_KEY = jnp.arange(S) == UNSEEN
HIDDEN = {
    "from all by a mask": ({}, {"mask": ~ONE_KEY.reshape(1, 1, 1, S)}, slice(None)),
    "from all by a bias": ({}, {"bias": jnp.where(ONE_KEY, -jnp.inf, 0.0).reshape(1, 1, 1, S)}, slice(None)),
    "from the queries before it": ({"causal": True}, {}, slice(UNSEEN)),
    "from those that are far": ({"window": 2}, {}, slice(UNSEEN - 1)),
    "from another sequence": (
        {},
        {"q_segments": jnp.asarray([[0] * 5 + [1] * 2]), "kv_segments": jnp.asarray([[0] * UNSEEN + [1] * 4])},
        slice(5),
    ),
}


@pytest.mark.parametrize("make", [bpref.dot_product_attention, bpref.blockwise_attention])
@pytest.mark.parametrize("spoiled", ["k", "v"])
@pytest.mark.parametrize(("hyper", "more", "blind"), HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_what_a_query_does_not_see_is_not_read(make, spoiled, hyper, more, blind, bad):
    """A key or a value that is NaN leaves y and dq of those that do not see it as they are with a 0 in its place."""
    blocks = {"query_block": 3, "key_block": 4} if make is bpref.blockwise_attention else {}
    layer = make(**hyper, **blocks)
    draws = (jax.random.normal(jax.random.key(i), (1, n, 2, 3)) for i, n in enumerate((T, S, S)))
    x = bpref.Heads(*draws, **more)
    params = layer.init(jax.random.key(0), x)

    def with_value(value):
        changed = x._replace(**{spoiled: getattr(x, spoiled).at[:, UNSEEN].set(value)})
        return sweeping.backpropagate(layer, params, changed, jnp.ones((1, T, 2, 3)))

    (y, _, dx), (expected, _, expected_dx) = with_value(bad), with_value(0.0)
    np.testing.assert_allclose(y[:, blind], expected[:, blind], rtol=1e-6)
    np.testing.assert_allclose(dx.q[:, blind], expected_dx.q[:, blind], rtol=1e-5, atol=1e-6)
    if blind == slice(None):
        for name in ("k", "v"):
            assert not np.any(getattr(dx, name)[:, UNSEEN])
            np.testing.assert_allclose(getattr(dx, name), getattr(expected_dx, name), rtol=1e-5, atol=1e-6)
    elif math.isnan(bad):
        assert np.isnan(y[:, UNSEEN]).all()


@pytest.mark.parametrize("make", [bpref.dot_product_attention, bpref.blockwise_attention])
def test_a_query_that_sees_nothing_is_not_read(make):
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 4, 1, 3)) for i in range(3))
    layer, x = make(), bpref.Heads(q.at[:, 2].set(NAN), k, v, mask=(jnp.arange(4) != 2).reshape(1, 1, 4, 1))
    y, _, dx = sweeping.backpropagate(layer, layer.init(jax.random.key(0), x), x, jnp.ones_like(q))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((y, dx)))


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_a_bad_cotangent_of_a_chain_stays_within_its_length(bad):
    """The first example has no pair of neighbours, and two frames that do not count: 0 times NaN was NaN in both."""
    layer, x = bpref.crf(), jax.random.normal(jax.random.key(0), (2, 3, 4))
    x = x, jnp.asarray([[1, 2, 3], [0, 1, 2]]), jnp.asarray([1, 3])
    params = layer.init(jax.random.key(0), x)
    _, dparams, (dx, _, _) = sweeping.backpropagate(layer, params, x, jnp.asarray([bad, 1.0]))
    _, expected, (expected_dx, _, _) = sweeping.backpropagate(layer, params, x, jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(dparams.A, expected.A, rtol=1e-6)
    assert not np.isfinite(dx[0, 0]).all()
    np.testing.assert_allclose(dx.reshape(6, 4)[1:], expected_dx.reshape(6, 4)[1:], rtol=1e-6)


A, B = jnp.asarray([[4.0, 0.25], [0.5, 0.25]]), jnp.zeros((2, 2))
SIGNS = jnp.asarray([[1, 1], [1, 1]])
INACTIVE = {
    "hinge": (bpref.hinge(), (A, SIGNS)),
    "hinge, squared": (bpref.hinge(squared=True), (A, SIGNS)),
    "hinge, real": (bpref.hinge(), (A, SIGNS.astype(jnp.float32))),
    "margin_ranking": (bpref.margin_ranking(margin=1.0), (A, B, SIGNS)),
    "triplet": (bpref.triplet(), (B, B + 0.5, A)),
    "dpo": (bpref.dpo(beta=1.0, form="hinge"), (A[:, 0], B[0], B[0], B[0])),
    "cpo": (bpref.cpo(beta=1.0, likelihood=0.0, form="hinge"), (A[:, 0], B[0])),
    "simpo": (bpref.simpo(beta=1.0, margin=0.0, form="hinge"), (A[:, 0], B[0])),
    "vector_norm": (bpref.vector_norm(math.inf), A),
    "fused_linear_cross_entropy": (bpref.fused_linear_cross_entropy(3, ignored=-1), (A, jnp.asarray([-1, 2]))),
    "hard_sigmoid": (bpref.hard_sigmoid(), 8 * A - 4),
    "squared_relu": (bpref.squared_relu(), A - 0.5),
    "and by rows": (bpref.fused_linear_cross_entropy(3, ignored=-1, rows=1), (A, jnp.asarray([-1, 2]))),
}


@pytest.mark.parametrize(("layer", "x"), INACTIVE.values(), ids=INACTIVE)
def test_a_bad_cotangent_does_not_reach_what_has_no_part_in_the_result(layer, x):
    """Its slope is 0, and NaN times 0 is NaN: the others', beside it, are NaN."""
    params = layer.init(jax.random.key(0), x)
    y = layer.forward(params, x)[0]
    dx = sweeping.backpropagate(layer, params, x, jnp.full_like(y, NAN))[2]
    expected = sweeping.backpropagate(layer, params, x, jnp.ones_like(y))[2]
    for came, wanted in zip(jax.tree.leaves(dx), jax.tree.leaves(expected), strict=True):
        assert (np.isnan(came) == (np.asarray(wanted) != 0)).all()


IMAGES = jnp.zeros((1, 9, 5, 1))
IN_PLACE = {
    "nearest, fewer and more": (bpref.resize(4, 12, "nearest"), IMAGES),
    "nearest, of 20 to 21 pixels each": (bpref.resize(100, 103, "nearest"), IMAGES),
    "bilinear": (bpref.resize(7, 12), IMAGES),
    "bicubic": (bpref.resize(7, 12, "bicubic"), IMAGES),
}


@pytest.mark.parametrize(("layer", "x"), IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("place", [0, 0.5])
def test_a_bad_cotangent_of_a_pixel_reaches_what_a_good_one_does(layer, x, place):
    """Weights of 0 and dense products carried it to other rows and columns."""
    y = layer.forward((), x)[0]
    at = jnp.arange(y.size).reshape(y.shape) == int(place * y.size)
    bad, good = (sweeping.backpropagate(layer, (), x, jnp.where(at, dy, 0.0))[2] for dy in (NAN, 1.0))
    np.testing.assert_array_equal(np.isnan(bad), np.asarray(good) != 0)


def test_a_bad_cotangent_does_not_reach_later_gates():
    """The product that sums over later steps carried it to all gates of its chunk."""
    layer, draws = bpref.retention(chunk=4), (jax.random.normal(jax.random.key(i), (1, T, 2, 3)) for i in range(3))
    x = bpref.GatedHeads(bpref.Heads(*draws), -jnp.ones((1, T, 2)))
    dy = jnp.zeros((1, T, 2, 3)).at[:, 1].set(NAN)
    assert (
        np.isnan(sweeping.backpropagate(layer, (), x, dy)[2].log_gate).all((0, 2)).tolist() == [True] * 2 + [False] * 5
    )


def test_a_bad_cotangent_above_a_triangle_is_not_read():
    dA = [
        sweeping.backpropagate(bpref.cholesky(), (), 2 * jnp.eye(3), jnp.eye(3).at[0, 2].set(bad))[2]
        for bad in (NAN, 0.0)
    ]
    np.testing.assert_array_equal(*dA)


@pytest.mark.parametrize("make", [bpref.dot_product_attention, bpref.blockwise_attention])
def test_a_bad_cotangent_of_a_query_that_sees_nothing_does_not_reach_the_sinks(make):
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 4, 1, 3)) for i in range(3))
    layer, x = make(sinks=True), bpref.Heads(q, k, v, mask=(jnp.arange(4) != 2).reshape(1, 1, 4, 1))
    params = layer.init(jax.random.key(0), x)
    sinks = [
        sweeping.backpropagate(layer, params, x, jnp.ones_like(q).at[:, 2].set(bad))[1].sinks for bad in (NAN, 0.0)
    ]
    np.testing.assert_array_equal(*sinks)
