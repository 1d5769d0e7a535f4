"""Resizing, sampling, shuffling and padding beside PyTorch's, whose channels come second."""

import pytest

import bpref
from tests.rules.beside_torch import assert_same, channels_second

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


@pytest.mark.parametrize(("method", "theirs"), [("bilinear", "bilinear"), ("nearest", "nearest-exact")])
def test_resize(rng, method, theirs):
    height, width = (int(n) for n in rng.integers(1, 12, 2))
    twin = channels_second(lambda _, x: F.interpolate(x, (height, width), mode=theirs))
    assert_same(bpref.resize(height, width, method), twin, (), rng.normal(size=rng.integers(1, 9, 4)))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("how", ["align_corners", "antialias", "plain"])
def test_smooth_resize(rng, method, how):
    height, width = (int(n) for n in rng.integers(1, 12, 2))
    flags = {} if how == "plain" else {how: True}
    twin = channels_second(lambda _, x: F.interpolate(x, (height, width), mode=method, **flags))
    assert_same(bpref.resize(height, width, method, **flags), twin, (), rng.normal(size=rng.integers(1, 9, 4)))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [(1.7, 0.6), (2.6, 1.3)])
def test_resize_by_a_factor(rng, scale, method, align_corners):
    how = {"align_corners": align_corners}
    twin = channels_second(lambda _, x: F.interpolate(x, scale_factor=scale, mode=method, **how))
    assert_same(bpref.resize(scale=scale, method=method, **how), twin, (), rng.normal(size=(2, 5, 7, 3)))


@pytest.mark.parametrize(("method", "theirs"), [("floor", "nearest"), ("nearest", "nearest-exact")])
def test_resize_to_one_pixel(rng, method, theirs):
    """Factors of which PyTorch makes neither the same size nor twice as much: it overlooks the fraction there."""
    height, width = (int(n) for n in rng.integers(1, 12, 2))
    x, scale = rng.normal(size=(2, 5, 7, 3)), (1.7, 0.6)
    twin = channels_second(lambda _, x: F.interpolate(x, (height, width), mode=theirs))
    assert_same(bpref.resize(height, width, method), twin, (), x)
    twin = channels_second(lambda _, x: F.interpolate(x, scale_factor=scale, mode=theirs))
    assert_same(bpref.resize(scale=scale, method=method), twin, (), x)


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "linear"])
@pytest.mark.parametrize("rank", [1, 3])
def test_resize_lines_and_volumes(rng, rank, method):
    x, sizes = rng.normal(size=rng.integers(1, 6, rank + 2)), tuple(int(n) for n in rng.integers(1, 8, rank))
    ours = {"nearest": "floor", "nearest-exact": "nearest", "linear": "bilinear"}[method]
    theirs = "trilinear" if method == "linear" and rank == 3 else method
    twin = channels_second(lambda _, x: F.interpolate(x, sizes, mode=theirs))
    assert_same(bpref.resize(method=ours, sizes=sizes), twin, (), x)
    twin = channels_second(lambda _, x: F.interpolate(x, scale_factor=2.0, mode=theirs))
    assert_same(bpref.resize(method=ours, scale=2.0), twin, (), x)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("method", "rank"), [("bilinear", 2), ("nearest", 2), ("bicubic", 2), ("bilinear", 3), ("nearest", 3)]
)
def test_grid_sample(rng, align_corners, padding, method, rank):
    """Some of the points several images away."""
    N, C, *sizes = rng.integers(1, 6, 2 + 2 * rank)
    x = rng.normal(size=(N, *sizes[:rank], C)), rng.uniform(-5, 5, (N, *sizes[rank:], rank))
    x[1][..., :2] /= 3

    def twin(_, x):
        how = {"mode": method, "padding_mode": padding, "align_corners": align_corners}
        return F.grid_sample(x[0].movedim(-1, 1), x[1], **how).movedim(1, -1)

    assert_same(bpref.grid_sample(align_corners, padding, method), twin, (), x)


@pytest.mark.parametrize(("start", "end"), [(1, -1), (0, 1), (2, 3), (-2, -2)])
def test_flatten(rng, start, end):
    x = rng.normal(size=(2, 3, 4, 5))
    assert_same(bpref.flatten(start, end), lambda _, x: torch.flatten(x, start, end), (), x)


@pytest.mark.parametrize("inverse", [False, True])
def test_pixel_shuffle(rng, inverse):
    N, H, W, C, r = (int(n) for n in rng.integers(1, 5, 5))
    twin = channels_second(lambda _, x: (F.pixel_unshuffle if inverse else F.pixel_shuffle)(x, r))
    shape = (N, H * r, W * r, C) if inverse else (N, H, W, C * r**2)
    assert_same(bpref.pixel_shuffle(r, inverse=inverse), twin, (), rng.normal(size=shape))


@pytest.mark.parametrize(
    ("mode", "theirs"),
    [("constant", "constant"), ("reflect", "reflect"), ("edge", "replicate"), ("circular", "circular")],
)
def test_pad(rng, mode, theirs):
    shape = rng.integers(4, 9, 4)
    rows, columns = ((int(a), int(b)) for a, b in rng.integers(0, 4, (2, 2)))
    twin = channels_second(lambda _, x: F.pad(x, (*columns, *rows), mode=theirs))
    assert_same(bpref.pad(((0, 0), rows, columns, (0, 0)), mode), twin, (), rng.normal(size=shape))
