"""Attention with a state: what its layers refuse, how they relate to each other, and numbers worked by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import DeltaHeads, GatedHeads, ProductHeads
from bpref.formulas.attention.heads import Heads
from bpref.layer import Layer
from tests.comparing import assert_same
from tests.refusing import refusals
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

X = Heads(jnp.ones((2, 5, 4, 3)), jnp.ones((2, 5, 2, 3)), jnp.ones((2, 5, 2, 6)))
GATE = jnp.zeros((2, 5, 2))
GATES = jnp.zeros((2, 5, 2, 3))

BAD_CALLS = {
    "linear_attention: features is 'tanh', expected one of elu, relu, identity": lambda: bpref.linear_attention("tanh"),
    "linear_attention: chunk is 0, expected a positive integer": lambda: bpref.linear_attention(chunk=0),
    "retention: chunk is 0, expected a positive integer": lambda: bpref.retention(chunk=0),
    "delta_rule: chunk is 2.0, expected a positive integer": lambda: bpref.delta_rule(chunk=2.0),
    "delta_product: v has shape (2, 5, 2, 2, 6), expected (*b, T, n, K, E) = (2, 5, 3, 2, E) by q (2, 5, 4, 3) and "
    "k (2, 5, 3, 2, 3)": (
        lambda: bpref.delta_product().forward(
            (), ProductHeads(X.q, jnp.ones((2, 5, 3, 2, 3)), jnp.ones((2, 5, 2, 2, 6)), jnp.ones((2, 5, 3, 2)))
        )
    ),
    "gated_linear_attention: chunk is 48, expected a power of 2, since it is halved": (
        lambda: bpref.gated_linear_attention(chunk=48)
    ),
    "linear_attention: mask is given, expected None: there are no logits that it could change": (
        lambda: bpref.linear_attention().forward((), X._replace(mask=jnp.ones((1, 1, 5, 5), bool)))
    ),
    "linear_attention: k has 6 steps, q has 5; expected as many (k: (2, 6, 2, 3))": (
        lambda: bpref.linear_attention().forward((), X._replace(k=jnp.ones((2, 6, 2, 3)), v=jnp.ones((2, 6, 2, 6))))
    ),
    "linear_attention: q has 3 heads, expected a multiple of k's 2": (
        lambda: bpref.linear_attention().forward((), X._replace(q=jnp.ones((2, 5, 3, 3))))
    ),
    "retention: log_gate has shape (2, 5, 2, 3), expected (2, 5, 2), by k (2, 5, 2, 3)": (
        lambda: bpref.retention().forward((), GatedHeads(X, GATES))
    ),
    "gated_linear_attention: log_gate has shape (2, 5, 2), expected (2, 5, 2, 3), by k (2, 5, 2, 3)": (
        lambda: bpref.gated_linear_attention().forward((), GatedHeads(X, GATE))
    ),
}


test_bad_input_is_refused_by_name = refusals(BAD_CALLS)


def heads(T: int, K: int = 2) -> Heads:
    rng = np.random.default_rng(T)
    q, k, v = (rng.uniform(-1, 1, (2, T, n, d)) for n, d in ((4, 3), (K, 3), (K, 6)))
    return Heads(q, k, v)


def gates(*shape: int) -> np.ndarray:
    return np.log(np.random.default_rng(1).uniform(0.1, 1, shape))


def swept(layer: Layer, x: Any) -> tuple[Any, Any]:
    """y and dx in float64, for a cotangent that depends on the shape alone."""

    q, v = (x if isinstance(x, Heads) else x.heads)[::2][:2]
    dy = np.random.default_rng(2).normal(size=(*q.shape[:-1], v.shape[-1]))
    with jax.enable_x64(True):
        y, _, dx = backpropagate(layer, (), x, dy)
        return jax.tree.map(np.asarray, (y, dx))


def of_each(T: int) -> dict[str, Any]:
    x, beta = heads(T), np.random.default_rng(3).uniform(0, 1, (2, T, 2))
    return {
        "linear_attention": x,
        "retention": GatedHeads(x, gates(2, T, 2)),
        "gated_linear_attention": GatedHeads(x, gates(2, T, 2, 3)),
        "delta_rule": DeltaHeads(x, beta, gates(2, T, 2)),
    }


@pytest.mark.parametrize("name", of_each(0))
def test_the_chunk_changes_no_value(name: str):
    x = of_each(21)[name]
    one_by_one = swept(getattr(bpref, name)(chunk=1), x)
    for chunk in (8, 64):
        assert_same(swept(getattr(bpref, name)(chunk=chunk), x), one_by_one, 1e-10)


@pytest.mark.parametrize("name", of_each(0))
def test_of_no_steps_there_is_no_output(name: str):
    x = of_each(0)[name]
    y, dx = swept(getattr(bpref, name)(), x)
    assert y.shape == (2, 0, 4, 6)
    assert jax.tree.map(jnp.shape, dx) == jax.tree.map(jnp.shape, x)


def test_gates_of_1_are_linear_attention():
    x = heads(21)
    y, dx = swept(bpref.linear_attention("identity", normalize=False, chunk=8), x)
    for name, gate in (("retention", np.zeros((2, 21, 2))), ("gated_linear_attention", np.zeros((2, 21, 2, 3)))):
        y_gated, dx_gated = swept(getattr(bpref, name)(chunk=8), GatedHeads(x, gate))
        assert_same((y_gated, dx_gated.heads), (y, dx), 1e-10)


def test_one_gate_for_all_features_is_retention():
    x, gate = heads(21), gates(2, 21, 2)
    y, dx = swept(bpref.retention(chunk=8), GatedHeads(x, gate))
    spread = np.broadcast_to(gate[..., None], (2, 21, 2, 3))
    y_spread, dx_spread = swept(bpref.gated_linear_attention(chunk=8), GatedHeads(x, spread))
    assert_same((y_spread, dx_spread.heads), (y, dx.heads), 1e-10)
    assert_same(np.sum(dx_spread.log_gate, -1), dx.log_gate, 1e-10)


@pytest.mark.parametrize("name", ["retention", "gated_linear_attention", "delta_rule"])
def test_a_gate_of_0_begins_anew(name: str):
    """What comes after it is as if nothing had come before; its logarithm, and all before, have nothing from there."""
    T, cut = 21, 10
    x = of_each(T)[name]
    x.log_gate[:, cut] = -np.inf
    layer = getattr(bpref, name)(chunk=8)
    late = jax.tree.map(lambda v: v[:, cut:], x)
    with jax.enable_x64(True):
        dy = np.random.default_rng(2).normal(size=jax.eval_shape(layer.forward, (), x)[0].shape)
        dy[:, :cut] = 0
        y, _, dx = backpropagate(layer, (), x, dy)
        alone, _, of_late = backpropagate(layer, (), late, dy[:, cut:])
        assert_same(y[:, cut:], alone, 1e-10)
        assert_same(jax.tree.map(lambda d: d[:, cut:], dx), of_late, 1e-10)
    for d in jax.tree.leaves(dx):
        np.testing.assert_array_equal(d[:, :cut], 0)
    np.testing.assert_array_equal(dx.log_gate[:, cut], 0)


def test_a_vanishing_gate_keeps_the_digits_of_its_small_cotangent():
    """dg of a pair of steps is q_2 . k_1 e^g (v_1 . dy_2): e^-60, beside terms near 1."""
    one = jnp.ones((1, 2, 1, 1))
    gate = jnp.array([0.0, -60.0])[None, :, None]
    for layer, g in ((bpref.retention(), gate), (bpref.gated_linear_attention(), gate[..., None])):
        x = GatedHeads(Heads(one, one, one), g)
        dg = backpropagate(layer, (), x)[2].log_gate
        np.testing.assert_allclose(dg.reshape(-1), [0.0, np.exp(-60)], rtol=1e-6)


def test_linear_attention_of_two_steps_by_hand():
    """Features 1 and 2, 3: weights of the second step 2 and 6 of 8, y = (1, 1/4 + 3 * 5 / 4 = 4)."""
    q, k, v = (jnp.asarray(u, jnp.float32).reshape(1, 2, 1, 1) for u in ((1, 2), (1, 3), (1, 5)))
    y, _, dx = backpropagate(
        bpref.linear_attention("relu"), (), Heads(q, k, v), jnp.array([0.0, 8.0])[None, :, None, None]
    )
    np.testing.assert_allclose(y.reshape(-1), [1, 4])
    np.testing.assert_allclose(dx.v.reshape(-1), [2, 6])
    np.testing.assert_allclose(dx.q.reshape(-1), [0, 0], atol=1e-6)
    np.testing.assert_allclose(dx.k.reshape(-1), [2 * (1 - 4), 2 * (5 - 4)])


def test_where_no_feature_meets_y_and_its_cotangents_are_0():
    q, k = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    x = Heads(*(u.reshape(1, 1, 2) for u in (q, k, jnp.array([3.0, 4.0]))))
    y, _, dx = backpropagate(bpref.linear_attention("relu"), (), x, jnp.ones((1, 1, 2)))
    for v in (y, *jax.tree.leaves(dx)):
        np.testing.assert_array_equal(v, 0)


def test_the_delta_rule_overwrites_the_value_of_a_key():
    """With beta = 1 and keys of length 1, what is read for a key is the last value written for it."""
    k = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])[:, None]
    q = jnp.broadcast_to(k[:1], k.shape)
    v = jnp.array([5.0, 7.0, 9.0])[:, None, None]
    dy = jnp.array([0.0, 0.0, 1.0])[:, None, None]
    y, _, dx = backpropagate(bpref.delta_rule(), (), DeltaHeads(Heads(q, k, v), jnp.ones((3, 1))), dy)
    np.testing.assert_array_equal(y.reshape(-1), [5, 5, 9])
    np.testing.assert_array_equal(dx.heads.v.reshape(-1), [0, 0, 1])
    np.testing.assert_array_equal(dx.beta.reshape(-1), [0, 0, 9 - 5])
    assert dx.log_gate is None


def test_the_delta_rule_of_beta_0_writes_nothing():
    x = heads(7)
    y, dx = swept(bpref.delta_rule(chunk=4), DeltaHeads(x, np.zeros((2, 7, 2))))
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(dx.heads.v, 0)
    assert np.abs(dx.beta).min() > 0


def test_a_product_of_one_step_is_the_delta_rule():
    x = of_each(21)["delta_rule"]
    y, dx = swept(bpref.delta_rule(chunk=8), x)
    k, v, beta = (z[:, :, None] for z in (x.heads.k, x.heads.v, x.beta))
    y_of_one, dx_of_one = swept_product(ProductHeads(x.heads.q, k, v, beta, x.log_gate))
    assert_same(y_of_one, y, 1e-10)
    parts = dx_of_one.q, *(d[:, :, 0] for d in dx_of_one[1:4]), dx_of_one.log_gate
    assert_same(parts, (*dx.heads[:3], dx.beta, dx.log_gate), 1e-10)


def swept_product(x: ProductHeads) -> tuple[Any, Any]:
    dy = np.random.default_rng(2).normal(size=(*x.q.shape[:-1], x.v.shape[-1]))
    with jax.enable_x64(True):
        y, _, dx = backpropagate(bpref.delta_product(chunk=8), (), x, dy)
        return jax.tree.map(np.asarray, (y, dx))


def test_a_product_of_two_reflections_permutes():
    """Of beta 2, (e1 - e2) / sqrt 2 exchanges two rows of the state, and (e2 - e3) / sqrt 2 two more: a cycle of three,
    which the delta rule, one reflection a step, cannot do. Its cotangent goes the other way round."""
    T, rows = 4, np.array([[1.0], [2.0], [3.0]])
    keys = np.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]) / np.sqrt(2)
    q, k = np.broadcast_to(np.eye(3)[:1], (T, 1, 3)), np.broadcast_to(keys[:, None], (T, 2, 1, 3))
    x = ProductHeads(q, k, np.zeros((T, 2, 1, 1)), np.full((T, 2, 1), 2.0), state=rows[None])
    dy = np.array([0.0, 0.0, 0.0, 1.0])[:, None, None]
    with jax.enable_x64(True):
        y, _, dx = backpropagate(bpref.delta_product(chunk=3), (), x, dy)
    np.testing.assert_allclose(y.reshape(-1), [2, 3, 1, 2], atol=1e-14)
    np.testing.assert_allclose(dx.state.reshape(-1), [0, 1, 0], atol=1e-14)


def test_steps_that_never_end_keep_their_size():
    """Float32 over 4096 steps with equal unit keys, where powers of the chunk's matrix would overflow."""
    T = 4096
    one = jnp.ones((T, 1, 1))
    y, _, dx = backpropagate(bpref.delta_rule(), (), DeltaHeads(Heads(one, one, one), jnp.ones((T, 1))), one)
    np.testing.assert_array_equal(y, 1)
    assert all(bool(jnp.isfinite(d).all()) for d in jax.tree.leaves(dx))
