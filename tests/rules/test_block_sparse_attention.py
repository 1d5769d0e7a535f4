"""Block-sparse attention: the pattern alone decides what is read, and how much work there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads
from bpref.formulas.attention.softmax_attention import AttentionParams
from tests.refusing import refusals
from tests.rules.beside_torch import assert_same
from tests.rules.sweeping import backpropagate, shapes_within

pytestmark = pytest.mark.quick

DRAWN = np.random.default_rng(0)
EYE = np.eye(4, dtype=bool)


def heads(T, S, N=2, K=1, D=3):
    return Heads(*(DRAWN.normal(size=(2, n, h, D)) for n, h in ((T, N), (S, K), (S, K))))


def loops(layer, x):
    """How often those of the forward and of the backward run."""
    sweep = jax.make_jaxpr(lambda x: layer.backward((), layer.forward((), x)[1], x.q))(x)
    return [e.params["length"] for e in sweep.jaxpr.eqns if e.primitive.name == "scan"]


def test_work_grows_with_the_blocks_that_are_set():
    x = heads(32, 32)
    assert loops(bpref.block_sparse_attention(np.ones((4, 4), bool)), x) == [16, 32]
    assert loops(bpref.block_sparse_attention(np.ones((4, 4), bool), causal=True), x) == [10, 20]
    assert loops(bpref.block_sparse_attention(EYE), x) == [4, 4]
    assert loops(bpref.block_sparse_attention(EYE[[0, 0, 0, 0]], block=8), x) == [4, 4]
    assert loops(bpref.block_sparse_attention(EYE, block=16), x) == [2, 2]


def test_nothing_of_all_pairs_is_made():
    x, layer = heads(64, 64, 1), bpref.block_sparse_attention(np.eye(8, dtype=bool))
    sweep = jax.make_jaxpr(lambda x: layer.backward((), layer.forward((), x)[1], x.q))(x)
    assert max(map(np.prod, shapes_within(sweep.jaxpr))) <= 2 * 64 * 8


def test_each_block_by_itself_is_attention_of_a_batch_of_blocks():
    x = heads(12, 12)
    alone = jax.tree.map(lambda v: v.reshape(8, 3, *v.shape[2:]), x)
    with jax.enable_x64(True):
        y, _, dx = backpropagate(bpref.block_sparse_attention(EYE, 3), (), x, x.q)
        each = backpropagate(bpref.dot_product_attention(), AttentionParams(), alone, alone.q)
    for a, b in zip(jax.tree.leaves((y, dx)), jax.tree.leaves((each[0], each[2])), strict=True):
        np.testing.assert_allclose(a, np.reshape(b, a.shape), rtol=1e-12, atol=1e-13)


def test_what_is_in_no_block_that_is_set_is_not_read():
    sees = np.array([[True, False], [False, False]])
    x = jax.tree.map(jnp.float32, heads(4, 6))
    spoiled = x._replace(q=x.q.at[:, 2:].set(jnp.nan), k=x.k.at[:, 3:].set(jnp.nan), v=x.v.at[:, 3:].set(jnp.inf))
    layer = bpref.block_sparse_attention(sees)
    clean, came = (backpropagate(layer, (), v, jnp.ones_like(x.q)) for v in (x, spoiled))
    jax.tree.map(np.testing.assert_array_equal, came, clean)
    assert not np.any(came[0][:, 2:])


def test_beside_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    sees = DRAWN.random((3, 4)) > 0.5
    sees[:, 0] = True
    mask = torch.tensor(np.repeat(np.repeat(sees, 4, 0), 2, 1)[:10, :7])

    def twin(_, x):
        q, k, v = (a.transpose(1, 2) for a in (x.q, x.k, x.v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return y.transpose(1, 2)

    assert_same(bpref.block_sparse_attention(sees, (4, 2)), twin, (), heads(10, 7))


test_bad_patterns_are_refused_by_name = refusals(
    {
        "block_sparse_attention: pattern is of shape (2, 2) and dtype float64, expected booleans, a row for each block "
        "of queries": {"pattern": np.ones((2, 2))},
        "block_sparse_attention: pattern is of shape (2, 2, 2) and dtype bool, expected booleans, a row for each block "
        "of queries": {"pattern": np.ones((2, 2, 2), bool)},
        "block_sparse_attention: pattern is ((True, False), (True,)), expected booleans, a row for each block of "
        "queries": {"pattern": ((True, False), (True,))},
        "block_sparse_attention: block is 0, expected a positive integer": {"pattern": EYE, "block": 0},
        "block_sparse_attention: block[1] is 0.5, expected a positive integer": {"pattern": EYE, "block": (2, 0.5)},
        "block_sparse_attention: 20 keys, expected at most 12: 4 blocks of 3": {"pattern": EYE, "block": (5, 3)},
        "block_sparse_attention: 20 queries, expected at most 8: 4 blocks of 2": {"pattern": EYE, "block": 2},
    },
    lambda hyper: bpref.block_sparse_attention(**hyper).forward((), heads(20, 20)),
)


def test_a_traced_pattern_is_refused():
    with pytest.raises(TypeError) as seen:
        jax.jit(lambda C: bpref.block_sparse_attention(C).forward((), heads(8, 8))[0])(EYE)
    assert str(seen.value) == (
        "block_sparse_attention: pattern is traced, expected booleans that are known: which blocks there are is static"
    )
