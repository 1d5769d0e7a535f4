"""Softmax attention that forgets: its limits, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import ForgettingHeads, Heads
from bpref.formulas.attention.softmax_attention import AttentionParams
from tests.comparing import assert_same
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

B, T, N, K, D = 2, 9, 4, 2, 3
DRAWN = np.random.default_rng(0)
X = Heads(*(DRAWN.normal(size=(B, T, n, D)) for n in (N, K, K)))
DY = DRAWN.normal(size=(B, T, N, D))


def swept(x, dy=DY, layer=None, params=()):
    with jax.enable_x64(True):
        y, _, dx = backpropagate(layer or bpref.forgetting_attention(), params, x, dy)
        return jax.tree.map(np.asarray, (y, dx))


def test_gates_of_1_are_causal_attention():
    y, dx = swept(ForgettingHeads(X, np.zeros((B, T, N))))
    expected = swept(X, DY, bpref.dot_product_attention(causal=True), AttentionParams())
    assert_same((y, dx.heads), expected, 1e-11)


def test_one_gate_for_all_steps_is_a_bias_by_distance():
    slopes = 2.0 ** (-8 * np.arange(1, N + 1) / N)
    y, dx = swept(ForgettingHeads(X, np.broadcast_to(-slopes, (B, T, N))))
    expected = swept(X, DY, bpref.dot_product_attention(causal=True, alibi=True), AttentionParams())
    assert_same((y, dx.heads), expected, 1e-11)


def test_a_gate_of_0_begins_anew():
    """What comes after it is as if nothing had come before; its logarithm, and all before, have nothing from there."""
    cut, gate = 4, np.log(DRAWN.uniform(0.1, 1, (B, T, N)))
    gate[:, cut] = -np.inf
    dy = DY.copy()
    dy[:, :cut] = 0
    y, dx = swept(ForgettingHeads(X, gate), dy)
    late = jax.tree.map(lambda v: v[:, cut:], ForgettingHeads(X, gate))
    alone, of_late = swept(late, dy[:, cut:])
    assert_same((y[:, cut:], jax.tree.map(lambda d: d[:, cut:], dx)), (alone, of_late), 1e-11)
    np.testing.assert_array_equal(dx.log_gate[:, : cut + 1], 0)


def test_late_gates_keep_their_digits():
    """After a sum of -4096 float32 has no room for a gate of -0.0001 in it; the weights' ratio is exp of that gate."""
    gate = jnp.full((4, 1), -4096.0).at[3].set(-1e-4)
    flat = jnp.zeros((4, 1, 1))
    v = jnp.array([0.0, 0.0, 0.0, 1.0])[:, None, None]
    y, _, dx = backpropagate(bpref.forgetting_attention(), (), ForgettingHeads(Heads(flat, flat, v), gate))
    p = 1 / (1 + np.exp(-1e-4))
    np.testing.assert_allclose(y[3, 0, 0], p, rtol=1e-7)
    np.testing.assert_allclose(dx.log_gate[3, 0], -p * (1 - p), rtol=1e-6)


ONES = Heads(*(jnp.ones((2, 5, n, 3)) for n in (4, 2, 2)))
GATE = jnp.zeros((2, 5, 4))
BAD_CALLS = {
    "forgetting_attention: heads.bias is given, expected None: it is made of the gates": ForgettingHeads(
        ONES._replace(bias=jnp.zeros((1, 1, 5, 5))), GATE
    ),
    "forgetting_attention: heads.key is given, expected None: nothing is dropped": ForgettingHeads(
        ONES._replace(key=jax.random.key(0)), GATE
    ),
    "forgetting_attention: k has 6 steps, q has 5; expected as many (k: (2, 6, 2, 3))": ForgettingHeads(
        ONES._replace(k=jnp.ones((2, 6, 2, 3)), v=jnp.ones((2, 6, 2, 3))), GATE
    ),
    "forgetting_attention: log_gate has shape (2, 5, 2), expected (*b, T, N) = (2, 5, 4) by heads.q (2, 5, 4, 3)": (
        ForgettingHeads(ONES, jnp.zeros((2, 5, 2)))
    ),
}


test_bad_input_is_refused_by_name = refusals(BAD_CALLS, lambda x: bpref.forgetting_attention().forward((), x))
