"""roi_align: boxes of images as small images of one size, read between the pixels (RoIAlign).

Forward, for features x of shape (N, H, W, C), whose pixels' centres are at 0, 1, ..., and R boxes (x1, y1, x2, y2) in
an image's own units, of which one is z pixels of x. Box r is of the image n_r. With o = 1/2 (`aligned`) or 0, and P x Q
cells, each read at S x S points, q and p the cell and s and t the point in it:

    left = z x1 - o,   w = z (x2 - x1)                                    w at least 1 where not aligned
    f_qs = (q + (s + 1/2) / S) / Q                                        known when the layer is made
    u_rqs = left + f_qs w                                                 across; down v_rpt of y1, y2, P likewise
    y_rpq = 1/S^2 sum_st x(u_rqs, v_rpt)                                  y: (R, P, Q, C)

where x(u, v) is the bilinear mixture of the four pixels around a point of the image n_r: beyond the last centres by no
more than one pixel it is that of the nearest points inside, and further out 0. The points of a box that is turned
around go backwards.

Differential, that of x(u, v) as in `grid_sample`; the points move with the box:

    delta u_rqs = z ((1 - f_qs) delta x1 + f_qs delta x2)                 z delta x1 where w was made 1

The sweep starts with dy. The factors, with du_rqst and dv_rqst those of the points, summed over the channels:

    dx   at each of the four pixels of a point adds its weight times dy_rpq / S^2                (N, H, W, C)
    dx1 = z sum (1 - f_qs) du_rpqst,   dx2 = z sum f_qs du_rpqst          dx2 = 0 where w was made 1
    dy1, dy2 likewise of f_pt and dv                                      (R, 4)

Detectors pass nothing to their boxes, as torchvision does; here they have their cotangent, of which `None` is made
by leaving it. A box of no image there is, such as -1, has zeros and gives no cotangent: R can be filled up.

Kinks: y has one where a point is in line with pixels' centres; the slope of the pixels after it is taken, as floor
does, and 0 at the last centres and beyond. Where w is 1 and not aligned, the slope is that of a w that was made 1. y
itself leaps where a point comes to lie more than one pixel outside: of that the cotangent says nothing.

Cached: x, the boxes and n. The pixels are read again: they are 4 S^2 times as many numbers as y has.

Numerical care: half precision is computed in float32, the points too; a corner in bfloat16 has 8 bits, and tells apart
no more than some hundred positions.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_flags, require_positive, require_sizes
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.convolution.between_pixels import locate, mixed, pull_images, pull_points, read
from bpref.formulas.indexing.indices import placed
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule


class FeaturesAndBoxes(NamedTuple):
    features: Float[Array, "N>0 H>0 W>0 C"]
    boxes: Float[Array, "R 4"]
    images: Int[Array, " R"]


def roi_align(
    height: int, width: int, scale: float = 1.0, sampling: int = 2, aligned: bool = True
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, FeaturesAndBoxes]:
    """Boxes of images, each as an image of one size.

    Args:
      height, width: P and Q, the size of what a box becomes.
      scale: z, the pixels of the features that are one unit of the boxes: 1/16 after a network's stride of 16.
      sampling: S, at how many points a cell is read each way.
      aligned: whether a box's corner (0, 0) is that of the first pixel, half a pixel before its centre.

    Returns:
      A layer with params `()`, x `(features, boxes, images)`, `(N, H, W, C)`, `(R, 4)` and integers `(R,)`, and y
      `(R, height, width, C)`. dx is `(dfeatures, dboxes, None)`. A box of an image that is not there has zeros.

    Raises:
      ValueError: a size is no positive integer, or scale no positive number; the shapes do not fit, or there are no
        pixels.
      TypeError: x is no triple; features or boxes are not floating-point, or have two dtypes; images are not integers.
    """
    who = "roi_align"
    P, Q, S = require_sizes(who, height=height, width=width, sampling=sampling)
    z = require_positive(who, "scale", scale)
    require_flags(who, aligned=aligned)
    offset = 0.5 if aligned else 0.0

    def forward(params, x: FeaturesAndBoxes):
        features, boxes, images = x
        pixels = of_points(boxes, images, features)
        y = jnp.sum(mixed(read(features, pixels), pixels), (3, 4)) / S**2
        return cast(y, features.dtype), x

    def backward(params, cache, dy):
        x, boxes, images = cache
        pixels = of_points(boxes, images, x)
        shares = jnp.broadcast_to((widen(dy) / S**2)[:, :, :, None, None], (*pixels.rows[0].shape, dy.shape[-1]))
        dv, du = pull_points(shares, read(x, pixels), pixels)
        dx = pull_images(shares, pixels, x.shape)
        ends = ends_of(jnp.sum(du, (1, 3)), Q, boxes, 0), ends_of(jnp.sum(dv, (2, 4)), P, boxes, 1)
        dboxes = jnp.stack([d for pair in zip(*ends, strict=True) for d in pair], -1)
        return (), (cast(dx, x.dtype), cast(dboxes, boxes.dtype), None)

    def of_points(boxes, images, features):
        """The pixels of all points, (R, P, Q, S, S), the point's place down before that across."""
        shape = len(boxes), P, Q, S, S
        u = jnp.broadcast_to(along(boxes, Q, 0)[:, None, :, None, :], shape)
        v = jnp.broadcast_to(along(boxes, P, 1)[:, :, None, :, None], shape)
        n = placed(images, len(features), wrap=False).astype(jnp.int32).reshape(len(boxes), 1, 1, 1, 1)
        return locate((v, u), n, features.shape, "near")

    def extent(boxes, axis):
        """Where a box begins, in pixels, and how far it reaches."""
        begin, end = z * widen(boxes[:, axis]), z * widen(boxes[:, axis + 2])
        return begin - offset, end - begin

    def along(boxes, cells, axis):
        begin, reach = (v[:, None, None] for v in extent(boxes, axis))
        reach = reach if aligned else jnp.maximum(reach, 1)
        return begin + jnp.asarray(shares_of(cells), reach.dtype)[None] * reach

    def ends_of(d, cells, boxes, axis):
        """The cotangents of a box's two ends, of those of its points along one axis."""
        f = jnp.asarray(shares_of(cells), d.dtype)[None]
        d_end = jnp.sum(f * d, (1, 2))
        if not aligned:
            d_end = jnp.where(extent(boxes, axis)[1] > 1, d_end, 0)
        return z * (jnp.sum(d, (1, 2)) - d_end), z * d_end

    def shares_of(cells):
        """f, (cells, S)."""
        return (np.arange(cells)[:, None] + (np.arange(S)[None] + 0.5) / S) / cells

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()],
    x: tuple[Array, Array, Array],
    height: int,
    width: int,
    scale: float = 1.0,
    sampling: int = 2,
    aligned: bool = True,
) -> Array:
    """Two products with matrices of weights, across and down: (R, P, H) and (R, Q, W)."""
    features, boxes, images = x
    wide = wide_dtype(features.dtype)
    features, boxes = features.astype(wide), boxes.astype(wide)

    def weights(first, last, cells, n):
        begin = first * scale - (0.5 if aligned else 0.0)
        reach = last * scale - first * scale
        reach = reach if aligned else jnp.where(reach > 1, reach, 1)
        u = jnp.stack([begin + reach * ((k + 0.5) / (cells * sampling)) for k in range(cells * sampling)], 1)
        seen = ((u >= -1) & (u <= n)).astype(wide)
        u = jnp.where(u < 0, 0, jnp.where(u >= n - 1, n - 1, u))
        before = jnp.floor(u)
        after = u - before
        of_pixels = [jnp.where(before == i, 1 - after, jnp.where(before == i - 1, after, 0)) for i in range(n)]
        of_points = jnp.stack([w * seen for w in of_pixels], -1)
        return of_points.reshape(len(boxes), cells, sampling, n).mean(2)

    x1, y1, x2, y2 = jnp.unstack(boxes, axis=1)
    down = weights(y1, y2, height, features.shape[1])
    across = weights(x1, x2, width, features.shape[2])
    of_image = jnp.stack([images == n for n in range(len(features))], 1)
    chosen = jnp.einsum("rn,nhwc->rhwc", of_image.astype(wide), features)
    y = jnp.einsum("rph,rqw,rhwc->rpqc", down, across, chosen)
    return y.astype(x[0].dtype)


_SIZES = {"N": 2, "H": 4, "W": 5, "four": 4}

RULE = Rule(
    "roi_align",
    roi_align,
    reference,
    cases=(
        Case(
            "aligned",
            (Real("N H W C"), Real("R four", -1.0, 9.0), Integer("R", 0, "N")),
            {"height": 2, "width": 4, "scale": 0.5},
            fixed=_SIZES | {"R": 8},
            timed={"N": 2, "H": 50, "W": 50, "C": 64, "R": 256, "four": 4},
        ),
        Case(
            "not aligned, some boxes of no image",
            (Real("N H W C"), Real("R four", -1.0, 5.0), Integer("R", -1, 3, (1, 2, -1))),
            {"height": 4, "width": 2, "sampling": 1, "aligned": False},
            fixed=_SIZES,
        ),
    ),
    cite="He et al., 'Mask R-CNN', arXiv:1703.06870, section 3; aligned: torchvision.ops.roi_align",
    covers=("roialign", "region of interest align", "torchvision.ops.roi_align"),
)
