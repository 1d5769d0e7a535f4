"""What an indexer learns of where attention looks: beside PyTorch, and where there is little or nothing to learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref import Looked
from tests.rules.beside_torch import assert_same
from tests.rules.sweeping import backpropagate

pytestmark = pytest.mark.quick


def test_beside_torch(rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    B, T, S, N = rng.integers(2, 6, 4)
    mask = rng.random((B, T, S)) > 0.4
    mask[..., 0] = True
    x = Looked(rng.normal(size=(B, T, S)), rng.random((B, N, T, S)), mask)

    def twin(_, x):
        p = (x.attention.detach().sum(1) * x.mask).double()
        p = p / p.sum(-1, keepdim=True)
        log_q = torch.log_softmax(x.scores.masked_fill(~x.mask, -1e30), -1)
        return torch.nn.functional.kl_div(log_q, p, reduction="none").sum((-2, -1)).sum() / (B * T)

    assert_same(bpref.indexer_loss(), twin, (), x)


def test_an_indexer_that_scores_as_attention_does_has_nothing_to_learn():
    """One head's logits are the scores then: q is p, but for rounding, and J is as small as its square."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(9, 1, 4)), jnp.float32) for _ in range(2))
    z = jnp.einsum("tnd,snd->nts", q, k) / 2
    P = jax.nn.softmax(jnp.where(jnp.tri(9, dtype=bool)[None], z, -1e30))
    J, _, dx = backpropagate(bpref.indexer_loss(causal=True), (), Looked(z[0], P))
    assert 0 <= J < 1e-13
    assert np.abs(dx.scores).max() < 1e-7


def test_a_small_divergence_keeps_its_digits():
    """Scores that are off by 1e-3 in one of two keys: J is 1e-6 / 8, of which log p - log q alone has no digit."""
    scores, P = np.array([[1e-3, 0]], np.float32), np.full((1, 1, 2), 0.5, np.float32)
    J, _, dx = backpropagate(bpref.indexer_loss(), (), Looked(scores, P))
    np.testing.assert_allclose(J, 1e-6 / 8, rtol=1e-3)
    np.testing.assert_allclose(dx.scores, [[2.5e-4, -2.5e-4]], rtol=1e-3)


def test_what_is_not_seen_is_not_read_and_a_query_that_sees_nothing_does_not_count():
    scores, P = np.array([[1.0, np.nan], [2.0, 3.0], [0.0, 0.0]]), np.ones((2, 3, 2))
    P[:, 0, 1], P[:, 2] = np.inf, 0
    mask = np.array([[True, False], [False, False], [True, True]])
    terms, _, dx = backpropagate(bpref.indexer_loss(reduction="none"), (), Looked(scores, P, mask))
    np.testing.assert_array_equal(terms, 0)
    np.testing.assert_array_equal(dx.scores, 0)


def test_as_many_queries_as_weights():
    with pytest.raises(ValueError) as seen:
        bpref.indexer_loss().forward((), Looked(np.ones((3, 4)), np.ones((2, 2, 4))))
    assert str(seen.value) == (
        "indexer_loss: attention has shape (2, 2, 4), expected (*b, N, T, S) = (N, 3, 4) by scores (3, 4)"
    )
