"""The rules of linear algebra beside PyTorch's functions."""

import jax
import numpy as np
import pytest

import bpref
from bpref.formulas.matrices import dominant_diagonal, positive_definite, spread_eigenvalues, spread_singular_values
from tests.rules.beside_torch import SEEDS, assert_same
from tests.rules.sweeping import backpropagate

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
def test_complex_matrices(seed):
    """PyTorch's cotangents are the conjugates of JAX's: of conjugated dy the conjugates of dx."""
    rng, (B, n, k) = np.random.default_rng(seed), SIZES[seed]

    def normal(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    A, b = normal(B, n, n) + 3 * n * np.eye(n), normal(B, n, k)
    H = A @ A.conj().swapaxes(-1, -2)
    for layer, x, theirs in (
        (bpref.solve(), (A, b), torch.linalg.solve),
        (bpref.cholesky(), (H,), lambda H: torch.linalg.cholesky((H + H.mH) / 2)),
        (bpref.log_determinant(), (A,), torch.linalg.slogdet),
        (bpref.pseudo_inverse(), (normal(B, n, k),), torch.linalg.pinv),
        (bpref.least_squares(), (normal(B, n, k), b), lambda A, b: torch.linalg.lstsq(A, b).solution),
    ):
        tensors = [torch.tensor(v, requires_grad=True) for v in x]
        y = tuple(y) if isinstance(y := theirs(*tensors), tuple) else y
        dy = jax.tree.map(lambda v: normal(*v.shape) if v.is_complex() else rng.normal(size=v.shape), y)
        torch.autograd.backward(jax.tree.leaves(y), [torch.tensor(d.conj()) for d in jax.tree.leaves(dy)])
        with jax.enable_x64(True):
            came, _, dx = backpropagate(layer, (), x if len(x) > 1 else x[0], dy)
        for a, t in zip(
            jax.tree.leaves((came, dx)), (*jax.tree.leaves(y), *(v.grad.conj() for v in tensors)), strict=True
        ):
            np.testing.assert_allclose(a, t.detach().resolve_conj().numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("unit_diagonal", [False, True])
def test_triangular_solve(seed, lower, transpose, unit_diagonal):
    def twin(_, x):
        A, B = x
        T = A.mT if transpose else A
        return torch.linalg.solve_triangular(T, B, upper=lower == transpose, unitriangular=unit_diagonal)

    x = square(seed, dominant_diagonal), drawn(seed, np.asarray)
    assert_same(bpref.triangular_solve(lower, transpose, unit_diagonal), twin, (), x)


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


def with_largest_positive(V):
    """The sign of each column, which the libraries leave open."""
    return torch.gather(V, -2, V.abs().argmax(-2, keepdim=True)).sign().detach()


@pytest.mark.parametrize("seed", SEEDS)
def test_eigh(seed):
    def twin(_, A):
        w, V = torch.linalg.eigh((A + A.mT) / 2)
        return w, V * with_largest_positive(V)

    assert_same(bpref.eigh(), twin, (), square(seed, spread_eigenvalues))


@pytest.mark.parametrize("seed", SEEDS)
def test_qr(seed):
    A = drawn(seed, spread_singular_values)
    assert_same(bpref.qr(), lambda _, A: tuple(torch.linalg.qr(A)), (), A)


@pytest.mark.parametrize("seed", SEEDS)
def test_svd(seed):
    def twin(_, A):
        U, s, Vt = torch.linalg.svd(A, full_matrices=False)
        sign = with_largest_positive(U)
        return U * sign, s, Vt * sign.mT

    assert_same(bpref.svd(), twin, (), drawn(seed, spread_singular_values))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [0.1, 4.0, 30.0])
def test_matrix_exponential(seed, size):
    A = square(seed, lambda v: v * size / np.abs(v).sum(-2, keepdims=True).max())
    assert_same(bpref.matrix_exponential(), lambda _, A: torch.linalg.matrix_exp(A), (), A)


def assert_transforms_alike(layer, twin, x):
    """PyTorch's gradient of complex numbers is the conjugate of JAX's cotangent."""
    with jax.enable_x64(True):
        y, cache = layer.forward((), x)
        dy = np.random.default_rng(9).normal(size=(2, *y.shape))
        dy = dy[0] + 1j * dy[1] if np.iscomplexobj(y) else dy[0]
        dx = layer.backward((), cache, dy)[1]
    tensor = torch.tensor(x, requires_grad=True)
    y_twin = twin(tensor)
    y_twin.backward(torch.tensor(dy.conj()))
    np.testing.assert_allclose(y, y_twin.detach().numpy(), rtol=0, atol=1e-12 * np.abs(y).max())
    np.testing.assert_allclose(dx, tensor.grad.numpy().conj(), rtol=0, atol=1e-12 * np.abs(dx).max())


def complex_drawn(seed):
    return drawn(seed, np.asarray) + 1j * drawn(seed + 0, np.flip)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
def test_fft(seed, inverse, norm):
    twin = torch.fft.ifftn if inverse else torch.fft.fftn
    assert_transforms_alike(
        bpref.fft((0, -1), inverse, norm), lambda x: twin(x, dim=(0, -1), norm=norm), complex_drawn(seed)
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("axes", [(-1,), (0, 2), (2, 0, 1)])
def test_real_fft(seed, norm, axes):
    layer = bpref.real_fft(norm=norm, axes=axes)
    assert_transforms_alike(layer, lambda x: torch.fft.rfftn(x, dim=axes, norm=norm), drawn(seed, np.asarray))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("axes", [(-1,), (0, 2), (2, 0, 1)])
def test_inverse_real_fft(seed, odd, axes):
    x = complex_drawn(seed)
    if x.shape[axes[-1]] == 1:
        x = np.concatenate([x, 2 * x], axes[-1])
    n = 2 * (x.shape[axes[-1]] - 1) + odd
    sizes = [*(x.shape[axis] for axis in axes[:-1]), n]
    assert_transforms_alike(bpref.real_fft(True, n, axes=axes), lambda x: torch.fft.irfftn(x, sizes, axes), x)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_transforms_of_another_length(n):
    real, coefficients = drawn(0, np.asarray), complex_drawn(0)
    both = bpref.fft((0, -1), lengths=(2, n))
    assert_transforms_alike(both, lambda x: torch.fft.fftn(x, (2, n), (0, -1)), coefficients)
    assert_transforms_alike(bpref.real_fft(length=n, axes=(1,)), lambda x: torch.fft.rfft(x, n, 1), real)
    assert_transforms_alike(bpref.real_fft(True, n), lambda x: torch.fft.irfft(x, n), coefficients)


@pytest.mark.parametrize("seed", SEEDS)
def test_determinant(seed):
    assert_same(bpref.determinant(), lambda _, A: torch.linalg.det(A), (), square(seed, spread_singular_values))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_complex_determinant_has_the_conjugate_of_the_cotangent_of_pytorch(seed):
    A = square(seed, spread_singular_values) + 0.5j * square(seed, np.asarray)
    dy = A[:, 0, 0]
    with jax.enable_x64(True):
        layer = bpref.determinant()
        y, cache = layer.forward((), A)
        dA = np.asarray(layer.backward((), cache, jax.numpy.asarray(dy))[1])
    theirs = torch.tensor(A, requires_grad=True)
    y_theirs = torch.linalg.det(theirs)
    y_theirs.backward(torch.tensor(dy.conj()))
    assert theirs.grad is not None
    np.testing.assert_allclose(y, y_theirs.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(dA, theirs.grad.numpy().conj(), atol=1e-10 * np.abs(dA).max())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", ["fro", "nuc", 1, -1, 2, -2, float("inf"), float("-inf")])
def test_matrix_norm(seed, p):
    A = drawn(seed, spread_singular_values)
    assert_same(bpref.matrix_norm(p), lambda _, A: torch.linalg.matrix_norm(A, p), (), A)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rtol", [None, 0.5])
def test_pseudo_inverse(seed, rtol):
    """Of a smaller rank, too: of singular values from 1 to 3 those from 1.5 on are kept."""
    own = {} if rtol is None else {"rtol": rtol}
    A = drawn(seed, spread_singular_values)
    assert_same(bpref.pseudo_inverse(rtol), lambda _, A: torch.linalg.pinv(A, **own), (), A)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("wide", [False, True])
def test_least_squares(seed, wide):
    shape = sorted(SIZES[seed][1:], reverse=not wide)
    x = drawn(seed, spread_singular_values, *shape), drawn(seed, np.asarray, shape[0], 3)
    assert_same(bpref.least_squares(), lambda _, x: torch.linalg.lstsq(*x).solution, (), x)
