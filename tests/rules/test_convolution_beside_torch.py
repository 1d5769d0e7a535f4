"""Convolutions beside PyTorch's, on random shapes; its channels come second."""

import numpy as np
import pytest

import bpref
from bpref.rules.convolution.convolution import ConvolutionParams
from bpref.rules.convolution.transposed_convolution import TransposedConvolutionParams
from tests.rules.beside_torch import assert_same, channels_second

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


@pytest.fixture(params=[1, 2, 3])
def rank(request):
    return request.param


@pytest.fixture(params=["one", "some", "depthwise"])
def groups(request):
    """Their number, and that of the features; of 4 channels."""
    return {"one": (1, 6), "some": (2, 6), "depthwise": (4, 4)}[request.param]


def drawn(rng, rank):
    """Window, stride and dilation for each axis."""
    return (tuple(map(int, rng.integers(1, 4, rank))) for _ in range(3))


def test_convolution(rng, rank, groups):
    g, features = groups
    window, stride, dilation = drawn(rng, rank)
    pad = tuple(map(int, rng.integers(0, 3, rank)))
    sizes = tuple(int(d * (k - 1) + rng.integers(1, 6)) for k, d in zip(window, dilation, strict=True))
    params = ConvolutionParams(rng.normal(size=(features, *window, 4 // g)), rng.normal(size=features))
    layer = bpref.convolution(features, window, stride, dilation, tuple((p, p) for p in pad), g)
    conv = getattr(F, f"conv{rank}d")
    twin = channels_second(lambda p, x: conv(x, p.W.movedim(-1, 1), p.b, stride, pad, dilation, g))
    assert_same(layer, twin, params, rng.normal(size=(3, *sizes, 4)))


def test_transposed_convolution(rng, rank, groups):
    g, features = groups
    window, stride, dilation = drawn(rng, rank)
    pad = tuple(int(rng.integers(0, k)) for k in window)
    more = tuple(int(rng.integers(0, s)) for s in stride)
    counts = tuple(map(int, rng.integers(3, 6, rank)))
    params = TransposedConvolutionParams(rng.normal(size=(4, *window, features // g)), rng.normal(size=features))
    layer = bpref.transposed_convolution(features, window, stride, dilation, tuple((p, p) for p in pad), more, g)
    conv = getattr(F, f"conv_transpose{rank}d")
    twin = channels_second(lambda p, x: conv(x, p.W.movedim(-1, 1), p.b, stride, pad, more, g, dilation))
    assert_same(layer, twin, params, rng.normal(size=(3, *counts, 4)))


def test_causal_convolution(rng):
    k, d, s, T = map(int, rng.integers(1, 5, 4))
    params = ConvolutionParams(rng.normal(size=(6, k, 2)), rng.normal(size=6))
    layer = bpref.causal_convolution(6, k, s, d, groups=2)

    def twin(p, x):
        return F.conv1d(F.pad(x, (d * (k - 1), 0)), p.W.movedim(-1, 1), p.b, s, 0, d, 2)

    assert_same(layer, channels_second(twin), params, rng.normal(size=(3, T, 4)))


@pytest.mark.parametrize(("mode", "theirs"), [("circular", "circular"), ("reflect", "reflect"), ("edge", "replicate")])
def test_convolution_with_other_borders(rng, mode, theirs):
    """PyTorch's padding_mode is a layer of its own here."""
    params = (), ConvolutionParams(rng.normal(size=(2, 3, 3, 4)), rng.normal(size=2))
    borders = bpref.pad(((0, 0), (1, 1), (2, 2), (0, 0)), mode)
    layer = bpref.serial(borders, bpref.convolution(2, (3, 3), padding="valid"))

    def twin(p, x):
        module = torch.nn.Conv2d(4, 2, 3, padding=(1, 2), padding_mode=theirs)
        own = {"weight": p[1].W.movedim(-1, 1), "bias": p[1].b}
        return torch.func.functional_call(module, own, x)

    assert_same(layer, channels_second(twin), params, rng.normal(size=(2, 5, 6, 4)))


@pytest.mark.parametrize("masked", [False, True])
def test_deformable_convolution(rng, masked):
    """Each element of the window in turn, read by PyTorch's grid_sample."""
    window, stride, dilation = drawn(rng, 2)
    lo = tuple(map(int, rng.integers(0, 3, 2)))
    sizes = tuple(int(d * (k - 1) + rng.integers(2, 6)) for k, d in zip(window, dilation, strict=True))
    layer = bpref.deformable_convolution(3, window, stride, dilation, tuple((p, p) for p in lo))
    x = rng.normal(size=(2, *sizes, 4))
    axes = zip(sizes, window, stride, dilation, lo, strict=True)
    counts = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, d, p in axes)
    K = window[0] * window[1]
    mask = rng.uniform(size=(2, *counts, K)) if masked else None
    given = bpref.ImagesAndOffsets(x, rng.normal(size=(2, *counts, K, 2)), mask)
    params = bpref.DeformableConvolutionParams(rng.normal(size=(3, *window, 4)), rng.normal(size=3))

    def twin(p, x):
        y = p.b
        for k, at in enumerate(np.ndindex(window)):
            grid = []
            for axis in (1, 0):
                place = np.arange(counts[axis]) * stride[axis] + at[axis] * dilation[axis] - lo[axis]
                place = x.offsets[..., k, axis] + x.offsets.new_tensor(place).reshape((1, -1, 1) if axis == 0 else -1)
                grid.append((2 * place + 1) / sizes[axis] - 1)
            seen = F.grid_sample(x.images.movedim(-1, 1), torch.stack(grid, -1), align_corners=False)
            seen = seen.movedim(1, -1)
            y = y + (seen if x.mask is None else seen * x.mask[..., k, None]) @ p.W[:, at[0], at[1]].T
        return y

    assert_same(layer, twin, params, given)


@pytest.mark.parametrize(("reach", "step"), [(0, 1), (2, 1), (4, 2)])
def test_correlation(rng, reach, step):
    N, H, W, C = (int(n) for n in rng.integers(1, 6, 4))
    count = 2 * reach // step + 1

    def twin(_, x):
        f, g = (v.movedim(-1, 1) for v in x)
        seen = F.unfold(g, count, dilation=step, padding=reach).reshape(N, C, count**2, H, W)
        return (f[:, :, None] * seen).mean(1).movedim(1, -1)

    assert_same(bpref.correlation(reach, step), twin, (), tuple(rng.normal(size=(2, N, H, W, C))))
