"""The linear layers and the tables beside PyTorch's."""

import numpy as np
import pytest

import bpref
from bpref.rules.linear.bilinear import BilinearParams
from bpref.rules.linear.embedding import EmbeddingParams
from bpref.rules.linear.embedding_bag import EmbeddingBagParams
from bpref.rules.linear.linear import LinearParams
from bpref.rules.linear.low_rank_linear import LowRankLinearParams
from bpref.rules.linear.position_embedding import PositionEmbeddingParams
from bpref.rules.linear.spectral_norm_linear import SpectralNormLinearParams
from bpref.rules.linear.tied_embedding import TiedEmbeddingParams
from bpref.rules.linear.weight_norm_linear import WeightNormLinearParams
from tests.rules.beside_torch import assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


class Draw:
    """Normal random arrays and sizes from 1 to 8."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def sizes(self, count: int) -> list[int]:
        return [int(n) for n in self.rng.integers(1, 9, count)]

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def ids(self, vocabulary: int, *shape: int) -> np.ndarray:
        return self.rng.integers(0, vocabulary, shape)


@pytest.fixture
def draw(rng):
    return Draw(rng)


def test_linear(draw):
    N, T, d, m = draw.sizes(4)
    params = LinearParams(draw.normal(m, d), draw.normal(m))
    assert_same(bpref.linear(m), lambda p, x: torch.nn.functional.linear(x, p.W, p.b), params, draw.normal(N, T, d))


def test_position_embedding(draw):
    B, T, d, more = draw.sizes(4)

    def twin(params, x):
        return x + torch.nn.functional.embedding(torch.arange(T), params.W)

    params = PositionEmbeddingParams(draw.normal(T + more, d))
    assert_same(bpref.position_embedding(T + more), twin, params, draw.normal(B, T, d))


def test_bilinear(draw):
    N, T, p, q, m = draw.sizes(5)
    params = BilinearParams(draw.normal(m, p, q), draw.normal(m))
    x = draw.normal(N, T, p), draw.normal(N, T, q)
    assert_same(bpref.bilinear(m), lambda p, x: torch.nn.functional.bilinear(*x, p.W, p.b), params, x)


def test_low_rank_linear(draw):
    """The forward of loralib's `Linear`, whose weight has `requires_grad = False`."""
    N, T, d, m, r = draw.sizes(5)
    params = LowRankLinearParams(draw.normal(m, d), draw.normal(m), draw.normal(m, r), draw.normal(r, d))

    def twin(p, x):
        return torch.nn.functional.linear(x, p.W.detach(), p.b.detach()) + (x @ p.V.T @ p.U.T) * (12.0 / r)

    assert_same(bpref.low_rank_linear(m, rank=r, alpha=12.0), twin, params, draw.normal(N, T, d))


def test_weight_norm_linear(draw):
    N, d, m = draw.sizes(3)
    params = WeightNormLinearParams(draw.normal(m), draw.normal(m, d), draw.normal(m))

    def twin(p, x):
        return torch.nn.functional.linear(x, torch._weight_norm(p.v, p.g[:, None], 0), p.b)

    assert_same(bpref.weight_norm_linear(m), twin, params, draw.normal(N, d))


def test_spectral_norm_linear(draw):
    """What PyTorch's own module computes in evaluation, with the vectors that its power iteration has left."""
    N, d, m = draw.sizes(3)
    inner = torch.nn.Linear(d, m, dtype=torch.float64)
    normed = torch.nn.utils.parametrizations.spectral_norm(inner, n_power_iterations=3).eval()
    (spectral,) = normed.parametrizations.weight
    params = SpectralNormLinearParams(
        *(v.detach().numpy() for v in (normed.parametrizations.weight.original, normed.bias, spectral._u, spectral._v))
    )

    def twin(p, x):
        return torch.nn.functional.linear(x, p.W / torch.vdot(p.u.detach(), p.W @ p.v.detach()), p.b)

    x = draw.normal(N, d)
    assert_same(bpref.spectral_norm_linear(m), twin, params, x)
    y = twin(SpectralNormLinearParams(*map(torch.tensor, params)), torch.tensor(x))
    np.testing.assert_allclose(y.numpy(), normed(torch.tensor(x)).detach().numpy())


@pytest.mark.parametrize("padding", [None, 0])
def test_embedding(draw, padding):
    N, T, V, d = draw.sizes(4)

    def twin(p, x):
        return torch.nn.functional.embedding(x, p.W, padding_idx=padding)

    assert_same(bpref.embedding(V, d, padding), twin, EmbeddingParams(draw.normal(V, d)), draw.ids(V, N, T))


@pytest.mark.parametrize("padding", [None, 0])
def test_embedding_bag_with_weights(draw, padding):
    N, T, V, d = draw.sizes(4)

    def twin(p, x):
        return torch.nn.functional.embedding_bag(x[0], p.W, mode="sum", padding_idx=padding, per_sample_weights=x[1])

    x = draw.ids(V, N, T), draw.normal(N, T)
    assert_same(bpref.embedding_bag(V, d, padding=padding), twin, EmbeddingBagParams(draw.normal(V, d)), x)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bag(draw, padding, mode):
    N, T, V, d = draw.sizes(4)

    def twin(p, x):
        return torch.nn.functional.embedding_bag(x, p.W, mode=mode, padding_idx=padding)

    layer = bpref.embedding_bag(V, d, mode == "mean", padding, mode == "max")
    assert_same(layer, twin, EmbeddingBagParams(draw.normal(V, d)), draw.ids(V, N, T))


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bags_of_different_lengths(draw, padding, mode):
    """The second bag and the last one are empty."""
    V, d, M = draw.sizes(3)
    offsets = np.asarray([0, *2 * [M // 2], M])
    x = draw.ids(V, M), offsets, *([draw.normal(M)] if mode == "sum" else [])

    def twin(p, x):
        how = {"per_sample_weights": x[2]} if mode == "sum" else {}
        return torch.nn.functional.embedding_bag(x[0], p.W, x[1], mode=mode, padding_idx=padding, **how)

    layer = bpref.embedding_bag(V, d, mode == "mean", padding, mode == "max", packed=True)
    assert_same(layer, twin, EmbeddingBagParams(draw.normal(V, d)), x)


def test_tied_embedding(draw):
    N, T, V, d = draw.sizes(4)

    def twin(p, x):
        return torch.tanh(torch.nn.functional.embedding(x, p.W)) @ p.W.T

    layer = bpref.tied_embedding(V, d, bpref.tanh())
    assert_same(layer, twin, TiedEmbeddingParams(draw.normal(V, d), ()), draw.ids(V, N, T))


EQUATIONS = [
    "ij,jk->ik",
    "ij,jk->ki",
    "bqhd,bkhd->bhqk",
    "nija,kjn->ik",
    "i,j->ji",
    "ij,ij->",
    "...d,dm->...m",
    "a...,...b->...ab",
    "...ik,...j->ij",
    "ij,kj",
    "iji->j",
    "aab,bc,cdd->ad",
]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(draw, equation):
    size_of = dict(zip("abcdhijkmnpqxy", draw.sizes(14), strict=True))
    operands = equation.replace("...", "xy").split("->")[0].split(",")
    x = tuple(draw.normal(*(size_of[i] for i in indices)) for indices in operands)
    if len(x) == 1:
        assert_same(bpref.einsum(equation), lambda _, x: torch.einsum(equation, x), (), x[0])
    else:
        assert_same(bpref.einsum(equation), lambda _, x: torch.einsum(equation, *x), (), x)
