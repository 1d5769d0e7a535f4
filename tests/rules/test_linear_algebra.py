"""The rules of linear algebra: what they refuse, and what they are where there is no inverse or no gap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpref
from tests.refusing import refusals

WIDE = jnp.ones((3, 4))
COMPLEX = jnp.ones((2, 4), jnp.complex64)

BAD_CALLS = {
    "hadamard: x has 3 elements in its last axis, expected a power of 2": (
        lambda: bpref.hadamard().forward((), jnp.ones((4, 3)))
    ),
    "matrix_exponential: max_squarings is 0, expected a positive integer": lambda: bpref.matrix_exponential(0),
    "matrix_norm: p is 3, expected one of fro, nuc, 1, -1, 2, -2, inf, -inf": lambda: bpref.matrix_norm(3),
    "matrix_norm: x has shape (0, 4), expected (..., m, n) with m > 0 and n > 0": (
        lambda: bpref.matrix_norm().forward((), WIDE[:0])
    ),
    "pseudo_inverse: rtol is 2.0, expected a number from 0 to 1": lambda: bpref.pseudo_inverse(2.0),
    "pseudo_inverse: x has shape (3, 4), expected (..., n, n): a Hermitian matrix is square": (
        lambda: bpref.pseudo_inverse(hermitian=True).forward((), WIDE)
    ),
    "determinant: x has shape (3, 4), expected (..., n, n)": lambda: bpref.determinant().forward((), WIDE),
    "least_squares: B has shape (2, 4), expected (*b, m, k) = (3, k) by A (3, 4)": (
        lambda: bpref.least_squares().forward((), (WIDE, WIDE[:2]))
    ),
    "fft: norm is 'unit', expected 'backward', 'ortho' or 'forward'": lambda: bpref.fft(norm="unit"),
    "fft: axes is (nan,), expected a tuple of integers such as (-1,)": lambda: bpref.fft(axes=(float("nan"),)),
    "real_fft: axes is -1, expected a tuple of integers such as (-1,)": lambda: bpref.real_fft(axes=-1),
    "TypeError: real_fft: x has dtype complex64, expected real numbers": lambda: bpref.real_fft().forward((), COMPLEX),
    "TypeError: real_fft: x has dtype float32, the inverse expects complex numbers": (
        lambda: bpref.real_fft(inverse=True).forward((), WIDE)
    ),
    "real_fft: length is 0, expected a positive integer": lambda: bpref.real_fft(length=0),
    "real_fft: x has shape (2, 1), of which 2 (m - 1) = 0 numbers would be made": (
        lambda: bpref.real_fft(inverse=True).forward((), COMPLEX[:, :1])
    ),
    "fft: lengths is (4, 4), expected one for each of axes (-1,)": lambda: bpref.fft(lengths=(4, 4)),
    "fft: a length is 0, expected a positive integer": lambda: bpref.fft(lengths=(0,)),
    "real_fft: axes is (), expected at least one axis": lambda: bpref.real_fft(axes=()),
    "real_fft: axes is (1, -1), expected different axes of x (x: (3, 4))": (
        lambda: bpref.real_fft(axes=(1, -1)).forward((), WIDE)
    ),
    "real_fft: x has shape (0, 4), expected at least one element along each of axes (0, 1)": (
        lambda: bpref.real_fft(axes=(0, 1)).forward((), WIDE[:0])
    ),
    "fft: axes is (1, -1), expected different axes of x (x: (2, 4))": lambda: bpref.fft((1, -1)).forward((), COMPLEX),
    "fft: x has shape (2, 0), expected at least one element along each of axes (-1,)": (
        lambda: bpref.fft().forward((), COMPLEX[:, :0])
    ),
    "qr: mode is 'raw', expected one of reduced, complete, r": lambda: bpref.qr("raw"),
    "qr: x has shape (4, 3), expected (..., m, n) with m <= n: of a complete Q the last m - n columns are any basis, "
    "and have no derivative": lambda: bpref.qr("complete").forward((), WIDE.T),
}


test_wrong_calls_are_refused = refusals(BAD_CALLS)


def sweep(layer, x):
    """y and dx for a cotangent of ones."""
    y, cache = layer.forward((), x)
    return y, layer.backward((), cache, jax.tree.map(jnp.ones_like, y))[1]


SQUARE = [bpref.inverse, bpref.log_determinant, bpref.cholesky, bpref.eig, bpref.eigh, bpref.svd, bpref.qr]


@pytest.mark.parametrize("make", [*SQUARE, bpref.matrix_exponential])
def test_a_matrix_without_a_batch_and_an_empty_batch(make):
    A = jnp.array([[3.0, 1.0], [1.0, 1.0]])
    alone, (batched,) = sweep(make(), A)[1], sweep(make(), A[None])[1]
    np.testing.assert_allclose(batched, alone, rtol=1e-5, atol=1e-6)
    assert sweep(make(), jnp.ones((0, 2, 2)))[1].shape == (0, 2, 2)


def test_an_empty_batch_of_systems():
    for make in (bpref.solve, bpref.triangular_solve):
        dA, dB = sweep(make(), (jnp.ones((0, 2, 2)), jnp.ones((0, 2, 3))))[1]
        assert (dA.shape, dB.shape) == ((0, 2, 2), (0, 2, 3))


@pytest.mark.parametrize("make", [bpref.inverse, bpref.log_determinant])
def test_a_singular_matrix_spoils_no_other_of_its_batch(make):
    _, dA = sweep(make(), jnp.stack([jnp.zeros((2, 2)), 2 * jnp.eye(2)]))
    assert not np.isfinite(dA[0]).all()
    assert np.isfinite(dA[1]).all()


def test_a_singular_determinant():
    (s, l), _ = sweep(bpref.log_determinant(), jnp.zeros((2, 2)))
    assert (float(s), float(l)) == (0.0, -np.inf)


def test_a_determinant_by_hand():
    """det diag(2, -4) = -8; d log|det| is diag(1/2, -1/4)."""
    (s, l), dA = sweep(bpref.log_determinant(), jnp.diag(jnp.array([2.0, -4.0])))
    assert float(s) == -1
    assert float(l) == pytest.approx(np.log(8))
    np.testing.assert_allclose(dA, [[0.5, 0], [0, -0.25]])


def test_cholesky_of_what_is_not_positive_definite_is_nan():
    L, dA = sweep(bpref.cholesky(), jnp.stack([-jnp.eye(2), 4 * jnp.eye(2)]))
    assert np.isnan(L[0]).any()
    assert np.isnan(dA[0]).any()
    np.testing.assert_allclose(L[1], 2 * np.eye(2))
    np.testing.assert_allclose(np.diag(dA[1]), [0.25, 0.25])
    np.testing.assert_array_equal(dA[1], dA[1].T)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_element_of_a_vector_is_positive(sign):
    """S = 3 u u^T + v v^T with u = (0.6, 0.8), v = (0.8, -0.6), and A = 2 u v^T."""
    S = jnp.asarray([[1.72, 0.96], [0.96, 2.28]])
    V = bpref.eigh().forward((), S)[0][1]
    np.testing.assert_allclose(V, [[0.8, 0.6], [-0.6, 0.8]], atol=1e-6)
    A = sign * 2 * jnp.outer(jnp.asarray([0.6, 0.8]), jnp.asarray([0.8, -0.6]))
    U, _, Vt = bpref.svd().forward((), A[:, :1])[0]
    np.testing.assert_allclose(U, [[0.6], [0.8]], atol=1e-6)
    np.testing.assert_allclose(Vt, [[sign]], atol=1e-6)


def sweep_of(layer, A, dy):
    """dA for a cotangent, or for what it is as a function of y."""
    y, cache = layer.forward((), A)
    return layer.backward((), cache, dy(y) if callable(dy) else dy)[1]


def test_vectors_have_no_derivative_at_repeated_values():
    dV = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    assert not np.isfinite(sweep_of(bpref.eigh(), jnp.eye(2), (jnp.zeros(2), dV))).all()
    assert not np.isfinite(sweep_of(bpref.svd(), jnp.eye(2), (dV, jnp.zeros(2), 0 * dV))).all()


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
THROUGH = {
    "eager": lambda f: f,
    "compiled": jax.jit,
    "vmapped": lambda f: lambda A: jax.vmap(f)(jnp.stack([A, A]))[1],
}


@pytest.mark.parametrize("through", THROUGH.values(), ids=THROUGH)
@pytest.mark.parametrize("Q", [np.eye(3), ROTATION], ids=["diagonal", "rotated"])
def test_eigenvalues_alone_have_a_derivative_at_repeated_ones(Q, through):
    """The sum of their squares is that of A's elements: 2 A."""
    A = jnp.asarray(Q @ np.diag([2.0, 2, 1]) @ Q.T, jnp.float32)
    dA = through(lambda A: sweep_of(bpref.eigh(), A, lambda y: (2 * y[0], 0 * y[1])))(A)
    np.testing.assert_allclose(dA, 2 * A, atol=1e-5)


