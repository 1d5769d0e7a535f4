"""grid_sample: images read at given points, a bilinear mixture of the four pixels around each.

Forward, for images x of shape (N, H, W, C) and points g of shape (N, P, Q, 2), g = (across, down) from -1 to 1. In
pixels, whose centres are at 0, 1, ..., W - 1 across and likewise down,

    u = (g_0 + 1) (W - 1) / 2         `align_corners`: -1 and 1 are the centres of the corner pixels
    u = ((g_0 + 1) W - 1) / 2         otherwise: they are the outer edges of the image

and v from g_1 and H. With the pixel before, i = floor(u), j = floor(v), and the fractions a = u - i, b = v - j:

    y = (1 - b) ((1 - a) x_ji + a x_j,i+1) + b ((1 - a) x_j+1,i + a x_j+1,i+1)         y: (N, P, Q, C)

Pixels outside the image are 0 (`padding="zeros"`), or the nearest one inside ("border").

Differential, with i and j constant, w the four weights and c the channel:

    delta y_c = sum over the four of w delta x_c
                + ((1 - b) (x_j,i+1,c - x_jic) + b (x_j+1,i+1,c - x_j+1,i,c)) delta u
                + ((1 - a) (x_j+1,i,c - x_jic) + a (x_j+1,i+1,c - x_j,i+1,c)) delta v

The factors in sum dy_c delta y_c, summed over all channels of a point:

    dx   at each of the four pixels adds w dy; outside, it is dropped    (N, H, W, C)
    du   = sum_c dy_c ((1 - b) (x_j,i+1,c - x_jic) + b (x_j+1,i+1,c - x_j+1,i,c))
    dv   = sum_c dy_c ((1 - a) (x_j+1,i,c - x_jic) + a (x_j+1,i+1,c - x_j,i+1,c))
    dg   = (du (W - 1) / 2, dv (H - 1) / 2), or with W and H for W - 1 and H - 1       (N, P, Q, 2)

Kinks: y has one where u or v is a whole number; the slope of the pixels after it is taken, as floor does. PyTorch
agrees but for "border" at the first pixel's very centre, where it takes 0. At "border" the slope outside is 0.

Cached: x and g. The four pixels are read again, which is cheaper than to keep four times y,
unless the points are fewer than about a quarter of the pixels.

Numerical care: half precision is computed in float32, the points too: g as a bfloat16 has 8 bits, and tells
apart no more than some hundred positions. A pixel that is outside is left out, not multiplied by zero: it may be NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float

from bpref.checks.hyperparameters import require_choice, require_flags
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.convolution.bilinear import locate, mixed, pull_images, pull_points, read
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule

PADDINGS = ("zeros", "border")


class ImagesAndGrid(NamedTuple):
    images: Float[Array, "N H>0 W>0 C"]
    grid: Float[Array, "N P Q 2"]


def grid_sample(
    align_corners: bool = False, padding: str = "zeros"
) -> Layer[tuple[()], tuple[Array, Array], Reals, ImagesAndGrid]:
    """Images read at points between their pixels.

    Args:
      align_corners: whether -1 and 1 are the centres of the corner pixels, rather than the edges of the image.
      padding: what is outside the image, "zeros" or "border".

    Returns:
      A layer with params `()`, x a pair `(images, grid)`, `(N, H, W, C)` and `(N, P, Q, 2)`, and y `(N, P, Q, C)`.
      The grid's last axis is (across, down), -1 to 1 within the image. Both have a cotangent.

    Raises:
      ValueError: there is no such padding; the shapes do not fit, or there are no pixels.
      TypeError: x is no pair; either is not floating-point, or they have two dtypes.
    """
    who = "grid_sample"
    require_flags(who, align_corners=align_corners)
    require_choice(who, "padding", padding, PADDINGS)

    def forward(params, x: ImagesAndGrid):
        images, grid = x
        pixels = of_points(grid, images.shape)
        return cast(mixed(read(images, pixels), pixels), images.dtype), x

    def backward(params, cache, dy):
        images, grid = cache
        _, H, W, _ = images.shape
        pixels = of_points(grid, images.shape)
        wide = widen(dy)
        dimages = pull_images(wide, pixels, images.shape)
        dpoint = pull_points(wide, read(images, pixels), pixels)
        per_unit = [(n - align_corners) / 2 for n in (W, H)]
        dgrid = jnp.stack([d * scale for d, scale in zip(dpoint, per_unit, strict=True)], -1)
        return (), (cast(dimages, images.dtype), cast(dgrid, grid.dtype))

    def of_points(grid, shape):
        N, H, W, _ = shape
        u, v = (in_pixels(widen(grid[..., k]), n) for k, n in enumerate((W, H)))
        return locate(u, v, jnp.arange(N, dtype=jnp.int32).reshape(N, 1, 1), shape, padding)

    def in_pixels(g, n):
        return (g + 1) * (n - 1) / 2 if align_corners else ((g + 1) * n - 1) / 2

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], align_corners: bool = False, padding: str = "zeros") -> Array:
    images, grid = x
    wide = wide_dtype(images.dtype)
    sizes = images.shape[2], images.shape[1]
    across, down = (
        (g + 1) * (n - 1) / 2 if align_corners else ((g + 1) * n - 1) / 2
        for g, n in zip(jnp.unstack(grid.astype(wide), axis=-1), sizes, strict=True)
    )
    mode = {"zeros": "constant", "border": "nearest"}[padding]

    def of_channel(image, down, across):
        return map_coordinates(image, [down, across], order=1, mode=mode)

    of_image = jax.vmap(of_channel, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(of_image)(images.astype(wide), down, across).astype(images.dtype)


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
    ),
    cite="Jaderberg et al., 'Spatial transformer networks', arXiv:1506.02025, equations 5 to 7",
    covers=("spatial transformer", "bilinear sampling"),
)
