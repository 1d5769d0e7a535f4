"""Attention to the k blocks that suit a query best: its limits, what is chosen, and how much work there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads
from bpref.formulas.attention.softmax_attention import AttentionParams
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate, shapes_within

pytestmark = pytest.mark.quick

DRAWN = np.random.default_rng(0)
T = 11
X = Heads(*(DRAWN.normal(size=(2, T, n, 3)) for n in (4, 2, 2)))
DY = DRAWN.normal(size=(2, T, 4, 3))


def swept(layer, x=X, params=()):
    with jax.enable_x64(True):
        y, _, dx = backpropagate(layer, params, x, DY)
    return y, dx


@pytest.mark.parametrize("k", [4, 9])
def test_as_many_blocks_as_there_are_is_causal_attention(k):
    expected = swept(bpref.dot_product_attention(causal=True), params=AttentionParams())
    came = swept(bpref.top_k_block_attention(3, k))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), came, expected)


def test_one_block_is_its_own():
    own = bpref.block_sparse_attention(np.eye(4, dtype=bool), 3, causal=True)
    came, expected = swept(bpref.top_k_block_attention(3, 1)), swept(own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), came, expected)


def test_each_head_chooses_for_itself_and_what_it_leaves_has_no_cotangent():
    """Blocks of two keys that point along an axis each; the last query's heads look along the second and the first."""
    k = jnp.repeat(jnp.eye(3), 2, 0)[:, None]
    v = jnp.arange(6.0)[:, None, None]
    q = jnp.zeros((6, 2, 3)).at[5].set(jnp.eye(3)[jnp.array([1, 0])])
    y, _, dx = backpropagate(
        bpref.top_k_block_attention(2, 2), (), Heads(q, k, v), jnp.zeros((6, 2, 1)).at[5, 0].set(1)
    )
    w = np.array([np.e, np.e, 1, 1]) ** np.array([3**-0.5, 3**-0.5, 0, 0])
    np.testing.assert_allclose(y[5, :, 0], [w @ [2, 3, 4, 5] / w.sum(), w @ [0, 1, 4, 5] / w.sum()], rtol=1e-6)
    np.testing.assert_allclose(dx.v[:, 0, 0], np.array([0, 0, *w]) / w.sum(), rtol=1e-6)
    assert not np.any(dx.k[:2])
    assert np.all(dx.k[2:, 0, 1])


def test_of_equal_blocks_the_earlier_is_chosen():
    x = Heads(jnp.ones((6, 1, 1)), jnp.ones((6, 1, 1)), jnp.arange(6.0)[:, None, None])
    y = bpref.top_k_block_attention(2, 2).forward((), x)[0]
    np.testing.assert_allclose(y[4:, 0, 0], [(0 + 1 + 4) / 3, (0 + 1 + 4 + 5) / 4], rtol=1e-6)


def test_work_grows_as_the_length_does():
    """So many tiles at most: a query's choices, and as many again as there are blocks that may be filled in part."""

    def sizes(T):
        x, layer = Heads(*(jnp.ones((T, 1, 2)) for _ in range(3))), bpref.top_k_block_attention(8, 3)
        sweep = jax.make_jaxpr(lambda x: layer.backward((), layer.forward((), x)[1], x.q))(x)
        lengths = [e.params["length"] for e in sweep.jaxpr.eqns if e.primitive.name == "scan"]
        return lengths, max(map(np.prod, shapes_within(sweep.jaxpr)))

    (lengths, largest), (twice, larger) = sizes(256), sizes(512)
    assert lengths == [(3 * 256 + 7 * 32) // 8] * 3
    assert twice == [2 * n for n in lengths]
    assert [largest, larger] == [3 * n * n // 8 for n in (256, 512)], "of each choice, which of all blocks it is"


BAD = {
    "top_k_block_attention: k has 4 steps, q has 5; expected as many (k: (4, 2, 3))": Heads(
        jnp.ones((5, 2, 3)), jnp.ones((4, 2, 3)), jnp.ones((4, 2, 3))
    ),
    "top_k_block_attention: bias is given, expected None: there are no logits that it could change": Heads(
        *[jnp.ones((5, 2, 3))] * 3, bias=jnp.ones((2, 5, 5))
    ),
    "top_k_block_attention: q_segments is given, expected None: blocks are of one sequence": Heads(
        *[jnp.ones((5, 2, 3))] * 3, q_segments=jnp.ones(5, int)
    ),
}


test_bad_input_is_refused_by_name = refusals(BAD, lambda x: bpref.top_k_block_attention(2, 2).forward((), x))
