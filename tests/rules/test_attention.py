"""Softmax attention, whole and in blocks, and the rotary embedding: what laws do not say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads
from bpref.formulas.attention.distances import skew, sum_of_diagonals
from bpref.formulas.attention.softmax_attention import AttentionParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

RNG = np.random.default_rng(0)


def heads(b=(2,), T=7, S=9, N=4, K=2, D=3, E=5, **more):
    q, k, v = (RNG.normal(size=(*b, *shape)) for shape in ((T, N, D), (S, K, D), (S, K, E)))
    return bpref.Heads(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))._replace(**more)


HYPER = {
    "causal": ({"causal": True}, {}),
    "window, soft cap": ({"window": 3, "soft_cap": 2.0}, {"b": (2, 3)}),
    "one key head, mask": ({}, {"K": 1, "mask": jnp.asarray(RNG.random((2, 1, 7, 9)) > 0.5)}),
    "bias of all heads": ({"scale": 0.2}, {"bias": jnp.asarray(RNG.normal(size=(1, 1, 7, 9)), jnp.float32)}),
    "alibi, sinks": ({"alibi": True, "sinks": True, "causal": True}, {"b": ()}),
    "buckets, segments": (
        {"relative_buckets": 4, "max_distance": 8},
        {"S": 7, "q_segments": jnp.asarray([[0, 0, 1, 1, 1, 2, 2]] * 2)},
    ),
    "dropout": ({"dropout": 0.4}, {"key": jax.random.key(3)}),
}


@pytest.mark.parametrize(("hyper", "more"), HYPER.values(), ids=HYPER)
@pytest.mark.parametrize("blocks", [(2, 3), (5, 4), (7, 2)])
def test_blocks_change_nothing(hyper, more, blocks):
    x = heads(**more)
    whole = bpref.dot_product_attention(**hyper)
    parts = bpref.blockwise_attention(**hyper, query_block=blocks[0], key_block=blocks[1])
    params = jax.tree.map(lambda v: v + 0.3, whole.init(jax.random.key(0), x))
    dy = jnp.asarray(RNG.normal(size=(*x.q.shape[:-1], x.v.shape[-1])), jnp.float32)
    expected, seen = (backpropagate(layer, params, x, dy) for layer in (whole, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), seen, expected)


def arrays_in(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from arrays_in(inner)


def largest(layer, T):
    x = heads((), T, T, 1, 1, 2, 2)
    program = jax.make_jaxpr(lambda x, dy: bpref.backpropagate(layer, AttentionParams(), x, dy))(x, x.v)
    return max(a.size for a in arrays_in(program.jaxpr))


def test_nothing_of_all_pairs_is_made():
    assert largest(bpref.dot_product_attention(causal=True), 64) >= 64 * 64
    assert largest(bpref.blockwise_attention(causal=True, query_block=8, key_block=8), 64) < 64 * 64 / 4


def pairs_of_blocks(T, **hyper):
    """How often the forward's loop runs."""
    layer = bpref.blockwise_attention(query_block=8, key_block=8, **hyper)
    program = jax.make_jaxpr(lambda x: layer.forward(AttentionParams(), x)[0])(heads((), T, T, 1, 1, 2, 2))
    (loop,) = (e for e in program.jaxpr.eqns if e.primitive.name == "scan")
    return loop.params["length"]


def test_blocks_that_see_nothing_are_left_out():
    assert [pairs_of_blocks(T) for T in (32, 64)] == [16, 64]
    assert [pairs_of_blocks(T, causal=True) for T in (32, 64)] == [10, 36]
    assert [pairs_of_blocks(T, causal=True, window=8) for T in (32, 64, 128)] == [7, 15, 31]
    assert [pairs_of_blocks(32, window=w) for w in (9, (8, 8), (8, 0), (0, 8), (0, 9), (0, 0))] == [10, 10, 7, 7, 9, 4]


@pytest.mark.parametrize("make", [bpref.dot_product_attention, bpref.blockwise_attention])
@pytest.mark.parametrize(("window", "sizes"), [((2, 1), (2, 1)), ((0, 3), (0, 3)), ((4, 0), (4, 0)), (3, (2, 2))])
def test_a_window_is_that_of_jax(make, window, sizes):
    blocks = {} if make is bpref.dot_product_attention else {"query_block": 2, "key_block": 3}
    x = heads(E=3)
    y = make(window=window, **blocks).forward(AttentionParams(), x)[0]
    expected = jax.nn.dot_product_attention(x.q, x.k, x.v, local_window_size=sizes)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def backward_pairs(layer, x):
    """How often the backward's loop runs."""
    params = layer.init(jax.random.key(0), x)
    y, cache = layer.forward(params, x)
    program = jax.make_jaxpr(layer.backward)(params, cache, y)
    (loop,) = (e for e in program.jaxpr.eqns if e.primitive.name == "scan")
    return loop.params["length"]


