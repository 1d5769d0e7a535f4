"""Gathers, scatters, segments and sorting beside PyTorch's."""

import numpy as np
import pytest

import bpref
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def test_gather(rng):
    data = rng.normal(size=rng.integers(1, 7, 3))
    axis = int(rng.integers(3))
    x = data, rng.integers(0, data.shape[axis], 9)
    assert_same(bpref.gather(axis), lambda _, x: torch.index_select(x[0], axis, x[1]), (), x)


def test_take_along_axis(rng):
    data = rng.normal(size=rng.integers(1, 7, 3))
    axis = int(rng.integers(3))
    shape = [5 if k == axis else n for k, n in enumerate(data.shape)]
    x = data, rng.integers(0, data.shape[axis], shape)
    assert_same(bpref.take_along_axis(axis), lambda _, x: torch.gather(x[0], axis, x[1]), (), x)


def test_scatter_add(rng):
    data = rng.normal(size=rng.integers(1, 7, 3))
    axis = int(rng.integers(3))
    shape = [9 if k == axis else n for k, n in enumerate(data.shape)]
    x = data, rng.integers(0, data.shape[axis], 9), rng.normal(size=shape)
    assert_same(bpref.scatter_add(axis), lambda _, x: torch.index_add(x[0], axis, x[1], x[2]), (), x)


@pytest.mark.parametrize("mean", [False, True])
def test_segment_sum(rng, mean):
    N, d, S = (int(n) for n in rng.integers(1, 9, 3))
    x = rng.normal(size=(N, d)), rng.integers(0, S, N)

    def twin(_, x):
        to = torch.zeros(S, d, dtype=torch.float64)
        ids = x[1][:, None].expand(N, d)
        return to.scatter_reduce(0, ids, x[0], "mean" if mean else "sum", include_self=False)

    assert_same(bpref.segment_sum(S, mean=mean), twin, (), x)


def test_segment_max(rng):
    N, d, S = (int(n) for n in rng.integers(1, 9, 3))
    x = rng.normal(size=(N, d)), rng.integers(0, S, N)

    def twin(_, x):
        to = torch.full((S, d), -torch.inf, dtype=torch.float64)
        return to.scatter_reduce(0, x[1][:, None].expand(N, d), x[0], "amax", include_self=False)

    assert_same(bpref.segment_max(S), twin, (), x)


def test_sort(rng):
    x = rng.normal(size=rng.integers(1, 9, 3))
    axis = int(rng.integers(-3, 3))
    assert_same(bpref.sort(axis), lambda _, x: torch.sort(x, stable=True, dim=axis).values, (), x)


def test_sort_descending_with_indices(rng):
    x = np.round(rng.normal(size=rng.integers(1, 9, 3)))
    axis = int(rng.integers(-3, 3))

    def twin(_, x):
        return tuple(torch.sort(x, stable=True, dim=axis, descending=True))

    assert_same(bpref.sort(axis, descending=True, with_indices=True), twin, (), x)


def test_the_smallest(rng):
    x = rng.normal(size=rng.integers(1, 9, 3))
    axis = int(rng.integers(-3, 3))
    k = int(rng.integers(1, x.shape[axis] + 1))
    assert_same(bpref.top_k(k, axis, smallest=True), lambda _, x: tuple(torch.topk(x, k, axis, False)), (), x)


def test_top_k(rng):
    x = rng.normal(size=rng.integers(1, 9, 3))
    axis = int(rng.integers(-3, 3))
    k = int(rng.integers(1, x.shape[axis] + 1))
    assert_same(bpref.top_k(k, axis), lambda _, x: tuple(torch.topk(x, k, axis)), (), x)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "mean", "prod", "max", "min"])
def test_scatter_along_axis(rng, reduce, include):
    """Zeros among the factors; ties are another test's, where PyTorch counts data that it has left out."""
    data = rng.normal(size=rng.integers(1, 6, 3))
    axis = int(rng.integers(3))
    updates = rng.normal(size=[7 if k == axis else n for k, n in enumerate(data.shape)])
    if reduce == "prod":
        updates[rng.random(updates.shape) < 0.2] = 0
    x = data, rng.integers(0, data.shape[axis], updates.shape), updates
    theirs = {"max": "amax", "min": "amin"}.get(reduce, reduce)

    def twin(_, x):
        return torch.scatter_reduce(x[0], axis, x[1], x[2], theirs, include_self=include)

    assert_same(bpref.scatter_along_axis(axis, reduce, include), twin, (), x)


def test_those_who_tie_share_as_in_pytorch(rng):
    x = np.sign(rng.normal(size=(4, 5))), rng.integers(0, 5, (4, 9)), np.sign(rng.normal(size=(4, 9)))
    layer = bpref.scatter_along_axis(reduce="max")
    assert_same(layer, lambda _, x: torch.scatter_reduce(x[0], -1, x[1], x[2], "amax"), (), x)


def segments(reduce, axis):
    """The layer of so many segments that does what PyTorch's does."""
    return {
        "sum": lambda S: bpref.segment_sum(S, axis=axis),
        "mean": lambda S: bpref.segment_sum(S, mean=True, axis=axis),
        "prod": lambda S: bpref.segment_prod(S, axis),
        "max": lambda S: bpref.segment_max(S, axis=axis),
        "min": lambda S: bpref.segment_max(S, minimum=True, axis=axis),
    }[reduce]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reduce", ["sum", "mean", "prod", "max", "min"])
def test_segments_along_an_axis(rng, reduce, axis):
    """No segment is empty: what it is then differs."""
    data = rng.normal(size=rng.integers(1, 5, 3))
    lengths = rng.multinomial(data.shape[axis], np.ones(3) / 3)
    lengths = lengths[lengths > 0]
    ids = np.repeat(np.arange(len(lengths)), lengths)

    def twin(_, x):
        return torch.segment_reduce(x[0].movedim(axis, 0), reduce, lengths=torch.tensor(lengths)).movedim(0, axis)

    assert_same(segments(reduce, axis)(len(lengths)), twin, (), (data, ids))


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("reduce", ["sum", "mean", "prod", "max", "min"])
def test_each_line_has_segments_of_its_own(rng, reduce, axis):
    data = rng.normal(size=(3, 2, 7))[..., : 7 if axis == -1 else 4]
    *lines, N = data.shape[: axis % 3 + 1]
    lengths = 1 + rng.multinomial(N - 2, np.ones(2) / 2, size=lines)
    ids = np.stack([np.repeat([0, 1], one) for one in lengths.reshape(-1, 2)]).reshape(*lines, N)

    def twin(_, x):
        return torch.segment_reduce(x[0], reduce, lengths=torch.tensor(lengths), axis=axis % 3)

    assert_same(segments(reduce, axis)(2), twin, (), (data, ids))