def test_a_turning_matrix_has_a_conjugate_pair():
    """((a, -b), (b, a)) has a -+ ib, whose real parts change as a does, and the imaginary ones as b."""
    layer = bpref.eig()
    (w, V), cache = layer.forward((), jnp.array([[1.0, -2.0], [2.0, 1.0]]))
    np.testing.assert_allclose(w, [1 - 2j, 1 + 2j], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(V, axis=0), 1, rtol=1e-6)
    for dw, expected in (([1, 1], [[1, 0], [0, 1]]), ([1j, -1j], [[0, -1], [1, 0]])):
        dA = layer.backward((), cache, (jnp.asarray(dw, jnp.complex64), None))[1]
        np.testing.assert_allclose(dA, expected, atol=1e-6)


def test_eigenvalues_alone_of_any_matrix_have_a_derivative_at_repeated_ones():
    """The sum of their squares is the trace of A A, whose derivative is 2 A^T."""
    A = jnp.asarray([[2.0, 0.0, 3.0], [0.0, 2.0, -1.0], [0.0, 0.0, 1.0]])
    for of_vectors in (jnp.zeros((3, 3), jnp.complex64), None):
        dA = sweep_of(bpref.eig(), A, lambda y, dV=of_vectors: (2 * y[0], dV))
        np.testing.assert_allclose(dA, 2 * A.T, atol=1e-5)


