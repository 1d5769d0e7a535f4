"""Latent attention: what is refused, what sees nothing, packed sequences, and that it is multi-head attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Sequences
from bpref.rules.attention.multi_head_attention import MultiHeadAttentionParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

X = jnp.ones((2, 3, 4))
KEY = jax.random.key(0)
LAYER = bpref.latent_attention(2, 3, 2, head_dim=3, rope_dim=2, causal=False)
PARAMS = LAYER.init(KEY, X)

BAD_CALLS = {
    "latent_attention: kv_rank is 0, expected a positive integer": lambda: bpref.latent_attention(2, 0),
    "latent_attention: rope_dim is 3, expected an even number": lambda: bpref.latent_attention(2, 3, rope_dim=3),
    "latent_attention: there is a memory, expected None: keys and values are made of x": (
        lambda: LAYER.forward(PARAMS, Sequences(X, X))
    ),
}


test_bad_calls_say_what_was_expected = refusals(BAD_CALLS)


def drawn(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_what_sees_nothing_is_zero_and_gives_no_gradient():
    x = Sequences(drawn(1, 3, 4), mask=jnp.zeros((1, 1, 3, 1), bool))
    results = jax.tree.leaves(backpropagate(LAYER, PARAMS, x))
    assert len(results) == 11
    assert not any(np.any(v) for v in results)


def test_packed_sequences_are_as_if_each_were_alone():
    x = drawn(1, 5, 4)
    y, _, dx = backpropagate(LAYER, PARAMS, Sequences(x, segments=jnp.array([[7, 7, 7, 3, 3]])))
    alone = [backpropagate(LAYER, PARAMS, v) for v in (x[:, :3], x[:, 3:])]
    np.testing.assert_allclose(y, np.concatenate([y for y, _, _ in alone], 1), atol=1e-6)
    np.testing.assert_allclose(dx.x, np.concatenate([dx for _, _, dx in alone], 1), atol=1e-6)


def test_the_cache_has_of_each_position_its_latents_and_the_output_of_its_heads():
    cache = jax.eval_shape(LAYER.forward, PARAMS, X)[1]
    assert {name: v.shape for name, v in cache._asdict().items()} == {
        "x": (2, 3, 4),
        "a": (2, 3, 2),
        "c": (2, 3, 3),
        "o": (2, 3, 2, 3),
    }


def test_without_norms_it_is_multi_head_attention_of_products_of_its_weights():
    """Of heads with the turned features in front, which no dot product takes notice of."""
    layer = bpref.latent_attention(2, 3, head_dim=2, rope_dim=2, norm=False, base=50.0)
    p = jax.tree.map(lambda v: drawn(*v.shape), layer.init(KEY, X))
    x = drawn(2, 5, 4)
    y, dp, dx = backpropagate(layer, p, x)

    W_q = jnp.roll(p.W_uq.reshape(2, 4, 4), 2, 1).reshape(8, 4)
    W_k = jnp.concatenate([jnp.stack([p.W_kr, p.W_kr]), (p.W_uk @ p.W_dkv).reshape(2, 2, 4)], 1).reshape(8, 4)
    W_v = jnp.pad((p.W_uv @ p.W_dkv).reshape(2, 2, 4), ((0, 0), (0, 2), (0, 0))).reshape(8, 4)
    W_o = jnp.pad(p.W_o.reshape(4, 2, 2), ((0, 0), (0, 0), (0, 2))).reshape(4, 8)
    whole = bpref.multi_head_attention(2, head_dim=4, bias=False, rope=50.0, fraction=0.5, causal=True)
    y_of_whole, d, dx_of_whole = backpropagate(whole, MultiHeadAttentionParams(W_q, W_k, W_v, W_o), x)
    dW_k, dW_v = d.W_k.reshape(2, 4, 4), d.W_v.reshape(2, 4, 4)[:, :2].reshape(4, 4)
    pairs = (
        (y, y_of_whole),
        (dx, dx_of_whole),
        (dp.W_uq, jnp.roll(d.W_q.reshape(2, 4, 4), 2, 1).reshape(8, 4)),
        (dp.W_kr, dW_k[:, :2].sum(0)),
        (dp.W_uk, dW_k[:, 2:].reshape(4, 4) @ p.W_dkv.T),
        (dp.W_uv, dW_v @ p.W_dkv.T),
        (dp.W_dkv, p.W_uk.T @ dW_k[:, 2:].reshape(4, 4) + p.W_uv.T @ dW_v),
        (dp.W_o, d.W_o.reshape(4, 2, 4)[..., :2].reshape(4, 4)),
    )
    for came, expected in pairs:
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-4)
