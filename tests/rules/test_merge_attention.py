"""Partial attentions that are merged: what the whole attention gives, forward and backward, and what nobody sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Attended, Heads
from bpref.layer import Layer
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick

DRAWN = np.random.default_rng(0)
ATTEND, MERGE = bpref.attention_with_log_sum_exp(), bpref.merge_attention()


def in_parts(*ends: int) -> Layer:
    """Attention to the keys up to each end by itself, merged one after the other."""
    parts = [slice(a, b) for a, b in zip((0, *ends), (*ends, None), strict=True)]

    def forward(params, x):
        seen = [ATTEND.forward((), _of(x, part)) for part in parts]
        merged, caches = seen[0][0], []
        for y, _ in seen[1:]:
            merged, cache = MERGE.forward((), (merged, y))
            caches.append(cache)
        return merged, ([cache for _, cache in seen], caches)

    def backward(params, cache, dy):
        of_parts, merges = cache
        each = []
        for kept in merges[::-1]:
            dy, last = MERGE.backward((), kept, dy)[1]
            each.append(last)
        dx = [ATTEND.backward((), kept, d)[1] for kept, d in zip(of_parts, [dy, *each[::-1]], strict=True)]
        dk, dv = (jnp.concatenate([d[field] for d in dx], -3) for field in (1, 2))
        return (), Heads(sum(d.q for d in dx), dk, dv)

    return Layer(lambda key, x: (), forward, backward, "in parts")


def _of(x, part):
    return Heads(x.q, x.k[:, part], x.v[:, part])


def test_parts_of_the_keys_are_the_whole_both_ways():
    x = Heads(*(DRAWN.normal(size=(2, n, h, 3)) for n, h in ((5, 4), (9, 2), (9, 2))))
    dy = Attended(DRAWN.normal(size=(2, 5, 4, 3)), DRAWN.normal(size=(2, 5, 4)))
    with jax.enable_x64(True):
        merged, whole = (backpropagate(layer, (), x, dy) for layer in (in_parts(2, 6), ATTEND))
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_a_part_of_which_nothing_is_seen_is_not_read():
    """The second query sees nothing of the first part, the third nothing at all."""
    ys = [DRAWN.normal(size=(3, 1, 2)) for _ in range(2)]
    ys[0][1:], ys[1][2:] = np.nan, np.inf
    L = [np.array(v)[:, None] for v in ([0.0, -np.inf, -np.inf], [1.0, 2.0, -np.inf])]
    x = tuple(map(Attended, ys, L))
    y, _, dx = backpropagate(MERGE, (), x)
    np.testing.assert_allclose(y.y[1:], [ys[1][1], np.zeros((1, 2))])
    np.testing.assert_array_equal(y.log_sum_exp[1:, 0], [2, -np.inf])
    w = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose([d.y[:, 0, 0] for d in dx], [[1 - w, 0, 0], [w, 1, 0]], rtol=1e-6)
    c = w * (1 - w) * (ys[0][0] - ys[1][0]).sum()
    np.testing.assert_allclose([d.log_sum_exp[:, 0] for d in dx], [[1 - w + c, 0, 0], [w - c, 1, 0]], rtol=1e-5)


def test_a_small_share_keeps_its_digits_beside_outputs_that_are_large_and_alike():
    """1 - w is 0 in float32, and dy . y' - dy . y'' would be: e^-40 and 2 are what is left of them."""
    y = [np.full((1, 1, 1), 3e7, np.float32) + d for d in (np.float32(2), np.float32(0))]
    L = [np.full((1, 1), v, np.float32) for v in (0, 40)]
    _, _, (first, second) = backpropagate(MERGE, (), tuple(map(Attended, y, L)))
    np.testing.assert_allclose([first.y.item(), second.y.item()], [np.exp(-40), 1], rtol=1e-6)
    np.testing.assert_allclose(first.log_sum_exp.item(), 3 * np.exp(-40), rtol=1e-6)


def test_what_does_not_fit_is_refused_by_name():
    x = Attended(jnp.ones((5, 4, 3)), jnp.ones((5, 4)))
    with pytest.raises(ValueError) as seen:
        MERGE.forward((), (x, Attended(jnp.ones((5, 4, 3)), jnp.ones((5, 2)))))
    assert str(seen.value) == (
        "merge_attention: second.log_sum_exp has shape (5, 2), expected (*b, T, N) = (5, 4) by first.y (5, 4, 3)"
    )
