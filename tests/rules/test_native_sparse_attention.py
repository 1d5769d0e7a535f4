"""The gated sum of attention to summaries, to chosen blocks and to a window: query by query, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads, SparseHeads
from bpref.formulas.attention.softmax_attention import AttentionParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

T, N, K, D, B, CHOSEN, W = 13, 4, 2, 3, 3, 2, 5
DRAWN = np.random.default_rng(0)
Q, DY = DRAWN.normal(size=(2, 2, T, N, D))
KEYS, VALUES = DRAWN.normal(size=(2, 2, T, K, D))
GATES = DRAWN.uniform(size=(2, T, N, 3))


def means(v):
    """Of the blocks that are whole."""
    return v[:, : T // B * B].reshape(2, T // B, B, K, D).mean(2)


X = SparseHeads(Q, means(KEYS), means(VALUES), KEYS, VALUES, KEYS, VALUES, GATES)


def attended(q, keys, values):
    if not len(keys):
        return np.zeros(D)
    p = np.exp(keys @ q / np.sqrt(D))
    return p @ values / p.sum()


def test_each_query_sees_what_the_paper_says():
    """Arxiv 2502.11089, equations 5 to 11, in loops."""
    expected = np.zeros_like(Q)
    for b, t, n in np.ndindex(2, T, N):
        q, keys, values = Q[b, t, n], KEYS[b, :, n // 2], VALUES[b, :, n // 2]
        whole = (t + 1) // B
        o = [attended(q, X.k_summary[b, :whole, n // 2], X.v_summary[b, :whole, n // 2])]
        own = t // B
        worth = [q @ keys[j * B : (j + 1) * B].mean(0) for j in range(own)]
        blocks = [own, *np.argsort(worth)[::-1][: CHOSEN - 1]]
        seen = [s for s in range(t + 1) if s // B in blocks]
        o += [attended(q, keys[seen], values[seen])]
        near = slice(max(t - W + 1, 0), t + 1)
        o += [attended(q, keys[near], values[near])]
        expected[b, t, n] = GATES[b, t, n] @ o
    with jax.enable_x64(True):
        y = bpref.native_sparse_attention(B, CHOSEN, W).forward((), X)[0]
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


def test_one_gate_alone_is_its_attention_with_its_cotangents():
    layer, whole = (
        bpref.native_sparse_attention(B, CHOSEN, W),
        (np.arange(T // B) + 1) * B <= np.arange(1, T + 1)[:, None],
    )
    alone = [
        (bpref.dot_product_attention(), AttentionParams(), Heads(Q, *X[1:3], jnp.asarray(whole)[None, None])),
        (bpref.top_k_block_attention(B, CHOSEN), (), Heads(Q, KEYS, VALUES)),
        (bpref.dot_product_attention(True, W), AttentionParams(), Heads(Q, KEYS, VALUES)),
    ]
    for i, (one, params, heads) in enumerate(alone):
        with jax.enable_x64(True):
            y, _, dx = backpropagate(layer, (), X._replace(gates=np.broadcast_to(np.eye(3)[i], GATES.shape)), DY)
            expected, _, of_heads = backpropagate(one, params, heads, DY)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
        others = [d for j in range(3) if j != i for d in dx[1 + 2 * j : 3 + 2 * j]]
        assert not any(np.any(d) for d in others)
        for ours, theirs in zip((dx.q, *dx[1 + 2 * i : 3 + 2 * i]), of_heads[:3], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(dx.gates[..., i], np.sum(DY * expected, -1), rtol=1e-11, atol=1e-13)


def test_where_all_is_seen_three_gates_are_attention_times_their_sum():
    """As many blocks as there are, a window of T, and summaries that are the keys themselves."""
    x = SparseHeads(Q, KEYS, VALUES, KEYS, VALUES, KEYS, VALUES, GATES)
    with jax.enable_x64(True):
        y = bpref.native_sparse_attention(B, 5, T, length=1).forward((), x)[0]
        causal = bpref.dot_product_attention(causal=True).forward(AttentionParams(), Heads(Q, KEYS, VALUES))[0]
    np.testing.assert_allclose(y, GATES.sum(-1, keepdims=True) * np.asarray(causal), rtol=1e-12, atol=1e-14)


test_wrong_calls_are_refused = refusals(
    {
        "native_sparse_attention: k is 0, expected a positive integer": lambda: bpref.native_sparse_attention(k=0),
        "native_sparse_attention: stride is -1, expected a positive integer": (
            lambda: bpref.native_sparse_attention(stride=-1)
        ),
        "native_sparse_attention: k_summary has shape (2, 0, 2, 3), expected none of its last three axes empty": (
            lambda: bpref.native_sparse_attention(B).forward(
                (), X._replace(k_summary=KEYS[:, :0], v_summary=KEYS[:, :0])
            )
        ),
        "native_sparse_attention: q has 3 heads, expected a multiple of k's 2": (
            lambda: bpref.native_sparse_attention(B).forward((), X._replace(q=Q[:, :, :3], gates=GATES[:, :, :3]))
        ),
    },
)
