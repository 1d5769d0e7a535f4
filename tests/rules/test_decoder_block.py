"""decoder_block: beside the blocks that it is with and without its memory, what it keeps, drops and refuses."""

import jax
import jax.numpy as jnp
import numpy as np

import bpref
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

N, T, S, D = 3, 5, 7, 8
RNG = np.random.default_rng(0)
X, MEMORY = (jnp.asarray(RNG.normal(size=(N, n, D)), jnp.float32) for n in (T, S))


def init(layer, x=(X, MEMORY)):
    return layer.init(jax.random.key(0), x)


def test_a_memory_that_nothing_is_taken_from_leaves_a_transformer_block():
    block, plain = bpref.decoder_block(2, 6, block=4), bpref.transformer_block(2, 6, block=4)
    params = init(block)
    params = params._replace(cross=params.cross._replace(W_o=0 * params.cross.W_o))
    y, dparams, (dx, dmemory, *_) = backpropagate(block, params, (X, MEMORY), X)
    of_plain = bpref.TransformerBlockParams(params.attention, params.mlp)
    expected = backpropagate(plain, of_plain, X, X)
    came = (y, bpref.TransformerBlockParams(dparams.attention, dparams.mlp), dx)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(dmemory, 0)


def test_kept_are_the_streams_and_what_products_need():
    """x, h and g; of either attention q and o, and k and v of what is looked into, of the first m and S; z."""
    layer, F = bpref.decoder_block(2, 6), 6
    params = init(layer)
    _, cache = layer.forward(params, (X, MEMORY))
    of_position, of_memory = 3 * (D + 1) + 2 * 2 * D + 2 * D + 2 * 2 + 2 * F, D + 2 * D
    assert sum(v.size for v in jax.tree.leaves(cache)) == N * (T * of_position + S * of_memory)


def test_nothing_is_dropped_in_evaluation():
    block, plain = bpref.decoder_block(2, 6, dropout=0.5, mlp_dropout=0.5), bpref.decoder_block(2, 6)
    params = init(block)
    y = bpref.evaluation(block).forward(params, (X, MEMORY))[0]
    np.testing.assert_allclose(y, plain.forward(params._replace(key=None), (X, MEMORY))[0], rtol=1e-6)
    assert np.abs(block.forward(params, (X, MEMORY))[0] - y).max() > 0.1


def test_the_two_attentions_drop_other_places():
    """With the sequence itself as memory and the same projections they would put out the same."""
    layer = bpref.decoder_block(1, 6, rope=None, causal=False, dropout=0.5)
    params = init(layer, (X, X))
    q, k, v = jnp.split(params.attention.W_qkv, 3)
    params = params._replace(cross=params.cross._replace(W_q=q, W_k=k, W_v=v))
    _, cache = layer.forward(params, (X, X))
    n = bpref.rms_norm(1e-6).forward(bpref.RmsNormParams(params.attention.norm.scale), X)[0]
    alone = bpref.multi_head_attention(1, bias=False, dropout=0.5)
    of_itself = alone.forward(params.cross, bpref.Sequences(n, n, key=params.key))[1].o
    of_another = alone.forward(params.cross, bpref.Sequences(n, n, key=jax.random.fold_in(params.key, 1)))[1].o
    np.testing.assert_allclose(cache.attention.own.o, of_itself, rtol=1e-4, atol=1e-6)
    assert np.abs(of_itself - of_another).max() > 0.1


def test_what_is_dropped_for_the_batch_is_dropped_for_each_example():
    layer = bpref.stateful(bpref.decoder_block(2, 6, rope=None, dropout=0.3, mlp_dropout=0.5))
    params, state = bpref.begin(layer, jax.random.key(0), (X, MEMORY))
    given = bpref.With((X, MEMORY), state)
    each = bpref.map_leaves(bpref.per_example_gradients, layer)
    _, gradients, _ = bpref.backpropagate(each, params, given, X)
    for i in range(N):
        alone = jnp.zeros_like(X).at[i].set(X[i])
        _, expected, _ = bpref.backpropagate(layer, params, given, alone)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)


BAD_CALLS = {
    "decoder_block: post_norm is 1, expected True or False": lambda: bpref.decoder_block(2, 6, post_norm=1),
    "decoder_block: bias is 'qkv', expected True or False": lambda: bpref.decoder_block(2, 6, bias="qkv"),
    "decoder_block: dropout is 1.0, expected a number from 0 to below 1": lambda: bpref.decoder_block(
        2, 6, dropout=1.0
    ),
    "decoder_block: x has 8 features in its last axis, not a multiple of 3 heads": (
        lambda: init(bpref.decoder_block(3, 6))
    ),
    "decoder_block: memory has shape (2, 7, 8), expected (*b, S, f) = (3, S, f) by x (3, 5, 8)": (
        lambda: init(bpref.decoder_block(2, 6), (X, MEMORY[:2]))
    ),
    "TypeError: decoder_block: x is an array, expected a tuple (x, memory, [mask], [memory_mask])": (
        lambda: init(bpref.decoder_block(2, 6), X)
    ),
}


test_what_does_not_fit_is_refused_by_name = refusals(BAD_CALLS)
