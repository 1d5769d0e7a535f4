"""grid_sample: images or volumes read at given points, a mixture of the pixels around each.

Forward, for images x of shape (N, H, W, C) and points g of shape (N, P, Q, 2), g = (across, down) from -1 to 1. In
pixels, whose centres are at 0, 1, ..., W - 1 across and likewise down,

    u = (g_0 + 1) (W - 1) / 2         `align_corners`: -1 and 1 are the centres of the corner pixels
    u = ((g_0 + 1) W - 1) / 2         otherwise: they are the outer edges of the image

and v from g_1 and H. Along each axis a point has some pixels k, and their weights w_k(u), in a = u - floor(u):

    bilinear:  k = floor(u), floor(u) + 1              w = 1 - a, a
    nearest:   k = u rounded, halves to the even       w = 1
    bicubic:   k = floor(u) - 1, ..., floor(u) + 2     w = Keys's cubic of u - k, as in `resize`

    y = sum_lk w_l(v) w_k(u) x_lk                                                      y: (N, P, Q, C)

Pixels outside the image are 0 (`padding="zeros"`), or the nearest one inside ("border"), or the image goes on as its
own mirror image ("reflection"), at its edges, or at the corner pixels' centres where these are -1 and 1. A volume
(N, D, H, W, C) has points (N, O, P, Q, 3) of a third coordinate, in the depth, and all is the same along that axis.

Differential, with k and l constant, w' the slopes of the weights (-1 and 1, or 0, or the cubic's) and c the channel:

    delta y_c = sum_lk w_l w_k delta x_lkc + sum_lk w_l w'_k x_lkc delta u + sum_lk w'_l w_k x_lkc delta v

The factors in sum dy_c delta y_c, summed over all channels of a point:

    dx   at each of the pixels adds w_l w_k dy; outside, it is dropped                 (N, H, W, C)
    du   = sum_c dy_c sum_lk w_l w'_k x_lkc,    dv = sum_c dy_c sum_lk w'_l w_k x_lkc
    dg   = (du (W - 1) / 2, dv (H - 1) / 2), or with W and H for W - 1 and H - 1       (N, P, Q, 2)

Kinks: the bilinear y has one where u or v is a whole number; the slope of the pixels after it is taken, as floor does.
PyTorch agrees but at the outermost pixels' very centres with "border" and "reflection", where it takes 0. At "border"
the bilinear slope outside is 0. Of "nearest" dg is 0.

Cached: x and g. The pixels are read again, which is cheaper than to keep four times y,
unless the points are fewer than about a quarter of the pixels.

Numerical care: half precision is computed in float32, the points too: g as a bfloat16 has 8 bits, and tells
apart no more than some hundred positions. A pixel that is outside is left out, not multiplied by zero: it may be NaN.
"""

from functools import reduce
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_flags
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.convolution.between_pixels import locate, mixed, pull_images, pull_points, read
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule

PADDINGS = ("zeros", "border", "reflection")
METHODS = ("bilinear", "nearest", "bicubic")


class ImagesAndGrid(NamedTuple):
    images: Float[Array, "N H>0 W>0 C"] | Float[Array, "N D>0 H>0 W>0 C"]
    grid: Float[Array, "N P Q 2"] | Float[Array, "N O P Q 3"]


