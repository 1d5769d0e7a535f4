"""Multi-head attention: what is refused, what sees nothing, packed sequences, a memory, and what it is composed of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads, Sequences
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.rules.linear.linear import LinearParams
from bpref.rules.norm.qk_norm import QkNormParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, in_one_program

pytestmark = pytest.mark.quick

X = jnp.ones((2, 3, 4))
IDS = jnp.zeros((2, 3), jnp.int32)
KEY = jax.random.key(0)
LAYER = bpref.multi_head_attention(2)
PARAMS = LAYER.init(KEY, X)

BAD_CALLS = {
    "multi_head_attention: x has 4 features in its last axis, not a multiple of 3 heads": (
        lambda: bpref.multi_head_attention(3).init(KEY, X)
    ),
    "multi_head_attention: kv_heads is 3, expected a divisor of heads 4": lambda: bpref.multi_head_attention(4, 3),
    "multi_head_attention: heads is 0, expected a positive integer": lambda: bpref.multi_head_attention(0),
    "multi_head_attention: window is 0, expected an integer of at least 1, or a pair (left, right) of at least 0": (
        lambda: bpref.multi_head_attention(2, window=0)
    ),
    "multi_head_attention: 3 of a head's 3 features are turned, expected an even number from 2 to 3": (
        lambda: bpref.multi_head_attention(2, head_dim=3, rope=100.0).init(KEY, X)
    ),
    "multi_head_attention: mask has shape (2, 1, 3, 4), expected (*b, N, T, S) = (2, 2, 3, 3) by q (2, 3, 2, 2) "
    "and k (2, 3, 2, 2), or 1 in place of any": (
        lambda: LAYER.forward(PARAMS, Sequences(X, mask=jnp.ones((2, 1, 3, 4), bool)))
    ),
    "multi_head_attention: memory_segments are given without segments": (
        lambda: LAYER.forward(PARAMS, Sequences(X, X, memory_segments=IDS))
    ),
    "multi_head_attention: segments are given, and the memory (2, 2, 4) needs memory_segments too": (
        lambda: LAYER.forward(PARAMS, Sequences(X, X[:, :2], segments=IDS))
    ),
    "multi_head_attention: values has shape (2, 2, 4), expected (2, 3, g) as the keys": (
        lambda: LAYER.forward(PARAMS, Sequences(X, values=X[:, :2]))
    ),
    "multi_head_attention: weights is 'all', expected one of heads, mean": (
        lambda: bpref.multi_head_attention(2, weights="all")
    ),
    "multi_head_attention: a key without a place is added, expected neither alibi nor relative_buckets": (
        lambda: bpref.multi_head_attention(2, alibi=True, add_zero_attn=True)
    ),
    "multi_head_attention: dropout is 0.5, and x.key is None; expected a PRNG key": (
        lambda: bpref.multi_head_attention(2, dropout=0.5).forward(PARAMS, X)
    ),
}


test_bad_calls_say_what_was_expected = refusals(BAD_CALLS)


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_what_sees_nothing_is_the_bias_and_gives_no_gradient_but_its_own():
    params = PARAMS._replace(b_o=jnp.arange(4.0))
    of_segments = Sequences(
        drawn(1, 3, 4), drawn(1, 2, 4), segments=jnp.array([[0, 1, 0]]), memory_segments=jnp.array([[2, 2]])
    )
    of_mask = Sequences(drawn(1, 3, 4), drawn(1, 2, 4), mask=jnp.zeros((1, 1, 3, 1), bool))
    for x in (of_segments, of_mask):
        y, dparams, dx = backpropagate(LAYER, params, x)
        assert y.tolist() == [[[0, 1, 2, 3]] * 3]
        assert dparams.b_o.tolist() == [3, 3, 3, 3]
        rest = jax.tree.leaves((dparams._replace(b_o=None), dx))
        assert len(rest) == 8
        assert not any(np.any(v) for v in rest)
        assert dx.segments is dx.memory_segments is dx.mask is None


@pytest.mark.parametrize("hyper", [{"causal": True}, {"rope": 10.0}], ids=["causal", "rotated"])
def test_packed_sequences_are_as_if_each_were_alone(hyper):
    """Rotated ones too, since distances are all that counts."""
    layer = bpref.multi_head_attention(2, **hyper)
    x, params = drawn(1, 5, 4), layer.init(KEY, X)
    y, _, dx = backpropagate(layer, params, Sequences(x, segments=jnp.array([[7, 7, 7, 3, 3]])))
    alone = [backpropagate(layer, params, v) for v in (x[:, :3], x[:, 3:])]
    np.testing.assert_allclose(y, np.concatenate([y for y, _, _ in alone], 1), atol=1e-6)
    np.testing.assert_allclose(dx.x, np.concatenate([dx for _, _, dx in alone], 1), atol=1e-6)


def test_a_sequence_that_looks_at_itself_adds_both_of_its_cotangents():
    x = drawn(1, 5, 4)
    y, dparams, dx = backpropagate(LAYER, PARAMS, x)
    y_of_two, dparams_of_two, dx_of_two = backpropagate(LAYER, PARAMS, Sequences(x, x))
    np.testing.assert_allclose(y, y_of_two, atol=1e-6)
    np.testing.assert_allclose(dx, dx_of_two.x + dx_of_two.memory, atol=1e-6)
    for a, b in zip(jax.tree.leaves(dparams), jax.tree.leaves(dparams_of_two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("hyper", "has_one"),
    [
        ({}, False),
        ({"rope": 10.0}, True),
        ({"qk_norm": True}, True),
        ({"soft_cap": 2.0}, True),
        ({"sinks": True}, True),
    ],
    ids=str,
)
def test_keys_have_a_bias_where_the_softmax_takes_notice_of_it(hyper, has_one):
    assert (bpref.multi_head_attention(2, **hyper).init(KEY, X).b_k is not None) == has_one


def test_dropout_is_the_same_backward_as_forward():
    """y is linear in v: <dy, y> = <dv, v> for the very same draws."""
    layer = bpref.multi_head_attention(2, bias=False, dropout=0.5)
    params = layer.init(KEY, X)
    y, dparams, _ = backpropagate(layer, params, Sequences(drawn(2, 3, 4), key=jax.random.key(3)))
    assert not np.allclose(y, backpropagate(LAYER, PARAMS, drawn(2, 3, 4))[0])
    np.testing.assert_allclose(jnp.sum(y), jnp.sum(dparams.W_v * params.W_v), rtol=1e-5)


@pytest.mark.parametrize("blockwise", [True, False], ids=["blockwise", "whole"])
def test_it_is_the_composition_of_the_single_layers(blockwise):
    """Cross-attention with everything on, beside four `linear`, `qk_norm`, two `rotary_embedding` and attention."""
    of_attention: dict = {"causal": True, "window": 3, "soft_cap": 3.0, "sinks": True}
    blocks: dict = {"query_block": 2, "key_block": 3}
    layer = bpref.multi_head_attention(
        4, 2, 2, qk_norm=True, rope=50.0, interleaved=True, blockwise=blockwise, **blocks, **of_attention
    )
    x = Sequences(drawn(2, 5, 6), drawn(2, 4, 3), mask=jnp.asarray(drawn(2, 4, 5, 4) > -1))
    p = jax.tree.map(lambda v: drawn(*v.shape), layer.init(KEY, x))
    dy = drawn(2, 5, 6) + 0.5
    came = backpropagate(layer, p, x, dy)

    norm, rope = bpref.qk_norm(), bpref.rotary_embedding(interleaved=True, base=50.0)
    attend = (
        bpref.blockwise_attention(**of_attention, **blocks)
        if blockwise
        else bpref.dot_product_attention(**of_attention)
    )
    to_q, to_kv, to_y = bpref.linear(8), bpref.linear(4), bpref.linear(6)

    @in_one_program
    def by_hand(p, x, dy):
        q, q_cache = to_q.forward(LinearParams(p.W_q, p.b_q), x.x)
        k, k_cache = to_kv.forward(LinearParams(p.W_k, p.b_k), x.memory)
        v, v_cache = to_kv.forward(LinearParams(p.W_v, p.b_v), x.memory)
        (q, k), norm_cache = norm.forward(p.norm, (q.reshape(2, 5, 4, 2), k.reshape(2, 4, 2, 2)))
        q, k = (rope.forward((), a)[0] for a in (q, k))
        o, attend_cache = attend.forward(p.attention, Heads(q, k, v.reshape(2, 4, 2, 2), x.mask))
        y, y_cache = to_y.forward(LinearParams(p.W_o, p.b_o), o.reshape(2, 5, 8))
        of_y, do = to_y.backward(LinearParams(p.W_o, p.b_o), y_cache, dy)
        of_attend, d = attend.backward(p.attention, attend_cache, do.reshape(o.shape))
        dq, dk = (rope.backward((), None, a)[1] for a in (d.q, d.k))
        of_norm, (dq, dk) = norm.backward(p.norm, norm_cache, (dq, dk))
        of_q, dx = to_q.backward(LinearParams(p.W_q, p.b_q), q_cache, dq.reshape(2, 5, 8))
        of_k, dm_of_k = to_kv.backward(LinearParams(p.W_k, p.b_k), k_cache, dk.reshape(2, 4, 4))
        of_v, dm_of_v = to_kv.backward(LinearParams(p.W_v, p.b_v), v_cache, d.v.reshape(2, 4, 4))
        W, b = ([of_q[i], of_k[i], of_v[i], of_y[i]] for i in (0, 1))
        return y, type(p)(*W, *b, of_norm, of_attend), Sequences(dx, dm_of_k + dm_of_v)

    expected = by_hand(p, x, dy)
    assert isinstance(expected[1].norm, QkNormParams)
    assert isinstance(expected[1].attention, AttentionParams)
    assert jax.tree.structure(came) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hides", [{"causal": True}, {"window": (1, 0)}, {}], ids=str)
def test_keys_more_are_seen_whatever_hides_the_others(hides):
    """The weights of what is seen add up to 1 with them, and a query that sees nothing else has all of it there."""
    layer = bpref.multi_head_attention(2, weights="heads", add_bias_kv=True, add_zero_attn=True, **hides)
    x = Sequences(drawn(1, 3, 4), mask=jnp.ones((1, 1, 3, 1), bool).at[0, 0, 1].set(False))
    _, w = layer.forward(layer.init(KEY, x), x)[0]
    assert w.shape == (1, 2, 3, 5)
    np.testing.assert_allclose(w.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(w[:, :, 1, :3], 0)
    assert (w[..., 3:] > 0).all()


@pytest.mark.parametrize("weights", ["mean", "heads"])
def test_an_output_that_is_not_used_costs_nothing_and_changes_nothing(weights):
    """The cotangent None of the weights is that of zeros, and of y too."""
    layer, x = bpref.multi_head_attention(2, weights=weights), drawn(2, 3, 4)
    (y, w), cache = layer.forward(PARAMS, x)
    np.testing.assert_allclose(y, LAYER.forward(PARAMS, x)[0], rtol=1e-6)
    for dy, zeros in (((y, None), (y, jnp.zeros_like(w))), ((None, w), (jnp.zeros_like(y), w))):
        ours, theirs = (layer.backward(PARAMS, cache, d) for d in (dy, zeros))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), ours, theirs)
