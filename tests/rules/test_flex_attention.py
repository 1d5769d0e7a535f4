"""Attention of scores that a layer changes: what other attentions have built in, put in from outside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Heads, Layer, Scores
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.layer import no_params
from bpref.rules import RULES
from tests.refusing import refusals
from tests.rules.beside_torch import assert_same
from tests.rules.sweeping import backpropagate, shapes_within

pytestmark = pytest.mark.quick

DRAWN = np.random.default_rng(0)
T, S, N, K, D = 7, 9, 4, 2, 3
X = Heads(*(DRAWN.normal(size=(2, n, h, D)) for n, h in ((T, N), (S, K), (S, K))))
DY = DRAWN.normal(size=(2, T, N, D))
BLOCKS = pytest.mark.parametrize("blocks", [(256, 256), (3, 4)], ids=["one block", "blocks"])


def swept(layer, params, x=X):
    with jax.enable_x64(True):
        y, dparams, dx = backpropagate(layer, params, x, DY)
    return y, dparams, dx


def assert_close(came, expected):
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def falling(slopes):
    """ALiBi, by hand."""

    def forward(params, x):
        distance = jnp.abs(x.s[None] - x.t[:, None])[None]
        fall = jnp.asarray(slopes, x.z.dtype)[:, None, None] * distance.astype(x.z.dtype)
        return x.z - jnp.broadcast_to(fall, x.z.shape), ()

    return Layer(no_params, forward, lambda params, cache, dx: ((), Scores(dx, None, None)), "falling")


def bent(c):
    """A rule of arrays, `soft_cap`, that is given z alone."""
    cap = bpref.soft_cap(c)

    def forward(params, x):
        return cap.forward((), x.z)

    def backward(params, cache, dx):
        return (), Scores(cap.backward((), cache, dx)[1], None, None)

    return Layer(no_params, forward, backward, "bent")


def learned(furthest):
    """A bias for each distance from -furthest to furthest, and head: (distances, N)."""

    def init(key, x):
        return jnp.zeros((2 * furthest + 1, x.z.shape[-3]), x.z.dtype)

    def forward(table, x):
        row = jnp.clip(x.s[None] - x.t[:, None], -furthest, furthest) + furthest
        return x.z + jnp.broadcast_to(jnp.moveaxis(table[row], -1, 0), x.z.shape), row

    def backward(table, row, dx):
        of_all = jnp.moveaxis(dx.reshape(-1, *dx.shape[-3:]).sum(0), 0, -1)
        return jnp.zeros_like(table).at[row].add(of_all), Scores(dx, None, None)

    return Layer(init, forward, backward, "learned")


@BLOCKS
def test_slopes_of_heads_are_alibi(blocks):
    slopes = 2.0 ** (-8 * np.arange(1, N + 1) / N)
    came = swept(bpref.flex_attention(falling(slopes), query_block=blocks[0], key_block=blocks[1]), ())
    y, _, dx = swept(bpref.dot_product_attention(alibi=True), AttentionParams())
    assert_close((came[0], came[2]), (y, dx))


@BLOCKS
def test_a_rule_of_the_scores_alone_is_a_soft_cap(blocks):
    layer = bpref.flex_attention(bent(1.5), causal=True, query_block=blocks[0], key_block=blocks[1])
    y, _, dx = swept(bpref.dot_product_attention(causal=True, soft_cap=1.5), AttentionParams())
    came = swept(layer, ())
    assert_close((came[0], came[2]), (y, dx))


@BLOCKS
def test_a_table_that_is_learned_is_a_bias_whose_cotangent_is_summed(blocks):
    table = DRAWN.normal(size=(9, N))
    row = np.clip(np.arange(S)[None] - np.arange(T)[:, None], -4, 4) + 4
    biased = X._replace(bias=np.moveaxis(table[row], -1, 0)[None])
    y, _, dx = swept(bpref.dot_product_attention(window=(5, 2)), AttentionParams(), biased)
    layer = bpref.flex_attention(learned(4), window=(5, 2), query_block=blocks[0], key_block=blocks[1])
    came = swept(layer, table)
    assert_close((came[0], came[2]), (y, dx._replace(bias=None)))
    dtable = np.zeros_like(table)
    np.add.at(dtable, row, np.moveaxis(dx.bias[0], 0, -1))
    assert_close(came[1], dtable)


def test_nothing_of_all_pairs_is_made():
    layer = bpref.flex_attention(bent(1.5), query_block=8, key_block=8)
    x = Heads(*(jnp.ones((64, 1, 2)) for _ in range(3)))
    sweep = jax.make_jaxpr(lambda x: layer.backward((), layer.forward((), x)[1], x.q))(x)
    assert max(map(np.prod, shapes_within(sweep.jaxpr))) <= 64 * 8


def test_beside_torch():
    """Scores that slopes of the heads tilt, written out: PyTorch's own `flex_attention` has no backward on a CPU."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ahead = torch.arange(S)[None] - torch.arange(T)[:, None]

    def twin(w, x):
        k, v = (a.repeat_interleave(N // K, 2) for a in (x.k, x.v))
        z = torch.einsum("btnd,bsnd->bnts", x.q, k) / D**0.5
        p = torch.softmax(z * (1 + w[:, None, None] * ahead), -1)
        return torch.einsum("bnts,bsnd->btnd", p, v)

    tilted = RULES["flex_attention"].cases[1].hyper["score"]
    layer = bpref.flex_attention(tilted, query_block=3, key_block=4)
    assert_same(layer, twin, 0.1 * DRAWN.normal(size=N), X)


def giving(f):
    return Layer(no_params, lambda params, x: (f(x.z), ()), lambda params, cache, dx: ((), Scores(dx, None, None)), "f")


ONES = Heads(*(jnp.ones((2, 5, n, 3)) for n in (4, 2, 2)))


def scored(score, x=ONES):
    return bpref.flex_attention(score).forward((), x)


test_bad_input_is_refused_by_name = refusals(
    {
        "flex_attention: f gives the shape (2, 4, 5), expected z's, (2, 4, 5, 5)": (
            lambda: scored(giving(lambda z: z[..., 0]))
        ),
        "TypeError: flex_attention: f gives the dtype bfloat16, expected z's, float32": (
            lambda: scored(giving(lambda z: z.astype(jnp.bfloat16)))
        ),
        "flex_attention: x.key is given, expected None: there is no dropout": (
            lambda: scored(bent(1.0), ONES._replace(key=jax.random.key(0)))
        ),
        "TypeError: flex_attention: ...": lambda: scored(jnp.tanh),
    }
)