NUCLEAR = {
    "repeated": (np.eye(2), np.eye(2)),
    "tall, repeated": (np.eye(3, 2), np.eye(3, 2)),
    "wide, repeated": (2 * np.eye(2, 3), np.eye(2, 3)),
    "tall, of rank 1": (np.diag([3.0, 0, 0])[:, :2], None),
    "square, of rank 1": (np.diag([3.0, 0, 0]), None),
}


@pytest.mark.parametrize("through", THROUGH.values(), ids=THROUGH)
@pytest.mark.parametrize(("A", "expected"), NUCLEAR.values(), ids=NUCLEAR)
def test_singular_values_alone_have_a_derivative_at_repeated_ones(A, expected, through):
    """Of the nuclear norm at c I it is I; at singular values of 0 a subgradient, orthonormal."""
    of_norm = through(lambda A: sweep_of(bpref.svd(), A, lambda y: (0 * y[0], jnp.ones_like(y[1]), 0 * y[2])))
    dA = of_norm(jnp.asarray(A, jnp.float32))
    if expected is None:
        assert dA[0, 0] == pytest.approx(1)
        expected, dA = np.eye(dA.shape[1]), dA.T @ dA
    np.testing.assert_allclose(dA, expected, atol=1e-6)


@pytest.mark.parametrize("small", [1e-3, 1e-8, 1e-30])
def test_wide_qr_does_not_cancel(small):
    """A = (r 1), Q = 1, R = A: dA is dR."""
    _, dA = sweep(bpref.qr(), jnp.array([[small, 1.0]]))
    np.testing.assert_array_equal(dA, [[1, 1]])


