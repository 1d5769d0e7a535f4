"""The reductions beside PyTorch's, with ties, zeros and rows of nothing but zeros."""

import math

import numpy as np
import pytest

import bpref
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

AXES = (0, 2)


def drawn(rng):
    return rng.normal(size=rng.integers(2, 6, 3))


def test_reduce_sum(rng):
    x = drawn(rng)
    assert_same(bpref.reduce_sum(AXES, keepdims=True), lambda p, x: x.sum(AXES, keepdim=True), (), x)
    assert_same(bpref.reduce_sum(AXES, mean=True), lambda p, x: x.mean(AXES), (), x)


def test_reduce_max(rng):
    x = np.round(drawn(rng))
    assert_same(bpref.reduce_max(AXES), lambda p, x: x.amax(AXES), (), x)
    assert_same(bpref.reduce_max(1, keepdims=True, minimum=True), lambda p, x: x.amin(1, keepdim=True), (), x)


def test_reduce_max_with_indices(rng):
    x = drawn(rng)
    assert_same(bpref.reduce_max(1, with_indices=True), lambda p, x: tuple(x.max(1)), (), x)
    layer = bpref.reduce_max(-1, keepdims=True, minimum=True, with_indices=True)
    assert_same(layer, lambda p, x: tuple(x.min(-1, keepdim=True)), (), x)


def test_reduce_prod(rng):
    x = drawn(rng)
    x[0, 0, 0] = x[1, 0, :2] = 0
    assert_same(bpref.reduce_prod(2), lambda p, x: x.prod(2), (), x)


def test_variance(rng):
    x = drawn(rng)
    assert_same(bpref.variance(AXES, ddof=1), lambda p, x: x.var(AXES, correction=1), (), x)
    assert_same(bpref.variance(AXES, root=True), lambda p, x: x.std(AXES, correction=0), (), x)


@pytest.mark.parametrize("p", [-math.inf, -2, -0.5, 0, 0.3, 1, 1.5, 2, 3, math.inf])
def test_vector_norm(rng, p):
    x = drawn(rng)
    x[0, 0] = 0
    x[1, 0, 0] = 0
    assert_same(bpref.vector_norm(p, -1), lambda _, x: torch.linalg.vector_norm(x, p, -1), (), x)


def test_logsumexp(rng):
    x = drawn(rng)
    x[0, 0, 0] = -math.inf
    x[1, 0, 0] = 1e4
    assert_same(bpref.logsumexp(AXES), lambda p, x: torch.logsumexp(x, AXES), (), x)