def test_the_backward_meets_a_pair_of_blocks_twice_only_where_a_row_has_several_and_nothing_is_kept():
    x = heads((), 32, 32, 1, 1, 2, 2)
    assert backward_pairs(bpref.blockwise_attention(causal=True, query_block=8, key_block=8), x) == 2 * 10
    assert backward_pairs(bpref.blockwise_attention(causal=True, query_block=8, key_block=32), x) == 4
    assert backward_pairs(bpref.dot_product_attention(causal=True), x) == 1
    assert backward_pairs(bpref.attention_block(1, block=8), jnp.ones((32, 4))) == 10


@pytest.mark.parametrize("make", [bpref.dot_product_attention, bpref.blockwise_attention])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_query_that_sees_nothing_gives_zero_and_takes_no_gradient(make, sinks):
    mask = jnp.ones((2, 4, 7, 9), bool).at[0, :, 2].set(False).at[1].set(False)
    layer, x = make(sinks=sinks), heads(mask=mask)
    params = layer.init(jax.random.key(0), x)
    y, dparams, dx = backpropagate(layer, params, x, jnp.ones((2, 7, 4, 5)))
    assert all(np.isfinite(v).all() for v in jax.tree.leaves((y, dparams, dx)))
    for v in (y, dx.q):
        assert not np.any(v[0, 2])
        assert not np.any(v[1])
    assert not np.any(dx.k[1])
    assert not np.any(dx.v[1])
    assert np.any(dx.q[0, 1])


def test_dropout_drops_its_share_and_takes_typed_keys():
    x = heads((), 64, 64, 2, 2, 2, 1, key=jax.random.key(7))
    x = x._replace(q=0 * x.q, v=jnp.ones_like(x.v))
    y = bpref.dot_product_attention(dropout=0.25).forward(AttentionParams(), x)[0]
    assert abs(float(y.mean()) - 1) < 0.02
    assert float(y.std()) > 0.03


X = heads()

BAD = {
    "q has 4 heads, expected a multiple of k's 3": heads(K=3),
    "k has shape (2, 0, 2, 3), expected none of its last three axes empty": heads(S=0),
    "x is a tuple of 3, expected Heads(q, k, v, [mask], [bias], [q_segments], [kv_segments], [key])": (X.q, X.k, X.v),
    "mask has shape (1, 7, 9), expected (*b, N, T, S) = (2, 4, 7, 9) by q (2, 7, 4, 3) and k (2, 9, 2, 3), or 1 in "
    "place of any": X._replace(mask=jnp.ones((1, 7, 9), bool)),
    "kv_segments are given without q_segments": X._replace(kv_segments=jnp.zeros((2, 9), int)),
    "7 queries and 9 keys need kv_segments too": X._replace(q_segments=jnp.zeros((2, 7), int)),
}
BOTH = (bpref.dot_product_attention, bpref.blockwise_attention)


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(("message", "x"), BAD.items(), ids=BAD)
def test_bad_input(make, message, x):
    with pytest.raises(ValueError if isinstance(x, Heads) else TypeError) as seen:
        make().forward(AttentionParams(), x)
    assert str(seen.value) == f"{make.__name__}: {message}"


test_dropout_needs_a_key = refusals(
    {f"{make.__name__}: dropout is 0.5, and x.key is None; expected a PRNG key": make for make in BOTH},
    lambda make: make(dropout=0.5).forward(AttentionParams(), X),
)


test_bad_hyperparameters = refusals(
    {
        f"blockwise_attention: window is {window!r}, expected an integer of at least 1, or a pair (left, right) of at "
        "least 0": {"window": window}
        for window in (0, True, 2.0, (1, -1), (1, 2, 3), (1, None), "12")
    }
    | {
        "blockwise_attention: query_block is 0, expected an integer of at least 1": {"query_block": 0},
        "blockwise_attention: soft_cap is 0.0, expected a positive number or None": {"soft_cap": 0.0},
        "blockwise_attention: dropout is 1.0, expected a number from 0 to below 1": {"dropout": 1.0},
        "blockwise_attention: relative_buckets is 3 and max_distance 128, expected at least 4 buckets, an even number "
        "if there are some for each direction, and more distances than buckets": {"relative_buckets": 3},
    },
    lambda hyper: bpref.blockwise_attention(**hyper),
)


