"""The mixture of experts beside PyTorch's autograd of a plain loop over tokens and their choices."""

import math

import numpy as np
import pytest

import bpref
from bpref.rules.mixture.mixture_of_experts import ACTIVATIONS, Mixed, MixtureOfExpertsParams
from bpref.rules.mixture.sigmoid_router import SigmoidRouterParams, SigmoidRouting
from bpref.rules.mixture.top_k_router import TopKRouterParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

E, K, H, D, N = 3, 2, 4, 5, 7


@pytest.mark.parametrize("capacity_factor", [None, 0.75])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mixture_of_experts(activation, capacity_factor):
    rng = np.random.default_rng(0)
    width = ACTIVATIONS[activation][0] * H
    params = MixtureOfExpertsParams(
        TopKRouterParams(rng.normal(size=(E, D))),
        rng.normal(size=(E, width, D)),
        rng.normal(size=(E, D, H)),
        rng.normal(size=(width, D)),
        rng.normal(size=(D, H)),
    )
    F = torch.nn.functional

    def gelu(u):
        return F.gelu(u, approximate="tanh")

    def hidden(u):
        if activation.endswith("glu"):
            a, b = u.split(H)
            return a * (F.silu if activation == "swiglu" else gelu)(b)
        return {"relu": F.relu, "gelu": gelu, "silu": F.silu}[activation](u)

    def twin(p, x):
        z = x @ p.router.W.T
        probability = z.softmax(-1)
        weights, chosen = probability.topk(K)
        weights = weights / weights.sum(-1, keepdim=True)
        y = [p.shared_V @ hidden(p.shared_U @ token) for token in x]
        room = [N * K if capacity_factor is None else math.ceil(capacity_factor * N * K / E)] * E
        for j in range(K):
            for n in range(N):
                e = int(chosen[n, j])
                room[e] -= 1
                if room[e] >= 0:
                    y[n] = y[n] + weights[n, j] * (p.V[e] @ hidden(p.U[e] @ x[n]))
        assert (min(room) < 0) == (capacity_factor is not None)
        shares = F.one_hot(chosen, E).double().mean((0, 1))
        return Mixed(torch.stack(y), E * (shares * probability.mean(0)).sum(), z.logsumexp(-1).square().mean())

    layer = bpref.mixture_of_experts(E, H, K, activation, shared=1, capacity_factor=capacity_factor, block=2)
    assert_same(layer, twin, params, rng.normal(size=(N, D)))


@pytest.mark.parametrize("renormalize", [True, False])
def test_sigmoid_router(rng, renormalize):
    """As `transformers` has DeepSeek-V3's, and the balance of each sequence as the report writes it."""
    S, T, G, M, each, k, scale = 2, 5, 4, 2, 3, 4, 2.5
    params = SigmoidRouterParams(rng.normal(size=(G * each, D)), 0.3 * rng.normal(size=G * each))

    def twin(p, x):
        s = (x @ p.W.T).sigmoid()
        a = s + p.bias.detach()
        by_group = a.unflatten(-1, (G, each))
        kept = torch.zeros(S, T, G).scatter(-1, by_group.topk(2)[0].sum(-1).topk(M)[1], 1).bool()
        chosen = by_group.masked_fill(~kept[..., None], -math.inf).flatten(-2).topk(k)[1]
        w = s.gather(-1, chosen)
        w = w / w.sum(-1, keepdim=True) if renormalize else w
        f = torch.nn.functional.one_hot(chosen, G * each).sum((1, 2)).double() * (G * each) / (k * T)
        P = (s / s.sum(-1, keepdim=True)).mean(1)
        return SigmoidRouting(chosen, scale * w, (f * P).sum(-1).mean())

    layer = bpref.sigmoid_router(G * each, k, G, M, renormalize, scale)
    assert_same(layer, twin, params, rng.normal(size=(S, T, D)))
