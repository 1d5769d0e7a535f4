"""Pooling beside PyTorch's, on random shapes; its channels come second."""

import numpy as np
import pytest

import bpref
from tests.rules.beside_torch import assert_same, channels_second

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


@pytest.fixture(params=[1, 2, 3])
def rank(request):
    return request.param


def pooled(name, rank, *args, **options):
    """PyTorch's pooling over so many axes."""
    pool = getattr(F, f"{name}_pool{rank}d")
    return channels_second(lambda _, x: pool(x, *args, **options))


def drawn(rng, low, high):
    """One integer for each pair of bounds, the upper included."""
    return tuple(int(rng.integers(a, b + 1)) for a, b in zip(low, high, strict=True))


def windows(rng, rank):
    """Window, stride, padding on both sides of at most half the window, as PyTorch has it, and sizes that hold one."""
    size, stride = drawn(rng, (1,) * rank, (4,) * rank), drawn(rng, (1,) * rank, (4,) * rank)
    pad = drawn(rng, (0,) * rank, [k // 2 for k in size])
    return size, stride, pad, drawn(rng, size, [k + 5 for k in size])


def dilated(rng, size, sizes):
    """A dilation for each axis, and sizes by so much larger."""
    dilation = drawn(rng, (1,) * len(size), (3,) * len(size))
    return dilation, tuple(n + (d - 1) * (k - 1) for n, d, k in zip(sizes, dilation, size, strict=True))


def pads_in_front_and_behind(rng, size):
    """A pair less than the window for each axis, and the same in PyTorch's order: the last axis first."""
    pairs = tuple(drawn(rng, (0, 0), (k - 1, k - 1)) for k in size)
    return pairs, [p for pair in reversed(pairs) for p in pair]


def values(rng, sizes, tied):
    """x of three examples with four channels, of three different numbers or of as many as there are elements."""
    x = rng.normal(size=(3, *sizes, 4))
    return np.sign(np.round(x)) if tied else x


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_max_pool(rng, rank, tied):
    size, stride, pad, sizes = windows(rng, rank)
    dilation, sizes = dilated(rng, size, sizes)
    layer = bpref.max_pool(size, stride, tuple((p, p) for p in pad), dilation)
    assert_same(layer, pooled("max", rank, size, stride, pad, dilation), (), values(rng, sizes, tied))


def test_max_pool_padded_unevenly(rng, rank):
    size, stride, _, sizes = windows(rng, rank)
    pairs, pads = pads_in_front_and_behind(rng, size)
    pool = getattr(F, f"max_pool{rank}d")
    twin = channels_second(lambda _, x: pool(F.pad(x, pads, value=-float("inf")), size, stride))
    assert_same(bpref.max_pool(size, stride, pairs), twin, (), values(rng, sizes, False))


COUNTED = pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])


@COUNTED
def test_average_pool(rng, rank, counted):
    size, stride, pad, sizes = windows(rng, rank)
    layer = bpref.average_pool(size, stride, tuple((p, p) for p in pad), counted)
    twin = pooled("avg", rank, size, stride, pad, count_include_pad=counted)
    assert_same(layer, twin, (), values(rng, sizes, False))


@COUNTED
def test_average_pool_padded_unevenly(rng, rank, counted):
    """Where padding does not count, the mean is over that of ones, padded alike."""
    size, stride, _, sizes = windows(rng, rank)
    pairs, pads = pads_in_front_and_behind(rng, size)

    def mean(x):
        return getattr(F, f"avg_pool{rank}d")(F.pad(x, pads), size, stride)

    twin = channels_second(lambda _, x: mean(x) if counted else mean(x) / mean(torch.ones_like(x)))
    assert_same(bpref.average_pool(size, stride, pairs, counted), twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("kind", ["average", "average of what is there", "max"])
def test_as_many_windows_as_begin_in_x(rng, rank, kind):
    """PyTorch's `ceil_mode`."""
    size, stride, pad, sizes = windows(rng, rank)
    if kind == "max":
        dilation, sizes = dilated(rng, size, sizes)
        layer = bpref.max_pool(size, stride, pad, dilation, ceil=True)
        twin = pooled("max", rank, size, stride, pad, dilation, ceil_mode=True)
    else:
        counted = kind == "average"
        layer = bpref.average_pool(size, stride, pad, counted, ceil=True)
        twin = pooled("avg", rank, size, stride, pad, ceil_mode=True, count_include_pad=counted)
    assert_same(layer, twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("kind", ["average", "max"])
def test_same_padding(rng, rank, kind):
    """ceil(n / stride) windows; what the axis lacks is padded half in front, and the larger half behind."""
    size, stride, _, sizes = windows(rng, rank)
    counts = tuple(-(-n // s) for n, s in zip(sizes, stride, strict=True))
    lacking = [max(s * (m - 1) + k - n, 0) for n, k, s, m in zip(sizes, size, stride, counts, strict=True)]
    pads = [p for lack in reversed(lacking) for p in (lack // 2, lack - lack // 2)]
    ours, name, value = {
        "average": (bpref.average_pool, "avg_pool", 0.0),
        "max": (bpref.max_pool, "max_pool", -float("inf")),
    }[kind]

    def twin(_, x):
        y = getattr(F, f"{name}{rank}d")(F.pad(x, pads, value=value), size, stride)
        assert y.shape[2:] == counts
        return y

    assert_same(ours(size, stride, "same"), channels_second(twin), (), values(rng, sizes, False))


@pytest.mark.parametrize("kind", ["average", "max", "max, tied"])
def test_adaptive_pool(rng, rank, kind):
    """As many windows as there are elements, more or fewer."""
    counts, sizes = (drawn(rng, (1,) * rank, (9,) * rank) for _ in range(2))
    name = "adaptive_avg" if kind == "average" else "adaptive_max"
    layer = bpref.adaptive_pool(counts, "average" if kind == "average" else "max")
    assert_same(layer, pooled(name, rank, counts), (), values(rng, sizes, kind == "max, tied"))


def test_adaptive_pool_with_indices(rng, rank):
    counts, sizes = (drawn(rng, (1,) * rank, (9,) * rank) for _ in range(2))

    def twin(_, x):
        y = getattr(F, f"adaptive_max_pool{rank}d")(x.movedim(-1, 1), counts, return_indices=True)
        return tuple(v.movedim(1, -1) for v in y)

    assert_same(bpref.adaptive_pool(counts, "max", with_indices=True), twin, (), values(rng, sizes, tied=True))


@pytest.mark.parametrize("kind", ["average", "max"])
def test_global_pool(rng, rank, kind):
    sizes, axes = drawn(rng, (1,) * rank, (6,) * rank), tuple(range(1, rank + 1))
    twin = (lambda _, x: x.mean(axes)) if kind == "average" else (lambda _, x: x.amax(axes))
    assert_same(bpref.global_pool(kind), twin, (), values(rng, sizes, False))


def test_max_pool_with_indices(rng, rank):
    size, stride, pad, sizes = windows(rng, rank)
    layer = bpref.max_pool(size, stride, pad, with_indices=True)

    def twin(_, x):
        y = getattr(F, f"max_pool{rank}d")(x.movedim(-1, 1), size, stride, pad, return_indices=True)
        return tuple(v.movedim(1, -1) for v in y)

    assert_same(layer, twin, (), values(rng, sizes, tied=True))
