"""The rules of linear algebra beside PyTorch's functions."""

import numpy as np
import pytest

import bpref
from bpref.formulas.matrices import dominant_diagonal, positive_definite, spread_eigenvalues, spread_singular_values
from tests.rules.beside_torch import SEEDS, assert_same

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

SIZES = {0: (3, 4, 2), 1: (1, 6, 5), 2: (4, 2, 3)}
"""For each seed the batch, the rows and the columns."""


def drawn(seed, domain, rows=None, columns=None):
    B, m, n = SIZES[seed]
    return domain(np.random.default_rng(seed).uniform(-4, 4, (B, rows or m, columns or n)))


def square(seed, domain):
    m = SIZES[seed][1]
    return drawn(seed, domain, m, m)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("vector", [False, True])
def test_solve(seed, vector):
    A, B = square(seed, spread_singular_values), drawn(seed + 0, np.asarray)
    assert_same(bpref.solve(), lambda _, x: torch.linalg.solve(*x), (), (A, B[..., 0] if vector else B))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("unit_diagonal", [False, True])
def test_triangular_solve(seed, lower, unit_diagonal):
    def twin(_, x):
        return torch.linalg.solve_triangular(*x, upper=not lower, unitriangular=unit_diagonal)

    x = square(seed, dominant_diagonal), drawn(seed, np.asarray)
    assert_same(bpref.triangular_solve(lower, unit_diagonal=unit_diagonal), twin, (), x)


@pytest.mark.parametrize("seed", SEEDS)
def test_inverse(seed):
    assert_same(bpref.inverse(), lambda _, A: torch.linalg.inv(A), (), square(seed, spread_singular_values))


@pytest.mark.parametrize("seed", SEEDS)
def test_log_determinant(seed):
    A = square(seed, spread_singular_values)
    assert_same(bpref.log_determinant(), lambda _, A: tuple(_with_dead_sign(*torch.linalg.slogdet(A), A)), (), A)


def _with_dead_sign(sign, log, A):
    """PyTorch refuses a cotangent of the sign, which has no graph."""
    return sign + 0 * A.sum(), log


@pytest.mark.parametrize("seed", SEEDS)
def test_cholesky(seed):
    def twin(_, A):
        return torch.linalg.cholesky((A + A.mT) / 2)

    assert_same(bpref.cholesky(), twin, (), square(seed, positive_definite))


@pytest.mark.parametrize("seed", SEEDS)
def test_eigenvalues(seed):
    """The signs of eigenvectors differ between libraries, and PyTorch refuses costs that depend on them."""

    def twin(_, A):
        w, V = torch.linalg.eigh((A + A.mT) / 2)
        return w, V

    A = square(seed, spread_eigenvalues)
    layer = bpref.eigh()
    values = layer._replace(
        forward=lambda p, x: (lambda y, cache: (y[0], cache))(*layer.forward(p, x)),
        backward=lambda p, cache, dw: layer.backward(p, cache, (dw, np.zeros_like(cache.V))),
    )
    assert_same(values, lambda _, A: twin(_, A)[0], (), A)


@pytest.mark.parametrize("seed", SEEDS)
def test_qr(seed):
    A = drawn(seed, spread_singular_values)
    assert_same(bpref.qr(), lambda _, A: tuple(torch.linalg.qr(A)), (), A)


@pytest.mark.parametrize("seed", SEEDS)
def test_singular_values(seed):
    layer = bpref.svd()
    values = layer._replace(
        forward=lambda p, x: (lambda y, cache: (y[1], cache))(*layer.forward(p, x)),
        backward=lambda p, cache, ds: layer.backward(p, cache, (np.zeros_like(cache.U), ds, np.zeros_like(cache.Vt))),
    )
    assert_same(values, lambda _, A: torch.linalg.svdvals(A), (), drawn(seed, spread_singular_values))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [0.1, 4.0, 30.0])
def test_matrix_exponential(seed, size):
    A = square(seed, lambda v: v * size / np.abs(v).sum(-2, keepdims=True).max())
    assert_same(bpref.matrix_exponential(), lambda _, A: torch.linalg.matrix_exp(A), (), A)