def of_params(change, **hyper):
    layer = bpref.blockwise_attention(**hyper)
    return layer.forward(jax.tree.map(change, layer.init(jax.random.key(0), X)), X)


def in_bfloat16(v):
    return v.astype(jnp.bfloat16)


test_parameters_of_another_form = refusals(
    {
        "blockwise_attention: sinks has shape (3,), expected (N,) = (4,), as init gives for this x": (
            lambda: of_params(lambda v: v[:3], sinks=True)
        ),
        "TypeError: blockwise_attention: sinks has dtype bfloat16, q has float32; cast one to the other's": (
            lambda: of_params(in_bfloat16, sinks=True)
        ),
        "TypeError: blockwise_attention: relative_bias has dtype bfloat16, q has float32; cast one to the other's": (
            lambda: of_params(in_bfloat16, relative_buckets=4)
        ),
    }
)


@pytest.mark.parametrize("lowest", [-np.inf, -1e31])
def test_a_bias_below_minus_1e30_is_a_mask(lowest):
    """Also of a query that then sees nothing, here the first of the first batch."""
    sees = jnp.asarray(RNG.random((2, 1, 7, 9)) > 0.5).at[0, :, 0].set(False)
    layer, x = bpref.blockwise_attention(query_block=3, key_block=4), heads()
    masked, biased = x._replace(mask=sees), x._replace(bias=jnp.where(sees, 0.0, lowest))
    dy = jnp.asarray(RNG.normal(size=(2, 7, 4, 5)), jnp.float32)
    expected, came = (backpropagate(layer, AttentionParams(), x, dy) for x in (masked, biased))
    assert not np.any(came[0][0, 0])
    assert not np.any(came[2].q[0, 0])
    for a, b in zip((came[0], *came[2][:3]), (expected[0], *expected[2][:3]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("hyper", "more"),
    [({}, {}), ({"causal": True}, {}), ({"sinks": True}, {}), ({}, {"bias": jnp.ones((1, 1, 7, 9))})],
    ids=["all", "causal", "sinks", "bias"],
)
def test_logits_of_any_size_choose_one_key_under_jit_too(hyper, more):
    """`scale` is no power of 2, so that the product has to be rounded before m is made of it and taken from it."""
    layer, x = bpref.dot_product_attention(**hyper), heads(D=24, **more)
    x = x._replace(q=x.q * 1e7, k=x.k * 1e7)
    params = layer.init(jax.random.key(0), x)
    dy = jnp.ones((*x.q.shape[:-1], x.v.shape[-1]))
    y, _, dx = jax.jit(lambda *given: bpref.backpropagate(layer, *given))(params, x, dy)
    expected, _ = layer.forward(params, x)
    np.testing.assert_array_equal(y, expected)
    for d in dx[:3]:
        assert np.isfinite(d).all()


def test_skew_moves_by_one_and_its_adjoint_sums_diagonals():
    u = jnp.arange(6.0)
    assert skew(u, 3).tolist() == [[2, 3, 4, 5], [1, 2, 3, 4], [0, 1, 2, 3]]
    assert sum_of_diagonals(jnp.ones((3, 4))).tolist() == [1, 2, 3, 3, 2, 1]


def test_rotated_queries_and_keys_know_their_distance_alone():
    q, k = (jnp.asarray(RNG.normal(size=8), jnp.float32) for _ in "qk")
    layer = bpref.rotary_embedding()
    rotated = [layer.forward((), jnp.broadcast_to(v, (12, 1, 8)))[0][:, 0] for v in (q, k)]
    products = rotated[0] @ rotated[1].T
    np.testing.assert_allclose(products[3, 1], products[11, 9], rtol=1e-5)
    assert abs(float(products[3, 1] - products[3, 2])) > 1e-3


def test_a_quarter_turn_by_hand():
    """Position 1 and base e^... such that the pair turns by 1 radian; halves and interleaved pairs alike."""
    x = jnp.asarray([[[1.0, 0.0]], [[1.0, 0.0]]])
    expected = [[[1.0, 0.0]], [[np.cos(1), np.sin(1)]]]
    for interleaved in (False, True):
        np.testing.assert_allclose(bpref.rotary_embedding(interleaved).forward((), x)[0], expected, rtol=1e-6)
    at = bpref.rotary_embedding().forward((), (x[:1], jnp.asarray([1])))[0]
    np.testing.assert_allclose(at, expected[1:], rtol=1e-6)


test_rotary_refuses = refusals(
    {
        "rotary_embedding: 5 of x's 5 features are rotated, expected an even number from 2 to 5 ...": (
            lambda: bpref.rotary_embedding().forward((), jnp.ones((3, 1, 5)))
        ),
        "rotary_embedding: base is 1.0, expected a number above 1": lambda: bpref.rotary_embedding(base=1.0),
    }
)


test_rotary_refuses_a_stretch = refusals(
    {
        "TypeError: rotary_embedding: stretch is a str, expected bpref.Stretch(way, factor) or None": "yarn",
        "rotary_embedding: stretch.way is 'longer', expected one of linear, ntk...": bpref.Stretch("longer", 2.0),
        "rotary_embedding: stretch.factor is 0.0, expected a positive number": bpref.Stretch("ntk", 0.0),
        "rotary_embedding: stretch.length is 0, expected a positive integer": bpref.Stretch("yarn", 2.0, 0),
        "rotary_embedding: stretch.slow is 0, expected a positive number": bpref.Stretch("yarn", 2.0, 16, slow=0),
        "rotary_embedding: stretch.fast is 0, expected a positive number or...": bpref.Stretch("yarn", 2.0, 16, fast=0),
        "rotary_embedding: stretch.fast is 4.0, expected more than slow, 4...": bpref.Stretch("llama3", 2.0, 16, 4),
    },
    lambda stretch: bpref.rotary_embedding(stretch=stretch),
)


@pytest.mark.parametrize("name", ["multi_head_attention", "attention_block", "transformer_block"])
def test_a_stretch_of_no_rotation_is_refused(name):
    rest = {"hidden": 4} if name == "transformer_block" else {}
    with pytest.raises(ValueError) as seen:
        getattr(bpref, name)(2, **rest, rope=None, stretch=bpref.Stretch("ntk", 2.0))
    assert str(seen.value) == f"{name}: there is a stretch but rope is None, expected a base: nothing is rotated"


def test_heads_that_are_not_rotated_know_no_positions():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    some, every = bpref.rotary_embedding(heads=2), bpref.rotary_embedding()
    y, cache = some.forward((), x)
    np.testing.assert_array_equal(y[..., :2, :], every.forward((), x)[0][..., :2, :])
    np.testing.assert_array_equal(y[..., 2:, :], x[..., 2:, :])
    np.testing.assert_allclose(some.backward((), cache, y)[1], x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError) as seen:
        bpref.rotary_embedding(heads=4).forward((), x)
    assert str(seen.value) == "rotary_embedding: x has 3 heads, expected at least 4, which are rotated"


def test_tokens_with_one_position_along_all_axes_have_plain_rotations():
    """As the text of a model that also sees: M-RoPE is RoPE there, whatever the sections."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 8))
    positions = jnp.asarray([[0, 1, 2, 3, 4], [7, 8, 9, 20, 31]])
    plain = bpref.rotary_embedding(base=50.0).forward((), (x, positions))[0]
    places = jnp.stack([positions] * 3, -1)
    axial = bpref.axial_rotary_embedding((1, 2, 1), base=50.0).forward((), (x, places))[0]
    np.testing.assert_allclose(axial, plain, rtol=1e-6, atol=1e-6)


def test_rows_and_columns_of_an_image_turn_their_own_halves():
    """A place at row 0 leaves the pairs of rows, one at column 0 those of columns; both have the same frequencies."""
    layer = bpref.axial_rotary_embedding((2, 2), own_frequencies=True, interleaved=True, base=50.0)
    x = jnp.tile(jax.random.normal(jax.random.key(0), (1, 1, 4)), (2, 1, 2))
    in_row, in_column = layer.forward((), (x, jnp.asarray([[0, 3], [3, 0]])))[0][:, 0]
    np.testing.assert_array_equal(in_row[:4], x[0, 0, :4])
    np.testing.assert_array_equal(in_column[4:], x[0, 0, 4:])
    np.testing.assert_array_equal(in_row[4:], in_column[:4])


def turned_along_axes(sections, axes):
    x = jnp.ones((4, 1, 8)), jnp.ones((4, axes), int)
    return bpref.axial_rotary_embedding(sections).forward((), x)


test_axial_rotations_refuse = refusals(
    {
        "axial_rotary_embedding: x has 8 features, expected at least 10, 2 for each pair": (
            lambda: turned_along_axes((3, 2), 2)
        ),
        "axial_rotary_embedding: positions has shape (4, 3), expected (*b, T, A) with A = 2, one for each section": (
            lambda: turned_along_axes((2, 2), 3)
        ),
        "axial_rotary_embedding: sections[1] is 0, expected a positive integer": lambda: turned_along_axes((2, 0), 2),
        "TypeError: axial_rotary_embedding: sections is 4, expected a tuple of a number of pairs for each axis": (
            lambda: turned_along_axes(4, 2)
        ),
    }
)