def grid_sample(
    align_corners: bool = False, padding: str = "zeros", method: str = "bilinear"
) -> Layer[tuple[()], tuple[Array, Array], Reals, ImagesAndGrid]:
    """Images or volumes read at points between their pixels.

    Args:
      align_corners: whether -1 and 1 are the centres of the corner pixels, rather than the edges of the image.
      padding: what is outside the image, "zeros", "border" or "reflection".
      method: how the pixels around a point are mixed, "bilinear" (of a volume's eight: trilinear), "nearest" or
        "bicubic".

    Returns:
      A layer with params `()`, x a pair `(images, grid)`, `(N, H, W, C)` and `(N, P, Q, 2)`, and y `(N, P, Q, C)`; or
      of volumes `(N, D, H, W, C)`, `(N, O, P, Q, 3)` and `(N, O, P, Q, C)`. The grid's last axis is (across, down), or
      (across, down, deep), -1 to 1 within the image. Both have a cotangent.

    Raises:
      ValueError: there is no such padding or method; the shapes do not fit, or there are no pixels.
      TypeError: x is no pair; either is not floating-point, or they have two dtypes.
    """
    who = "grid_sample"
    require_flags(who, align_corners=align_corners)
    require_choice(who, "padding", padding, PADDINGS)
    require_choice(who, "method", method, METHODS)
    beyond = {"reflection": "mirror" if align_corners else "reflect"}.get(padding, padding)

    def forward(params, x: ImagesAndGrid):
        images, grid = x
        if grid.ndim != images.ndim:
            raise ValueError(
                f"{who}: grid has shape {grid.shape}, expected (N, P, Q, 2) for images (N, H, W, C) or (N, O, P, Q, 3) "
                f"for volumes (N, D, H, W, C), and images has shape {images.shape}"
            )
        pixels = of_points(grid, images.shape)
        return cast(mixed(read(images, pixels), pixels), images.dtype), x

    def backward(params, cache, dy):
        images, grid = cache
        pixels = of_points(grid, images.shape)
        wide = widen(dy)
        dimages = cast(pull_images(wide, pixels, images.shape), images.dtype)
        if method == "nearest":
            return (), (dimages, jnp.zeros_like(grid))
        dpoint = pull_points(wide, read(images, pixels), pixels)
        per_unit = [d * (n - align_corners) / 2 for d, n in zip(dpoint, images.shape[1:-1], strict=True)]
        return (), (dimages, cast(jnp.stack(per_unit[::-1], -1), grid.dtype))

    def of_points(grid, shape):
        N, *sizes, _ = shape
        n = jnp.arange(N, dtype=jnp.int32).reshape(N, *(1,) * len(sizes))
        coordinates = jnp.unstack(widen(grid), axis=-1)[::-1]
        points = [in_pixels(g, size) for g, size in zip(coordinates, sizes, strict=True)]
        return locate(points, n, shape, beyond, method)

    def in_pixels(g, n):
        return (g + 1) * (n - 1) / 2 if align_corners else ((g + 1) * n - 1) / 2

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()],
    x: tuple[Array, Array],
    align_corners: bool = False,
    padding: str = "zeros",
    method: str = "bilinear",
) -> Array:
    images, grid = x
    wide = wide_dtype(images.dtype)
    points = [
        (g + 1) * (n - 1) / 2 if align_corners else ((g + 1) * n - 1) / 2
        for g, n in zip(jnp.unstack(grid.astype(wide), axis=-1)[::-1], images.shape[1:-1], strict=True)
    ]
    reflected = "mirror" if align_corners else "reflect"
    mode = {"zeros": "constant", "border": "nearest", "reflection": reflected}[padding]

    def of_channel(image, *points):
        if method == "bilinear":
            return map_coordinates(image, points, order=1, mode=mode)
        if method == "nearest":
            return map_coordinates(image, [jnp.round(u) for u in points], order=0, mode=mode)
        y = jnp.zeros(points[0].shape, wide)
        for steps in product(range(-1, 3), repeat=len(points)):
            near = [jnp.floor(u) + step for u, step in zip(points, steps, strict=True)]
            weights = [_keys(u - k) for u, k in zip(points, near, strict=True)]
            y += reduce(jnp.multiply, weights) * map_coordinates(image, near, order=0, mode=mode)
        return y

    in_axes = (-1, *(None,) * len(points))
    of_image = jax.vmap(of_channel, in_axes=in_axes, out_axes=-1)
    return jax.vmap(of_image)(images.astype(wide), *points).astype(images.dtype)


def _keys(d: Array) -> Array:
    d = abs(d)
    return jnp.where(d <= 1, 1.25 * d**3 - 2.25 * d**2 + 1, -0.75 * (d**3 - 5 * d**2 + 8 * d - 4))


_X = (Real("N H W C"), Real("N P Q two", -1.3, 1.3))
_SIZES = {"H": 4, "W": 5, "P": 6, "Q": 6, "two": 2}

RULE = Rule(
    "grid_sample",
    grid_sample,
    reference,
    cases=(
        Case(
            "zeros",
            _X,
            never_empty=("H", "W"),
            fixed={"two": 2},
            timed={"N": 4, "H": 48, "W": 48, "C": 32, "P": 48, "Q": 48, "two": 2},
        ),
        Case("zeros, corners aligned", _X, {"align_corners": True}, fixed=_SIZES),
        Case("border", _X, {"padding": "border"}, fixed=_SIZES),
        Case("bicubic, reflection", _X, {"padding": "reflection", "method": "bicubic"}, fixed=_SIZES),
        Case(
            "volumes, reflection, corners aligned",
            (Real("N D H W C"), Real("N O P Q three", -2.3, 2.3)),
            {"align_corners": True, "padding": "reflection"},
            fixed={"D": 3, "H": 3, "W": 4, "O": 3, "P": 3, "Q": 3, "three": 3},
        ),
    ),
    cite="Jaderberg et al., 'Spatial transformer networks', arXiv:1506.02025, equations 5 to 7; "
    "bicubic: Keys, 'Cubic convolution interpolation for digital image processing' (1981), IEEE TASSP 29",
    covers=("spatial transformer", "bilinear sampling", "trilinear sampling"),
)
