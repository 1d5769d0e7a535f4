"""Linear algebra, of complex matrices too, and resizing on PyTorch's own samples."""

import math

import pytest

import bpref
from tests.rules.torch_samples import Ours, Outcome, Row, Table, assert_as_expected, made

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def matrix_norm(x, ord="fro", dim=(-2, -1), keepdim=False, dtype=None):
    if dtype is not None:
        return "another dtype"
    ord = {"inf": math.inf, "-inf": -math.inf}.get(ord, ord) if isinstance(ord, str) else ord

    def back(y):
        return y.movedim((-2, -1), tuple(dim)) if keepdim else y

    return Ours(made(bpref.matrix_norm, ord, keepdim), x.movedim(tuple(dim), (-2, -1)), back=back)


def determinant(x):
    return Ours(made(bpref.determinant), x)


def log_determinant(x):
    return Ours(made(bpref.log_determinant), x, select=tuple)


def inverse(x):
    return Ours(made(bpref.inverse), x)


def cholesky(x, upper=False):
    return Ours(made(bpref.cholesky), x + x.mH, back=lambda y: y.mH if upper else y)


def solve(A, B, *, left=True):
    """PyTorch broadcasts one's batch by the other's; ours has one batch."""
    is_vector = B.ndim == 1 or B.shape == A.shape[:-1]
    B = B[..., None] if is_vector else B
    A, B = (A, B) if left or is_vector else (A.mT, B.mT)
    batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    x = A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:])

    def back(y):
        return y[..., 0] if is_vector else y if left else y.mT

    return Ours(made(bpref.solve), x, back=back)


def pseudo_inverse(x, rcond=None, *, atol=None, rtol=None, hermitian=False):
    layer = made(bpref.pseudo_inverse, None if rtol is None else float(rtol), float(atol or 0), hermitian)
    return Ours(layer, x + x.mH if hermitian else x)


def pseudo_inverse_of_product(a, b):
    return Ours(made(bpref.pseudo_inverse), a @ b.mT)


def least_squares(A, B, rcond=None, driver=None):
    is_vector = B.ndim == A.ndim - 1
    x = A, B[..., None] if is_vector else B
    return Ours(made(bpref.least_squares), x, back=lambda y: y[..., 0] if is_vector else y, select=lambda y: y[0])


def whatever_the_signs(*vectors_and_values):
    """Of singular vectors, or eigenvectors, the sizes: as many as there are columns have a sign of their own."""
    return tuple(v.abs() for v in vectors_and_values)


def svd(x, full_matrices=True):
    """Vectors beyond the singular values are any basis, which is not compared."""
    k = min(x.shape[-2:])

    def compared(y):
        U, s, Vt = y
        return whatever_the_signs(U[..., :k], s, Vt[..., :k, :])

    return Ours(made(bpref.svd, full_matrices), x, back=compared, select=compared, is_linear=False)


def qr(x, mode="reduced"):
    back = {"back": lambda y: whatever_the_signs(*y), "select": lambda y: whatever_the_signs(*y)}
    return Ours(made(bpref.qr, mode), x, **back, is_linear=False)


def eigh(x, UPLO="L"):
    back = {"back": lambda y: (y[0], y[1].abs()), "select": lambda y: (y[0], y[1].abs())}
    return Ours(made(bpref.eigh), x + x.mH, **back, is_linear=False)


def eig(x):
    """Ours ascend by the sum of their real and imaginary part."""

    def compared(y):
        w, V = y
        order = (w.detach().real + w.detach().imag).argsort(-1)
        return w.gather(-1, order), V.gather(-1, order[..., None, :].expand(V.shape)).abs()

    return Ours(made(bpref.eig), x, back=compared, select=compared, is_linear=False)


