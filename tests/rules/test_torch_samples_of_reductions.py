"""Reductions, and what adds up along an axis, on PyTorch's own samples."""

import math

import pytest

import bpref
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

NOTHING = "no values to reduce"


def axes(dim):
    """None for all axes: nothing said, or no axis named."""
    return None if dim is None or dim == () or dim == [] else tuple(dim) if isinstance(dim, list | tuple) else dim


def reduced(make, needs_values=False, **hyper):
    def ours(x, dim=None, keepdim=False, dtype=None):
        if needs_values and x.numel() == 0:
            return NOTHING
        return Ours(made(make, axes(dim), keepdim, **hyper), x)

    return ours


def variance(root):
    """Nothing said is a correction of 1, and so is None; a flag in the place of the axes is `unbiased`."""

    def ours(x, dim=None, unbiased=True, keepdim=False, correction=1):
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        ddof = 1 if correction is None else correction if unbiased else 0
        if ddof < 0 or ddof != int(ddof):
            return "a correction below 0"
        of = axes(dim)
        named = range(x.ndim) if of is None else of if isinstance(of, tuple) else (of,)
        if math.prod(x.shape[a] for a in named) <= ddof:
            return "no more values than the correction"
        return Ours(made(bpref.variance, of, keepdim, int(ddof), root), x)

    return ours


def vector_norm(x, ord=2, dim=None, keepdim=False, dtype=None):
    if x.numel() == 0:
        return NOTHING
    return Ours(made(bpref.vector_norm, ord, axes(dim), keepdim), x)


def cumulative(make):
    def ours(x, dim, dtype=None):
        return Ours(made(make, dim), x)

    return ours


def l2_normalize(x, p=2.0, dim=1, eps=1e-12):
    """Nearer to 0 than eps a length is eps in PyTorch; none is in these samples."""
    return Ours(made(bpref.l2_normalize, dim, eps, p), x)


TABLE: Table = {
    "amax": Row(reduced(bpref.reduce_max, True), Outcome(20)),
    "amin": Row(reduced(bpref.reduce_max, True, minimum=True), Outcome(20)),
    "cumprod": Row(cumulative(bpref.cumulative_product), Outcome(10)),
    "cumsum": Row(cumulative(bpref.cumulative_sum), Outcome(4)),
    "linalg.vector_norm": Row(vector_norm, Outcome(180)),
    "logcumsumexp": Row(cumulative(bpref.cumulative_logsumexp), Outcome(6)),
    "logsumexp": Row(reduced(bpref.logsumexp, True), Outcome(15)),
    "mean": Row(reduced(bpref.reduce_sum, True, mean=True), Outcome(20)),
    "nn.functional.normalize": Row(l2_normalize, Outcome(8)),
    "prod": Row(reduced(bpref.reduce_prod), Outcome(39)),
    "std": Row(variance(True), Outcome(10, {"a correction below 0": 4})),
    "std.unbiased": Row(variance(True), Outcome(2)),
    "sum": Row(reduced(bpref.reduce_sum), Outcome(20)),
    "var": Row(variance(False), Outcome(10, {"a correction below 0": 4})),
    "var.unbiased": Row(variance(False), Outcome(2)),
}


@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)
