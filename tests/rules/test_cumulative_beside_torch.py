"""Cumulative sums, products and log-sum-exps beside PyTorch's."""

import pytest

import bpref
from tests.rules.beside_torch import assert_same


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("cumulative_sum", "cumsum"), ("cumulative_product", "cumprod"), ("cumulative_logsumexp", "logcumsumexp")],
)
def test_cumulative(name, theirs, rng):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = rng.normal(size=rng.integers(1, 9, 3))
    if name == "cumulative_product":
        x[rng.random(x.shape) < 0.2] = 0.0
    axis = int(rng.integers(-3, 3))
    assert_same(getattr(bpref, name)(axis=axis), lambda _, x: getattr(torch, theirs)(x, axis), (), x)