SIZES = {bpref.svd: [(0, 3), (3, 0)], bpref.qr: [(0, 3), (3, 0)]}
EMPTY = {
    bpref.inverse: lambda A: np.linalg.inv(A),
    bpref.log_determinant: lambda A: tuple(np.linalg.slogdet(A)),
    bpref.cholesky: lambda A: np.linalg.cholesky(A),
    bpref.eig: lambda A: tuple(np.linalg.eig(A + 0j)),
    bpref.eigh: lambda A: tuple(np.linalg.eigh(A)),
    bpref.svd: lambda A: tuple(np.linalg.svd(A, full_matrices=False)),
    bpref.qr: lambda A: tuple(np.linalg.qr(A)),
    bpref.matrix_exponential: lambda A: A,
}
EMPTY_CALLS = [(make, (*b, *s)) for make in EMPTY for b in ((), (2,)) for s in SIZES.get(make, [(0, 0)])]


@pytest.mark.parametrize(("make", "shape"), EMPTY_CALLS)
def test_empty_matrices_are_what_numpy_has(make, shape):
    y, dA = sweep(make(), jnp.ones(shape))
    assert dA.shape == shape
    expected = EMPTY[make](np.ones(shape, np.float32))
    assert jax.tree.structure(y) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, y, expected)


@pytest.mark.parametrize("make", [bpref.solve, bpref.triangular_solve])
@pytest.mark.parametrize("b", [(0,), (0, 2)])
def test_systems_without_equations_have_empty_solutions(make, b):
    X, (dA, dB) = sweep(make(), (jnp.ones((0, 0)), jnp.ones(b)))
    assert (X.shape, dA.shape, dB.shape) == (b, (0, 0), b)


def test_what_triangular_solve_does_not_read_has_no_cotangent():
    A = jnp.array([[2.0, jnp.nan], [1.0, 4.0]])
    X, (dA, dB) = sweep(bpref.triangular_solve(lower=True), (A, jnp.array([2.0, 5.0])))
    np.testing.assert_allclose(X, [1, 1])
    np.testing.assert_allclose(dB, [0.375, 0.25])
    np.testing.assert_allclose(dA, [[-0.375, 0], [-0.25, -0.25]])


def test_matrix_exponential_is_linear_in_dy_of_any_size_and_nan_beyond_its_squarings():
    A = jnp.array([[0.5, 2.0], [-1.0, 0.25]])
    layer = bpref.matrix_exponential()
    _, cache = layer.forward((), A)
    dY = jnp.array([[1.0, 2.0], [3.0, -4.0]])
    _, dA = layer.backward((), cache, dY)
    np.testing.assert_array_equal(layer.backward((), cache, 2.0**40 * dY)[1], 2.0**40 * dA)
    assert np.isnan(bpref.matrix_exponential(1).forward((), 100 * A)[0]).all()


def test_fft_is_the_sum_as_written():
    n = 6
    rng = np.random.default_rng(0)
    x = (rng.normal(size=n) + 1j * rng.normal(size=n)).astype(np.complex64)
    W = np.exp(-2j * np.pi / n * np.outer(np.arange(n), np.arange(n)))
    y, dx = sweep(bpref.fft(norm="ortho"), jnp.asarray(x))
    np.testing.assert_allclose(y, W @ x / np.sqrt(n), atol=1e-6)
    np.testing.assert_allclose(dx, W.T @ np.ones(n) / np.sqrt(n), atol=1e-6)


def test_the_determinant_of_a_singular_matrix_has_its_cofactors():
    d, dA = sweep(bpref.determinant(), jnp.array([[1.0, 2.0], [2.0, 4.0]]))
    assert d == 0
    np.testing.assert_allclose(dA, [[4, -2], [-2, 1]], rtol=1e-6)
    d, dA = sweep(bpref.determinant(), jnp.ones((0, 0)))
    assert (float(d), dA.shape) == (1, (0, 0))


