"""Losses of images and points, and what is rendered, beside plain forms in PyTorch, images' channels second."""

import pytest

import bpref
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def structural_similarity(x, y, window, sigma, padding):
    """As the 3D Gaussian splatting code has it, by convolutions with the whole window."""
    C, at = x.shape[1], torch.arange(window) - window // 2
    g = torch.exp(-(at.double() ** 2) / (2 * sigma**2))
    W = torch.outer(g, g).expand(C, 1, window, window) / g.sum() ** 2

    def mean(v):
        return F.conv2d(v, W, padding=padding, groups=C)

    mu, nu = mean(x), mean(y)
    xx, yy, xy = mean(x * x) - mu**2, mean(y * y) - nu**2, mean(x * y) - mu * nu
    return ((2 * mu * nu + 1e-4) * (2 * xy + 9e-4)) / ((mu**2 + nu**2 + 1e-4) * (xx + yy + 9e-4))


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_ssim(rng, padding):
    N, C = (int(n) for n in rng.integers(1, 4, 2))
    x = rng.uniform(size=(2, N, *(int(n) for n in rng.integers(11, 15, 2)), C))

    def twin(_, x):
        x, y = (v.permute(0, 3, 1, 2) for v in x)
        return 1 - structural_similarity(x, y, 11, 1.5, padding).mean()

    assert_same(bpref.ssim(padding=padding), twin, (), tuple(x), tolerance=1e-9)


@pytest.mark.parametrize("squared", [True, False])
def test_chamfer(rng, squared):
    N, P, Q, D = (int(n) for n in rng.integers(2, 9, 4))

    def twin(_, x):
        apart = torch.cdist(*x, compute_mode="donot_use_mm_for_euclid_dist") ** (2 if squared else 1)
        return apart.amin(2).mean(1) + apart.amin(1).mean(1)

    sets = rng.normal(size=(N, P, D)), rng.normal(size=(N, Q, D))
    assert_same(bpref.chamfer(squared, reduction="none"), twin, (), sets)


@pytest.mark.parametrize("thickness", [False, True])
def test_alpha_compositing(rng, thickness):
    """As NeRF's code has it."""
    N, K, C = (int(n) for n in rng.integers(1, 9, 3))

    def twin(_, x):
        alpha = 1 - torch.exp(-x[0]) if thickness else x[0]
        passing = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha], -1), -1)
        return ((passing[:, :-1] * alpha)[..., None] * x[1]).sum(-2), passing[:, -1]

    x = rng.uniform(size=(N, K)), rng.normal(size=(N, K, C))
    assert_same(bpref.alpha_compositing(thickness), twin, (), x)
