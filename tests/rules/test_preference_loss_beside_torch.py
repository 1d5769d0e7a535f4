"""The three terms of PPO's objective beside PyTorch: the clipped surrogate, the critic's loss, and the entropy."""

import pytest

import bpref
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def tokens(rng, arrays: int):
    """That many arrays of normal random numbers, and a mask with at least one True."""
    N, T = (int(n) for n in rng.integers(2, 9, 2))
    mask = rng.random((N, T)) < 0.7
    mask[0, 0] = True
    return *(rng.normal(size=(N, T)) for _ in range(arrays)), mask


def test_ppo(rng):
    def twin(_, x):
        policy, old, _, A, mask = x
        r = torch.exp(policy - old)
        return -torch.minimum(r * A, torch.clamp(r, 0.8, 1.2) * A)[mask].mean()

    assert_same(bpref.ppo(), twin, (), tokens(rng, 4))


@pytest.mark.parametrize("clip", [0.5, None])
def test_clipped_value(rng, clip):
    def twin(_, x):
        V, old, R, mask = x
        l = (V - R) ** 2
        if clip is not None:
            l = torch.maximum(l, (old + torch.clamp(V - old, -clip, clip) - R) ** 2)
        return 0.5 * l[mask].mean()

    assert_same(bpref.clipped_value(clip), twin, (), tokens(rng, 3))


def test_token_entropy(rng):

    def twin(_, z):
        return torch.distributions.Categorical(logits=z / 2).entropy()

    assert_same(bpref.token_entropy(2.0), twin, (), rng.normal(size=rng.integers(1, 9, 3)))