def test_norms_of_matrices_by_hand():
    """A of singular values 3 and 1 and tied rows: those who attain the extreme share."""
    A = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    for p, value, slope in (
        ("nuc", 4, [[1, 0], [0, 1]]),
        (2, 3, [[0.5, 0.5], [0.5, 0.5]]),
        (-2, 1, [[0.5, -0.5], [-0.5, 0.5]]),
        (float("inf"), 3, [[0.5, 0.5], [0.5, 0.5]]),
    ):
        y, dA = sweep(bpref.matrix_norm(p), A)
        np.testing.assert_allclose(y, value, rtol=1e-6)
        np.testing.assert_allclose(dA, slope, atol=1e-6)
    y, dA = sweep(bpref.matrix_norm(), jnp.zeros((2, 3)))
    assert y == 0
    np.testing.assert_array_equal(dA, np.zeros((2, 3)))


def test_a_pseudo_inverse_leaves_out_what_is_below_its_threshold():
    Y, dA = sweep(bpref.pseudo_inverse(), jnp.diag(jnp.array([2.0, 0.0])))
    np.testing.assert_allclose(Y, [[0.5, 0], [0, 0]], atol=1e-6)
    assert np.isfinite(dA).all()


def test_a_threshold_of_its_own_leaves_out_as_much_of_a_symmetric_matrix():
    A = jnp.array([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, -0.5]])
    for hermitian in (False, True):
        Y, dA = sweep(bpref.pseudo_inverse(atol=1.0, hermitian=hermitian), A)
        np.testing.assert_allclose(Y, [[3 / 8, -1 / 8, 0], [-1 / 8, 3 / 8, 0], [0, 0, 0]], atol=1e-6)
        np.testing.assert_allclose(dA, dA.T, atol=1e-6)


def test_a_transform_of_four_signs():
    """Orthonormal, it is its own inverse; without, four times that."""
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    y, dx = bpref.hadamard(orthonormal=False).forward((), x)[0], sweep_of(bpref.hadamard(False), x, lambda y: y)
    assert y.tolist() == [10, -2, -4, 0]
    assert dx.tolist() == [4, 8, 12, 16]
    half = bpref.hadamard().forward((), x)[0]
    assert half.tolist() == [5, -1, -2, 0]
    assert bpref.hadamard().forward((), half)[0].tolist() == x.tolist()


def test_a_transform_is_scipys():
    linalg = pytest.importorskip("scipy.linalg")
    x = np.random.default_rng(0).normal(size=(3, 16))
    with jax.enable_x64(True):
        y = bpref.hadamard(orthonormal=False).forward((), x)[0]
    np.testing.assert_allclose(y, x @ linalg.hadamard(16), rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 5, 2), (2, 2, 5)])
def test_the_vectors_beyond_the_singular_values_turn_with_the_others(shape):
    """What is a function of the space that they span, E E^T = I - U U^T, has the same cotangent through either."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        A, n = jnp.asarray(rng.normal(size=shape)), max(shape)
        weights = jnp.asarray(rng.normal(size=(shape[0], n, n)))
        layer, is_tall = bpref.svd(full_matrices=True), shape[1] > shape[2]
        (U, _, Vt), cache = layer.forward((), A)
        longer = U if is_tall else jnp.swapaxes(Vt, -1, -2)
        np.testing.assert_allclose(longer @ jnp.swapaxes(longer, -1, -2), jnp.eye(n)[None] + 0 * weights, atol=1e-12)
        pulled = (weights + jnp.swapaxes(weights, -1, -2)) @ longer
        own = jnp.arange(n) < 2
        through = [jnp.where(own, -pulled, 0), jnp.where(own, 0, pulled)]
        dys = [(d, None, None) if is_tall else (None, None, jnp.swapaxes(d, -1, -2)) for d in through]
        of_U, of_E = (layer.backward((), cache, dy)[1] for dy in dys)
    np.testing.assert_allclose(of_E, of_U, atol=1e-10 * np.abs(of_U).max())
