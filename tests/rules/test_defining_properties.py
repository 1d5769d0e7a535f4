"""What defines a decomposition, a solution and a transform, where forward and reference call one library function.

Held in float64 on matrices square, tall and wide, of condition numbers up to 1e10. The bound is `SLACK` n eps times
what the theory of each says: a backward stable method is off by its matrix's size, a solution by its residual's, an
inverse and the logarithm of a determinant by the condition number.
"""

import jax
import numpy as np
import pytest

import bpref
from tests.conftest import SEED

SLACK = 10
EPS = float(np.finfo(np.float64).eps)
SHAPES = [(6, 6), (9, 4), (4, 9), (1, 1), (33, 33)]
SQUARE = [n for n, m in SHAPES if n == m]
CONDITIONS = [1.0, 1e5, 1e10]

every_matrix = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_square = pytest.mark.parametrize("n", SQUARE)
every_condition = pytest.mark.parametrize("condition", CONDITIONS, ids=str)


def orthonormal(rng, m: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def singular_values(k: int, condition: float) -> np.ndarray:
    return 3.0 * np.logspace(0, -np.log10(condition), k)


def matrix(shape: tuple[int, int], condition: float) -> np.ndarray:
    """A batch of two, each U diag(s) V^T."""
    rng, k = np.random.default_rng(SEED), min(shape)
    s = singular_values(k, condition)
    return np.stack([orthonormal(rng, shape[0], k) * s @ orthonormal(rng, shape[1], k).T for _ in range(2)])


def symmetric(n: int, condition: float, positive: bool) -> np.ndarray:
    rng, s = np.random.default_rng(SEED), singular_values(n, condition)
    signs = 1.0 if positive else (-1.0) ** np.arange(n)
    Qs = [orthonormal(rng, n, n) for _ in range(2)]
    return np.stack([(A + A.T) / 2 for A in (Q * (signs * s) @ Q.T for Q in Qs)])


def value(layer: bpref.Layer, *x):
    with jax.enable_x64(True):
        y = layer.forward((), x[0] if len(x) == 1 else x)[0]
        return jax.tree.map(np.asarray, y)


def assert_close(came: np.ndarray, expected: np.ndarray, size: float, n: int) -> None:
    error = float(np.max(np.abs(came - expected), initial=0.0))
    assert error <= SLACK * n * EPS * size, f"{error:.1e} of at most {SLACK * n * EPS * size:.1e}"


def transposed(A: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(A, -1, -2))


def norm(A: np.ndarray) -> float:
    return float(np.max(np.linalg.norm(A, axis=(-2, -1))))


@every_square
@every_condition
def test_cholesky_is_a_lower_triangle_whose_square_is_a(n, condition):
    A = symmetric(n, condition, positive=True)
    L = value(bpref.cholesky(), A)
    assert_close(L @ transposed(L), A, norm(A), n)
    assert np.array_equal(L, np.tril(L))
    assert np.all(np.diagonal(L, axis1=-2, axis2=-1) > 0)


@every_square
@every_condition
def test_eigh_diagonalises_and_is_orthonormal(n, condition):
    A = symmetric(n, condition, positive=False)
    w, V = value(bpref.eigh(), A)
    assert_close(A @ V, V * w[:, None, :], norm(A), n)
    assert_close(transposed(V) @ V, np.eye(n), 1.0, n)
    assert np.all(np.diff(w) >= 0)


@every_matrix
@every_condition
def test_svd_is_a_product_of_orthonormal_columns_and_falling_values(shape, condition):
    A = matrix(shape, condition)
    U, s, Vt = value(bpref.svd(), A)
    k, n = min(shape), max(shape)
    assert_close(U * s[:, None, :] @ Vt, A, norm(A), n)
    assert_close(transposed(U) @ U, np.eye(k), 1.0, n)
    assert_close(Vt @ transposed(Vt), np.eye(k), 1.0, n)
    assert_close(s, np.broadcast_to(singular_values(k, condition), s.shape), norm(A), n)
    assert np.all(np.diff(s) <= 0)
    assert np.all(s >= 0)


@every_matrix
@every_condition
def test_qr_is_a_product_of_orthonormal_columns_and_an_upper_triangle(shape, condition):
    A = matrix(shape, condition)
    Q, R = value(bpref.qr(), A)
    assert_close(Q @ R, A, norm(A), max(shape))
    assert_close(transposed(Q) @ Q, np.eye(min(shape)), 1.0, max(shape))
    assert np.array_equal(R, np.triu(R))


@every_square
@every_condition
def test_an_inverse_undoes_from_the_right(n, condition):
    A = matrix((n, n), condition)
    X = value(bpref.inverse(), A)
    assert_close(A @ X, np.eye(n), condition, n)


@every_square
@every_condition
def test_a_solution_leaves_a_residual_of_rounding(n, condition):
    A, b = matrix((n, n), condition), np.random.default_rng(SEED + 1).standard_normal((2, n, 3))
    x = value(bpref.solve(), A, b)
    assert_close(A @ x, b, norm(A) * norm(x), n)


@every_square
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
def test_a_triangular_solution_leaves_a_residual_of_rounding(n, lower, transpose):
    A, b = matrix((n, n), 1e5), np.random.default_rng(SEED + 1).standard_normal((2, n, 3))
    x = value(bpref.triangular_solve(lower, transpose), A, b)
    T = np.tril(A) if lower else np.triu(A)
    assert_close((transposed(T) if transpose else T) @ x, b, norm(T) * norm(x), n)


@every_square
@every_condition
def test_a_log_determinant_is_the_sum_of_the_logarithms_of_the_singular_values(n, condition):
    sign, l = value(bpref.log_determinant(), matrix((n, n), condition))
    assert_close(l, np.full(2, np.sum(np.log(singular_values(n, condition)))), condition, n)
    assert np.array_equal(np.abs(sign), np.ones(2))
    swapped = value(bpref.log_determinant(), matrix((n, n), condition)[:, ::-1])[0]
    assert np.array_equal(swapped, sign * (-1) ** (n // 2))


@every_square
def test_a_matrix_exponential_has_the_exponentials_of_the_eigenvalues_and_an_inverse_of_minus_a(n):
    A = symmetric(n, 1e5, positive=False)
    w, V = np.linalg.eigh(A)
    E = value(bpref.matrix_exponential(), A)
    assert_close(E, V * np.exp(w)[:, None, :] @ transposed(V), norm(E), n)
    assert_close(E @ value(bpref.matrix_exponential(), -A), np.eye(n), norm(E) ** 2, n)


@pytest.mark.parametrize("n", [1, 2, 7, 12])
@pytest.mark.parametrize("normed", ["backward", "ortho", "forward"])
def test_a_fourier_transform_is_the_sum_of_its_definition(n, normed):
    rng = np.random.default_rng(SEED)
    z = rng.standard_normal((3, n)) + 1j * rng.standard_normal((3, n))
    k = np.arange(n)
    F = np.exp(-2j * np.pi * np.outer(k, k) / n) * {"backward": 1, "ortho": n**-0.5, "forward": 1 / n}[normed]
    size = float(np.linalg.norm(z))
    assert_close(value(bpref.fft(norm=normed), z), z @ F.T, size, n)
    assert_close(value(bpref.fft(inverse=True, norm=normed), z @ F.T), z, size, n)
    half = value(bpref.real_fft(norm=normed), z.real)
    assert_close(half, (z.real @ F.T)[:, : n // 2 + 1], size, n)
    assert_close(value(bpref.real_fft(inverse=True, length=n, norm=normed), half), z.real, size, n)