def interpolate(
    x, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None, antialias=False
):
    method = {"nearest": "floor", "nearest-exact": "nearest"}.get(mode, "bicubic" if mode == "bicubic" else "bilinear")
    how = {"align_corners": bool(align_corners), "antialias": antialias}
    if recompute_scale_factor:
        size = reduced_by(scale_factor, x)
    if size is not None:
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,) * (x.ndim - 2)
        layer = made(bpref.resize, method=method, sizes=sizes, **how)
    else:
        scale = tuple(map(float, scale_factor)) if isinstance(scale_factor, (tuple, list)) else float(scale_factor)
        layer = made(bpref.resize, method=method, scale=scale, **how)
    return Ours(layer, x.movedim(1, -1), back=lambda y: y.movedim(-1, 1))


def reduced_by(scale_factor, x):
    """The sizes that a factor makes of those of x."""
    scale = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,) * (x.ndim - 2)
    return tuple(math.floor(n * f) for n, f in zip(x.shape[2:], scale, strict=True))


def area(x, size=None, scale_factor=None, mode="area", align_corners=None, recompute_scale_factor=None):
    """What PyTorch calls so is the adaptive mean."""
    counts = tuple(size) if size is not None else reduced_by(scale_factor, x)
    return Ours(made(bpref.adaptive_pool, counts), x.movedim(1, -1), back=lambda y: y.movedim(-1, 1))


TABLE: Table = {
    "linalg.matrix_norm": Row(matrix_norm, Outcome(64)),
    "linalg.det": Row(determinant, Outcome(9)),
    "linalg.eig": Row(eig, Outcome(8)),
    "linalg.eigh": Row(eigh, Outcome(8), of_hermitian=True),
    "linalg.qr": Row(qr, Outcome(36)),
    "linalg.svd": Row(svd, Outcome(108), every=2),
    "linalg.pinv": Row(pseudo_inverse, Outcome(24)),
    "linalg.pinv.hermitian": Row(pseudo_inverse, Outcome(8), of_hermitian=True),
    "linalg.pinv.singular": Row(pseudo_inverse_of_product, Outcome(24), every=2),
    "linalg.lstsq.grad_oriented": Row(least_squares, Outcome(36)),
    "nn.functional.interpolate.nearest": Row(interpolate, Outcome(23)),
    "nn.functional.interpolate.nearest-exact": Row(interpolate, Outcome(23)),
    "nn.functional.interpolate.area": Row(area, Outcome(22)),
    "nn.functional.interpolate.linear": Row(interpolate, Outcome(18)),
    "nn.functional.interpolate.trilinear": Row(interpolate, Outcome(24)),
    "nn.functional.interpolate.bilinear": Row(interpolate, Outcome(24)),
    "nn.functional.interpolate.bicubic": Row(interpolate, Outcome(24)),
}


COMPLEX: Table = {
    "linalg.det": Row(determinant, Outcome(9)),
    "linalg.slogdet": Row(log_determinant, Outcome(9)),
    "linalg.inv": Row(inverse, Outcome(8)),
    "linalg.solve": Row(solve, Outcome(24)),
    "linalg.cholesky": Row(cholesky, Outcome(16), of_hermitian=True),
    "linalg.eig": Row(eig, Outcome(8)),
    "linalg.eigh": Row(eigh, Outcome(8), of_hermitian=True),
    "linalg.qr": Row(qr, Outcome(36)),
    "linalg.svd": Row(svd, Outcome(54), every=4),
    "linalg.pinv": Row(pseudo_inverse, Outcome(24)),
    "linalg.pinv.hermitian": Row(pseudo_inverse, Outcome(8), of_hermitian=True),
    "linalg.lstsq.grad_oriented": Row(least_squares, Outcome(36)),
}


@pytest.mark.filterwarnings("ignore:torch.qr is deprecated:UserWarning")  # PyTorch's own samples are made by it
@pytest.mark.parametrize("name", TABLE)
def test_samples_agree(name):
    assert_as_expected(name, TABLE)


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_samples_agree(name):
    assert_as_expected(name, COMPLEX, "complex128")
