"""The linear layer beside PyTorch's."""

import numpy as np
import pytest

import bpref
from bpref.rules.linear.linear import LinearParams
from tests.rules.beside_torch import SEEDS, assert_same


@pytest.mark.parametrize("seed", SEEDS)
def test_linear(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(seed)
    N, T, d, m = rng.integers(1, 9, 4)
    params = LinearParams(rng.normal(size=(m, d)), rng.normal(size=m))
    x = rng.normal(size=(N, T, d))
    assert_same(bpref.linear(int(m)), lambda p, x: torch.nn.functional.linear(x, p.W, p.b), params, x)
