"""What a policy's head says of each token, and the losses on top of it, beside PyTorch's."""

import numpy as np
import pytest

import bpref
from bpref import FusedLinearLogProbabilityParams
from tests.rules.beside_torch import SEEDS, assert_same

EVERY_SEED = pytest.mark.parametrize("seed", SEEDS)

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@EVERY_SEED
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_fused_linear_log_probability(seed, soft_cap):
    rng = np.random.default_rng(seed)
    B, T, d, V = (int(n) for n in rng.integers(2, 9, 4))
    labels = rng.integers(0, V, (B, T))
    labels[0, 0] = -100
    params = FusedLinearLogProbabilityParams(rng.normal(size=(V, d)), rng.normal(size=V))

    def twin(p, x):
        h, y = x
        z = torch.nn.functional.linear(h, p.W, p.b)
        if soft_cap is not None:
            z = soft_cap * torch.tanh(z / soft_cap)
        log_p = torch.log_softmax(z / 0.7, -1)
        counts = y != -100
        own = log_p.gather(-1, torch.where(counts, y, 0)[..., None])[..., 0]
        of_tokens = own, -(log_p.exp() * log_p).sum(-1), torch.logsumexp(z / 0.7, -1)
        return tuple(torch.where(counts, v, 0.0) for v in of_tokens)

    layer = bpref.fused_linear_log_probability(V, True, 0.7, ignored=-100, soft_cap=soft_cap, block=3)
    assert_same(layer, twin, params, (rng.normal(size=(B, T, d)), labels))
