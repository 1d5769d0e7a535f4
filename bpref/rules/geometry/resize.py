"""resize: images of another height and width, by the nearest pixel or a bilinear mixture of the nearest four.

Forward, for images x of shape (N, H, W, C), to height P and width Q. Output p of P lies at s_p, in units of input
pixels whose centres are at 0, 1, ..., H - 1 (pixel centres are at halves of either grid):

    s_p = (p + 1/2) H / P - 1/2
    nearest:   A_ph = [h = floor(s_p + 1/2)]
    bilinear:  A_ph = max(0, 1 - |s'_p - h|),   s'_p = s_p clipped to [0, H - 1]

and likewise B of shape (Q, W) for the width. Each axis is a matrix with one or two numbers in a row:

    y_npqc = sum_hw A_ph B_qw x_nhwc                                      y: (N, P, Q, C)

No smoothing comes before a reduction: this is `jax.image.resize(antialias=False)`, and PyTorch's `interpolate` with
`align_corners=False` ("nearest" is its "nearest-exact").

Differential: A and B are constants of the sizes alone, so delta y = A delta x B^T, plane by plane, and the adjoint is

    dx_nhwc = sum_pq A_ph B_qw dy_npqc                                    dx: (N, H, W, C)

the transposed matrices, one axis at a time. A column of A has about 2 P / H numbers.

Cached: nothing but the shape of x, which an array without elements remembers.

Numerical care: 2 P s_p is an integer, and so the weights, computed while tracing, are rounded once; from a rounded s_p
a small one would keep its error of up to H round-offs. `jax.image.resize` has that error, and in float64 agrees with
this to 7e-12 of an element only. Half precision is summed in float32 and rounded once. The axis that shrinks most is
done first. To multiply by A as a dense matrix, as `jax.image.resize` does, is H products for each number instead of
two, and a NaN spreads to its whole row and column; here it stays in its place, but for the gradient of bilinear images
that are enlarged eight times or more: their A is dense there.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_sizes
from bpref.dtypes import cast, widen
from bpref.formulas.shape_keeper import shape_keeper
from bpref.formulas.sparse_along import multiply_along
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule, Size

METHODS = ("nearest", "bilinear")


class ResizeCache(NamedTuple):
    shape: Float[Array, "0 N H W C"]


def resize(height: int, width: int, method: str = "bilinear") -> Layer[tuple[()], Array, Reals, ResizeCache]:
    """Images of the given height and width.

    Args:
      height, width: P and Q, in pixels, larger or smaller than before.
      method: "nearest" or "bilinear".

    Returns:
      A layer with params `()`, x `(N, H, W, C)` and y `(N, P, Q, C)` in x's dtype.

    Raises:
      ValueError: height or width is not a positive integer; there is no such method; x is not of images with pixels.
      TypeError: x is not floating-point.
    """
    who = "resize"
    height, width = require_sizes(who, height=height, width=width)
    require_choice(who, "method", method, METHODS)

    def forward(params, x: Float[Array, "N H>0 W>0 C"]):
        return _resized(x, (height, width), _matrices(x.shape)), ResizeCache(shape_keeper(x))

    def backward(params, cache, dy):
        shape = cache.shape.shape[1:]
        return (), _resized(dy, shape[1:3], [matrix.T for matrix in _matrices(shape)])

    def _matrices(shape):
        matrix = _nearest if method == "nearest" else _bilinear
        return [matrix(n, m) for n, m in zip(shape[1:3], (height, width), strict=True)]

    return Layer(no_params, forward, backward, who)


def _resized(x: Array, sizes: tuple[int, ...], matrices: list[np.ndarray]) -> Array:
    y = widen(x)
    growth = {axis: sizes[axis - 1] / x.shape[axis] for axis in (1, 2)}
    for axis in sorted(growth, key=lambda axis: growth[axis]):
        if growth[axis] != 1:
            y = multiply_along(matrices[axis - 1], y, axis)
    return cast(y, x.dtype)


def _nearest(n: int, m: int) -> np.ndarray:
    """A of shape (m, n); in integers, so that what lies between two pixels goes to the second."""
    return np.eye(n)[(2 * np.arange(m) + 1) * n // (2 * m)]


def _bilinear(n: int, m: int) -> np.ndarray:
    """A of shape (m, n); 2 m s' and 2 m A are integers, so that only the division rounds."""
    s = np.clip((2 * np.arange(m) + 1) * n - m, 0, 2 * m * (n - 1))
    return np.maximum(0, 2 * m - np.abs(s[:, None] - 2 * m * np.arange(n))) / (2 * m)


def reference(params: tuple[()], x: Array, height: int, width: int, method: str = "bilinear") -> Array:
    shape = (x.shape[0], height, width, x.shape[3])
    return jax.image.resize(x, shape, method, antialias=False)


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
    ),
    cite="Parker, Kenyon and Troxel, 'Comparison of interpolating methods for image resampling' (1983), IEEE TMI 2",
    covers=("interpolate", "upsample", "downsample", "upsampling"),
)
