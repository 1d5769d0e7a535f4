"""Losses of distances, similarities and margins beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from bpref.rules.linear.linear import LinearParams
from bpref.rules.loss.wasserstein_critic import WassersteinCriticParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


@pytest.mark.parametrize("squared", [False, True])
def test_multiclass_hinge(rng, squared):
    N, C = rng.integers(2, 9, 2)
    x = rng.normal(size=(N, C)), rng.integers(0, C, N)
    layer = bpref.multiclass_hinge(0.7, squared)
    assert_same(layer, lambda p, x: F.multi_margin_loss(*x, p=2 if squared else 1, margin=0.7), (), x)


def test_margin_ranking(rng):
    x = *rng.normal(size=(2, 7)), rng.choice([-1, 1], 7)
    assert_same(bpref.margin_ranking(0.3), lambda p, x: F.margin_ranking_loss(*x, margin=0.3), (), x)


def test_triplet(rng):
    x = tuple(rng.normal(size=(3, *rng.integers(1, 9, 2))))
    assert_same(bpref.triplet(0.5), lambda p, x: F.triplet_margin_loss(*x, margin=0.5, eps=0.0), (), x)


def test_cosine_embedding(rng):
    N, d = rng.integers(2, 9, 2)
    x = *rng.normal(size=(2, N, d)), rng.choice([-1, 1], N)
    assert_same(bpref.cosine_embedding(0.2), lambda p, x: F.cosine_embedding_loss(*x, margin=0.2), (), x, 1e-9)


def test_info_nce(rng):
    N, d = rng.integers(2, 9, 2)

    def twin(p, x):
        logits = F.normalize(x[0]) @ F.normalize(x[1]).T / 0.2
        partner = torch.arange(len(logits))
        return (F.cross_entropy(logits, partner) + F.cross_entropy(logits.T, partner)) / 2

    assert_same(bpref.info_nce(0.2), twin, (), tuple(rng.normal(size=(2, N, d))))


@pytest.mark.parametrize("activation", ["leaky_relu", "softplus", "tanh"])
def test_wasserstein_critic(rng, activation):
    """A gradient penalty by double back-propagation."""
    N, d, h, k = map(int, rng.integers(2, 7, 4))
    hidden = tuple(LinearParams(rng.normal(size=(m, n)), rng.normal(size=m)) for m, n in ((h, d), (k, h)))
    params = WassersteinCriticParams(rng.integers(0, 9, 2, np.uint32), hidden, rng.normal(size=k))
    e = torch.tensor(np.asarray(jax.random.uniform(params.key, (N, 1), jnp.float32), np.float64))
    f = {
        "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, 0.2),
        "softplus": torch.nn.functional.softplus,
        "tanh": torch.tanh,
    }[activation]

    def twin(params, x):
        def D(a):
            for W, b in params.hidden:
                a = f(a @ W.T + b)
            return a @ params.w

        real, fake = x
        mixed = e * real + (1 - e) * fake
        (G,) = torch.autograd.grad(D(mixed).sum(), mixed, create_graph=True)
        return D(fake).mean() - D(real).mean() + 4 * ((G.norm(dim=1) - 1) ** 2).mean()

    layer = bpref.wasserstein_critic((h, k), activation, 4.0)
    assert_same(layer, twin, params, tuple(rng.normal(size=(2, N, d))))
