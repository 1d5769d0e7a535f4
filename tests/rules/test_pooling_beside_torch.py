"""Pooling beside PyTorch's, on random shapes; its channels come second."""

import numpy as np
import pytest

import bpref
from tests.rules.beside_torch import SEEDS, assert_same


def torch_and_functional():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch, torch.nn.functional


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
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool(seed, rank, tied):
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, pad, sizes = windows(rng, rank)
    dilation, sizes = dilated(rng, size, sizes)
    layer = bpref.max_pool(size, stride, tuple((p, p) for p in pad), dilation)

    def twin(p, x):
        return getattr(F, f"max_pool{rank}d")(x.movedim(-1, 1), size, stride, pad, dilation).movedim(1, -1)

    assert_same(layer, twin, (), values(rng, sizes, tied))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool_padded_unevenly(seed, rank):
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, _, sizes = windows(rng, rank)
    pairs, pads = pads_in_front_and_behind(rng, size)

    def twin(p, x):
        padded = F.pad(x.movedim(-1, 1), pads, value=-float("inf"))
        return getattr(F, f"max_pool{rank}d")(padded, size, stride).movedim(1, -1)

    assert_same(bpref.max_pool(size, stride, pairs), twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_average_pool(seed, rank, counted):
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, pad, sizes = windows(rng, rank)
    layer = bpref.average_pool(size, stride, tuple((p, p) for p in pad), counted)

    def twin(p, x):
        y = getattr(F, f"avg_pool{rank}d")(x.movedim(-1, 1), size, stride, pad, count_include_pad=counted)
        return y.movedim(1, -1)

    assert_same(layer, twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "not counted"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_average_pool_padded_unevenly(seed, rank, counted):
    """Where padding does not count, the mean is over that of ones, padded alike."""
    torch, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, _, sizes = windows(rng, rank)
    pairs, pads = pads_in_front_and_behind(rng, size)

    def mean(x):
        return getattr(F, f"avg_pool{rank}d")(F.pad(x, pads), size, stride)

    def twin(p, x):
        x = x.movedim(-1, 1)
        return (mean(x) if counted else mean(x) / mean(torch.ones_like(x))).movedim(1, -1)

    assert_same(bpref.average_pool(size, stride, pairs, counted), twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("kind", ["average", "average of what is there", "max"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_windows_as_begin_in_x(seed, rank, kind):
    """PyTorch's `ceil_mode`."""
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, pad, sizes = windows(rng, rank)
    x = values(rng, sizes, False)
    if kind == "max":
        dilation, _ = dilated(rng, size, sizes)
        x = values(rng, [n + (d - 1) * (k - 1) for n, d, k in zip(sizes, dilation, size, strict=True)], False)
        layer, more = bpref.max_pool(size, stride, pad, dilation, ceil=True), {"dilation": dilation}
    else:
        counted = kind == "average"
        layer, more = bpref.average_pool(size, stride, pad, counted, ceil=True), {"count_include_pad": counted}
    pool = getattr(F, f"{'max' if kind == 'max' else 'avg'}_pool{rank}d")

    def twin(p, x):
        return pool(x.movedim(-1, 1), size, stride, pad, ceil_mode=True, **more).movedim(1, -1)

    assert_same(layer, twin, (), x)


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_same_padding(seed, rank, kind):
    """ceil(n / stride) windows; what the axis lacks is padded half in front, and the larger half behind."""
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, _, sizes = windows(rng, rank)
    counts = tuple(-(-n // s) for n, s in zip(sizes, stride, strict=True))
    lacking = [max(s * (m - 1) + k - n, 0) for n, k, s, m in zip(sizes, size, stride, counts, strict=True)]
    pads = [p for lack in reversed(lacking) for p in (lack // 2, lack - lack // 2)]
    ours, name, value = {
        "average": (bpref.average_pool, "avg_pool", 0.0),
        "max": (bpref.max_pool, "max_pool", -float("inf")),
    }[kind]

    def twin(p, x):
        y = getattr(F, f"{name}{rank}d")(F.pad(x.movedim(-1, 1), pads, value=value), size, stride).movedim(1, -1)
        assert y.shape[1:-1] == counts
        return y

    assert_same(ours(size, stride, "same"), twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("kind", ["average", "max", "max, tied"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_adaptive_pool(seed, rank, kind):
    """As many windows as there are elements, more or fewer."""
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    counts, sizes = (drawn(rng, (1,) * rank, (9,) * rank) for _ in range(2))
    name = "adaptive_avg_pool" if kind == "average" else "adaptive_max_pool"

    def twin(p, x):
        return getattr(F, f"{name}{rank}d")(x.movedim(-1, 1), counts).movedim(1, -1)

    layer = bpref.adaptive_pool(counts, "average" if kind == "average" else "max")
    assert_same(layer, twin, (), values(rng, sizes, kind == "max, tied"))


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_global_pool(seed, rank, kind):
    torch_and_functional()
    rng = np.random.default_rng(seed)
    sizes = drawn(rng, (1,) * rank, (6,) * rank)

    def twin(p, x):
        axes = tuple(range(1, rank + 1))
        return x.mean(axes) if kind == "average" else x.amax(axes)

    assert_same(bpref.global_pool(kind), twin, (), values(rng, sizes, False))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool_with_indices(seed, rank):
    _, F = torch_and_functional()
    rng = np.random.default_rng(seed)
    size, stride, pad, sizes = windows(rng, rank)
    layer = bpref.max_pool(size, stride, pad, with_indices=True)

    def twin(p, x):
        y = getattr(F, f"max_pool{rank}d")(x.movedim(-1, 1), size, stride, pad, return_indices=True)
        return tuple(v.movedim(1, -1) for v in y)

    assert_same(layer, twin, (), values(rng, sizes, tied=True))


def test_the_place_of_what_only_padding_won_is_none():
    y, _ = bpref.max_pool((2,), padding=1, with_indices=True).forward((), np.full((1, 2, 1), -np.inf, np.float32))
    assert y[1].ravel().tolist() == [-1, 1]
