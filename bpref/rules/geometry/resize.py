"""resize: images, lines and volumes of another size, each pixel a mixture of those that are near it along every axis.

Forward, for images x of shape (N, H, W, C), to height P and width Q. Output p of P lies at s_p, in units of input
pixels whose centres are at 0, 1, ..., H - 1 (pixel centres are at halves of either grid), with f = P / H, or the factor
that is given, of which P = floor(f H) is made:

    s_p = (p + 1/2) / f - 1/2              of corners that are aligned:  s_p = p (H - 1) / (P - 1)
    floor:     A_ph = [h = floor(p / f)]
    nearest:   A_ph = [h = floor(s_p + 1/2)]
    bilinear:  A_ph = max(0, 1 - |s'_p - h|),   s'_p = s_p clipped to [0, H - 1]
    bicubic:   A_ph = sum_k w(s_p - k) [h = k clipped to [0, H - 1]],   k over all integers

    w(d) = 1 - (a + 3) d^2 + (a + 2) |d|^3  up to |d| = 1,   a (|d| - 1) (|d| - 2)^2  from there to 2,   a = -3/4

and likewise B of shape (Q, W) for the width. Each axis is a matrix with one, two or four numbers in a row:

    y_npqc = sum_hw A_ph B_qw x_nhwc                                      y: (N, P, Q, C)

Lines (N, T, C) have one matrix, volumes (N, D, H, W, C) three; "bilinear" is linear along each axis, of any number.

Of itself no smoothing comes before a reduction: this is `jax.image.resize(antialias=False)`, but for bicubic, whose a
there is -1/2, and PyTorch's `interpolate` ("nearest" is its "nearest-exact", "floor" its "nearest"). With `antialias`
the weights are as wide as an output pixel, with r = max(1, 1 / f), and each row is divided by its sum: bilinear
A_ph ~ max(0, 1 - |s_p - h| / r), bicubic A_ph ~ w((s_p - h) / r) with a = -1/2, as in both libraries.

Differential: A and B are constants of the sizes alone, so delta y = A delta x B^T, plane by plane, and the adjoint is

    dx_nhwc = sum_pq A_ph B_qw dy_npqc                                    dx: (N, H, W, C)

the transposed matrices, one axis at a time. A column of A has as many numbers as a row, times f.

Cached: nothing but the shape of x, which an array without elements remembers.

Numerical care: s_p is a quotient of integers, and so the weights, computed while tracing, are rounded once (bicubic
ones are products in which nothing cancels near a pixel); from a rounded s_p a small one would keep its error of up to H
round-offs. `jax.image.resize` has that error, and in float64 agrees with this to 7e-12 of an element only. PyTorch
divides in float32 where "floor" and "nearest" choose, and may take the pixel beside; where floor(f H) is H, or for
"floor" 2 H, it takes that for f. Half precision is summed in
float32 and rounded once. The axis that shrinks most is done first. To multiply by A as a dense matrix, as
`jax.image.resize` does, is H products for each number instead of two, and a NaN spreads to its whole row and column;
here it stays in its place, but where a row of A, or of its transpose, has more than 16 numbers: it is dense there.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_flags, require_positive, require_size, require_sizes
from bpref.dtypes import cast, widen
from bpref.formulas.convolution.between_pixels import cubic
from bpref.formulas.convolution.windows import require_spatial
from bpref.formulas.indexing.sparse_along import multiply_along
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule, Size, called_as

METHODS = ("nearest", "bilinear", "bicubic", "floor")


class ResizeCache(NamedTuple):
    shape: Float[Array, "0 N *sizes C"]


def resize(
    height: int | None = None,
    width: int | None = None,
    method: str = "bilinear",
    *,
    scale: float | tuple[float, ...] | None = None,
    align_corners: bool = False,
    antialias: bool = False,
    sizes: tuple[int, ...] | None = None,
) -> Layer[tuple[()], Array, Reals, ResizeCache]:
    """Images of the given height and width, or enlarged by a factor.

    Args:
      height, width: P and Q, in pixels, larger or smaller than before.
      method: "nearest", "floor", "bilinear" or "bicubic".
      scale: in place of height and width f, one factor or that of each axis; positions are those of f itself, also
        where f H is no integer.
      align_corners: whether the centres of the corner pixels stay where they are, as PyTorch has it.
      antialias: whether what is reduced is smoothed.
      sizes: in place of height and width the size of each of 1 to 3 spatial axes.

    Returns:
      A layer with params `()`, x `(N, H, W, C)` and y `(N, P, Q, C)` in x's dtype; with as many sizes or factors, or
      with one factor of all axes, also `(N, T, C)` and `(N, D, H, W, C)`.

    Raises:
      ValueError: a size is not a positive integer, or a factor no positive number; there are several of height and
        width, sizes and scale, or none; there is no such method, or it takes no corners or smoothing; x has other axes,
        or no pixels, or too few for one to be left.
      TypeError: x is not floating-point.
    """
    who = "resize"
    factors = _factors(who, scale)
    after = _sizes(who, height, width, sizes, scale)
    rank = next((len(v) for v in (after, factors) if isinstance(v, tuple)), None)
    require_choice(who, "method", method, METHODS)
    require_flags(who, align_corners=align_corners, antialias=antialias)
    if method in ("nearest", "floor") and (align_corners or antialias):
        raise ValueError(f"{who}: method is {method!r}, which has no align_corners and no antialias")
    if align_corners and antialias:
        raise ValueError(f"{who}: align_corners and antialias are True, expected one of them at most")

    def forward(params, x: Float[Array, "N some=*sizes C"]):
        require_spatial(who, x, rank or min(max(x.ndim - 2, 1), 3))
        return _applied(x, _matrices(x.shape)), ResizeCache(shape_keeper(x))

    def backward(params, cache, dy):
        return (), _applied(dy, [matrix.T for matrix in _matrices(cache.shape.shape[1:])])

    def _matrices(shape):
        before = shape[1:-1]
        of_each = factors if isinstance(factors, tuple) else (factors,) * len(before)
        to = after or [math.floor(n * (f or 1)) for n, f in zip(before, of_each, strict=True)]
        if 0 in to:
            raise ValueError(f"{who}: x has shape {shape}, of which a scale of {scale} leaves no pixel")
        how = method, align_corners, antialias
        return [_matrix(n, m, f, *how) for n, m, f in zip(before, to, of_each, strict=True)]

    return Layer(no_params, forward, backward, who)


def _sizes(who: str, height: object, width: object, sizes: object, scale: object) -> tuple[int, ...] | None:
    """The sizes after, `None` where factors say them."""
    is_given = {"height or width": height is not None or width is not None, "sizes": sizes is not None}
    beside = next((name for name, v in (("scale", scale), ("sizes", sizes)) if v is not None), None)
    for name in ("height or width", "sizes"):
        if beside not in (None, name) and is_given[name]:
            raise ValueError(f"{who}: {name} is given beside {beside}, expected one or the other")
    if scale is not None:
        return None
    if sizes is None:
        return require_sizes(who, height=height, width=width)
    if not isinstance(sizes, tuple | list) or not 1 <= len(sizes) <= 3:
        raise ValueError(f"{who}: sizes is {sizes!r}, expected a tuple of 1 to 3 positive integers")
    return tuple(require_size(who, "a size", n) for n in sizes)


def _factors(who: str, scale: object) -> float | tuple[float, ...] | None:
    """One factor of every axis or one of each, `None` where sizes say them."""
    if scale is None:
        return None
    if not isinstance(scale, tuple):
        return require_positive(who, "scale", scale)
    if not 1 <= len(scale) <= 3:
        raise ValueError(f"{who}: scale is {scale!r}, expected one positive number, or that of each of 1 to 3 axes")
    return tuple(require_positive(who, "scale", f) for f in scale)


def _applied(x: Array, matrices: list[np.ndarray]) -> Array:
    y = widen(x)
    for axis, matrix in sorted(enumerate(matrices, 1), key=lambda at: at[1].shape[0] / at[1].shape[1]):
        if not np.array_equal(matrix, np.eye(matrix.shape[1])):
            y = multiply_along(matrix, y, axis)
    return cast(y, x.dtype)


@lru_cache(256)
def _matrix(n: int, m: int, factor: float | None, method: str, align_corners: bool, antialias: bool) -> np.ndarray:
    """A of shape (m, n)."""
    if antialias:
        return _smoothing(n, m, factor, method)
    up, down = (m, n) if factor is None else float(factor).as_integer_ratio()
    if align_corners:
        places, unit = [p * (n - 1) if m > 1 else 0 for p in range(m)], max(m - 1, 1)
    else:
        places, unit = [(2 * p + 1) * down - up for p in range(m)], 2 * up
    if method == "floor":
        return np.eye(n)[[min(p * down // up, n - 1) for p in range(m)]]
    if method == "nearest":
        return np.eye(n)[[min((2 * s + unit) // (2 * unit), n - 1) for s in places]]
    A = np.zeros((m, n))
    for row, s in zip(A, places, strict=True):
        if method == "bilinear":
            h, rest = divmod(min(max(s, 0), unit * (n - 1)), unit)
            row[h] = (unit - rest) / unit
            row[min(h + 1, n - 1)] += rest / unit
        else:
            h, rest = divmod(s, unit)
            for k, weight in enumerate(cubic(rest / unit, (unit - rest) / unit), h - 1):
                row[min(max(k, 0), n - 1)] += weight
    return A


def _smoothing(n: int, m: int, factor: float | None, method: str) -> np.ndarray:
    """A of shape (m, n) of weights that are as wide as a pixel of either grid."""
    up, down = (m, n) if factor is None else (factor, 1)
    d = abs((2 * np.arange(n) + 1) * up - (2 * np.arange(m)[:, None] + 1) * down) / (2 * max(up, down))
    if method == "bilinear":
        A = np.maximum(0, 1 - d)
    else:
        A = np.where(d < 1, (1 - d) * (1 + d - 1.5 * d * d), np.where(d < 2, -0.5 * (d - 1) * (d - 2) ** 2, 0))
    return A / A.sum(1, keepdims=True)


@called_as(resize)
def reference(params: tuple[()], x: Array, height, width, method, scale, align_corners, antialias, sizes) -> Array:
    before = x.shape[1:-1]
    if scale is None:
        after = sizes or (height, width)
        factors = [m / n for n, m in zip(before, after, strict=True)]
        if method == "nearest" or antialias:
            return jax.image.resize(x, (x.shape[0], *after, x.shape[-1]), method, antialias)
    else:
        factors = scale if isinstance(scale, tuple) else (scale,) * len(before)
        after = [int(n * f) for n, f in zip(before, factors, strict=True)]
        if antialias:
            f, shape = jnp.asarray(factors, x.dtype), (x.shape[0], *after, x.shape[-1])
            return jax.image.scale_and_translate(x, shape, range(1, x.ndim - 1), f, 0 * f, method, antialias)
    for axis, (n, m, f) in enumerate(zip(before, after, factors, strict=True), 1):
        A = jnp.asarray(_naive(n, m, f, method, align_corners), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(A, x, (1, axis)), 0, axis)
    return x


def _naive(n: int, m: int, f: float, method: str, align_corners: bool) -> np.ndarray:
    if method in ("floor", "nearest"):
        place = (np.arange(m)[:, None] + (0 if method == "floor" else 0.5)) / f
        return np.arange(n) == np.minimum((place + 1e-9).astype(int), n - 1)
    s = np.arange(m) * (n - 1) / max(m - 1, 1) if align_corners else (np.arange(m) + 0.5) / f - 0.5
    k = np.arange(-2, n + 3)
    d = abs(s[:, None] - k)
    if method == "bilinear":
        w = np.maximum(1 - d, 0)
    else:
        w = np.where(d <= 1, 1.25 * d**3 - 2.25 * d**2 + 1, np.where(d < 2, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4), 0))
    return w @ (np.clip(k, 0, n - 1)[:, None] == np.arange(n))


_X = Real("N H W C")

RULE = Rule(
    "resize",
    resize,
    reference,
    cases=(
        Case(
            "bilinear",
            _X,
            {"height": Size("P"), "width": Size("Q")},
            never_empty=("H", "W", "P", "Q"),
            timed={"N": 8, "H": 32, "W": 32, "C": 32, "P": 64, "Q": 64},
        ),
        Case("bilinear, wider", _X, {"height": 7, "width": 31}, never_empty=("H", "W")),
        Case("nearest", _X, {"height": 31, "width": 2, "method": "nearest"}, never_empty=("H", "W")),
        Case("corners of lines", Real("N T C"), {"sizes": (7,), "align_corners": True}, never_empty=("T",)),
        Case("bicubic", _X, {"height": 9, "width": 3, "method": "bicubic"}, never_empty=("H", "W")),
        Case(
            "bicubic corners, a factor",
            _X,
            {"scale": 1.7, "method": "bicubic", "align_corners": True},
            never_empty=("H", "W"),
        ),
        Case(
            "factors of volumes",
            Real("N D H W C"),
            {"scale": (1.7, 0.6, 1.3)},
            never_empty=("D", "W"),
            least={"H": 2},
        ),
        Case("floor", _X, {"height": 5, "width": 2, "method": "floor"}, never_empty=("H", "W")),
        Case("smoothed", _X, {"height": 2, "width": 3, "antialias": True}, never_empty=("H", "W")),
        Case(
            "smoothed bicubic",
            _X,
            {"height": 2, "width": 5, "method": "bicubic", "antialias": True},
            never_empty=("H", "W"),
        ),
    ),
    cite="Parker, Kenyon and Troxel, 'Comparison of interpolating methods for image resampling' (1983), IEEE TMI 2; "
    "bicubic: Keys, 'Cubic convolution interpolation for digital image processing' (1981), IEEE TASSP 29",
    covers=("interpolate", "upsample", "downsample", "upsampling"),
)
