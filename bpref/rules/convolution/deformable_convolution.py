"""deformable_convolution: windows whose elements look elsewhere, each at a place that another layer found for it.

Forward, for images x of shape (N, H, W, C), windows of K elements in rows, k the element, o_k where it stands in its
window, s the stride, d the dilation and lo the padding in front, along the two axes each:

    q_pk = s p + d o_k - lo + delta_pk                                    p a window, delta the offsets: (N, P, Q, K, 2)
    v_pk = m_pk x(q_pk)                                                   (N, P, Q, K, C)      m the mask: (N, P, Q, K)
    y_p  = sum_k W_k v_pk + b                                             (N, P, Q, F)         W: (F, *window, C)

where x(q) is the bilinear mixture of the four pixels around a point, 0 outside, as in `grid_sample`, and m = 1 where
there is no mask (version 1).

Differential: that of a product, and of x(q) as in `grid_sample`, D x(q) its two slopes:

    delta y_p  = sum_k W_k delta v_pk + (delta W_k) v_pk + delta b
    delta v_pk = delta m_pk x(q_pk) + m_pk ((delta x)(q_pk) + D x(q_pk) delta delta_pk)

The sweep starts with dy. The factors:

    dW_k = sum_np dy_p v_pk^T         db = sum_np dy_p                    (F, *window, C), (F,)
    dv_pk = W_k^T dy_p                                                    (N, P, Q, K, C)
    dm_pk = sum_c dv_pkc x_c(q_pk)                                        (N, P, Q, K)
    ddelta_pk = m_pk sum_c dv_pkc D x_c(q_pk)                             (N, P, Q, K, 2)
    dx   at each of the four pixels of q_pk adds its weight times m_pk dv_pk               (N, H, W, C)

Kinks: y has one where a point is in line with pixels' centres; the slope of the pixels after it is taken.

Cached: x, the offsets and the mask. What the windows see is read again: it is K times as much as x.

Numerical care: half precision is computed in float32, the points too; products accumulate in it, and b is added before
y is rounded.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.checks.shapes import require_shape
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, times, times_transposed
from bpref.formulas.convolution.between_pixels import locate, mixed, pull_images, pull_points, read
from bpref.formulas.convolution.windows import Padding, as_windows, place
from bpref.formulas.long_sums import transposed_times
from bpref.layer import Layer, Reals
from bpref.naive.windows import in_pairs
from bpref.rule import Case, Real, Rule, Size, called_as, specs


class ImagesAndOffsets(NamedTuple):
    """What a deformable convolution reads: where each element of each window is moved to, and how much it counts.

    Attributes:
      images: N of them.
      offsets: for each of the K elements of each of P x Q windows, (down, across) in pixels.
      mask: what each element is multiplied by; 1 where it is left out.
    """

    images: Float[Array, "N H W C>0"]
    offsets: Float[Array, "N P Q K 2"]
    mask: Float[Array, "N P Q K"] | None = None

    by_name = True


class DeformableConvolutionParams(NamedTuple):
    W: Float[Array, "F height width C"]
    b: Float[Array, " F"] | None


def deformable_convolution(
    features: int,
    window: tuple[int, int] = (3, 3),
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    padding: Padding = "same",
    bias: bool = True,
) -> Layer[DeformableConvolutionParams, ImagesAndOffsets, Reals, ImagesAndOffsets]:
    """A convolution whose every window has its own offset, and weight, for each of its elements (versions 1 and 2).

    Args:
      features: the number of outputs F.
      window: the window's height and width.
      stride, dilation: the step from window to window, and from element to element in one; a number, or two.
      padding: "valid", "same", or the zeros around the image, as in `convolution`.
      bias: whether there is a b.

    Returns:
      A layer with params `DeformableConvolutionParams(W: (F, *window, C), b: (F,) or None)`, x
      `ImagesAndOffsets(images: (N, H, W, C), offsets: (N, P, Q, K, 2), mask: (N, P, Q, K) or None)`, for K elements of
      each of P x Q windows, and y `(N, P, Q, F)`. All have a cotangent. W is drawn uniformly with variance 1 over the
      number of its inputs (LeCun), b is zero.

    Raises:
      ValueError: an argument is out of its range; the shapes do not fit; the window reaches over more than the image
        with its padding.
      TypeError: x is no ImagesAndOffsets; an array is not floating-point, or of another dtype than the images.
    """
    who = "deformable_convolution"
    require_flags(who, bias=bias)
    F = require_size(who, "features", features)
    windows = as_windows(who, window, stride, dilation, padding)
    if windows.rank != 2:
        raise ValueError(f"{who}: window is {window!r}, expected its height and width")
    K = math.prod(windows.size)

    def init(key, x):
        C, dtype = x.images.shape[-1], x.images.dtype
        W = lecun_uniform(key, (F, *windows.size, C), K * C, dtype)
        return DeformableConvolutionParams(W, jnp.zeros((F,), dtype) if bias else None)

    def forward(params, x: ImagesAndOffsets):
        W, b = params
        require_counts(x)
        _, _, v = seen(*x)
        y = plus(times_transposed(flat(v), flat_weights(W)), b)
        return cast(y, x.images.dtype), x

    def backward(params, cache, dy):
        W, b = params
        x, offsets, mask = cache
        wide = widen(dy)
        pixels, four, v = seen(*cache)
        dW = transposed_times(wide, flat(v)).reshape(W.shape)
        dv = times(wide, flat_weights(W)).reshape(v.shape)
        dm = None
        if mask is not None:
            dm = cast(jnp.sum(dv * mixed(four, pixels), -1), mask.dtype)
            dv = dv * widen(mask)[..., None]
        doffsets = cast(jnp.stack(pull_points(dv, four, pixels), -1), offsets.dtype)
        dx = cast(pull_images(dv, pixels, x.shape), x.dtype)
        return DeformableConvolutionParams(cast(dW, W.dtype), bias_cotangent(dy, b)), ImagesAndOffsets(dx, doffsets, dm)

    def require_counts(x):
        pads = place(who, windows, x.images)
        of_axes = zip(x.images.shape[1:3], windows.reach, windows.stride, pads, strict=True)
        counts = (len(x.images), *((n + lo + hi - r) // s + 1 for n, r, s, (lo, hi) in of_axes), K)
        because = f"for windows {windows.size} of images {x.images.shape}"
        require_shape(who, "offsets", x.offsets, (*counts, 2), because)

    def seen(images, offsets, mask):
        """Where the windows look, the four pixels there, and v."""
        N, P, Q, _, _ = offsets.shape
        down, across = place(who, windows, images)
        v, u = along(offsets, 0, P, down), along(offsets, 1, Q, across)
        pixels = locate((v, u), jnp.arange(N, dtype=jnp.int32).reshape(N, 1, 1, 1), images.shape, "zeros")
        four = read(images, pixels)
        values = mixed(four, pixels)
        return pixels, four, values if mask is None else widen(mask)[..., None] * values

    def along(offsets, axis, count, pad):
        """One coordinate of q, (N, P, Q, K)."""
        element = np.indices(windows.size)[axis].reshape(-1) * windows.dilation[axis]
        of_windows = np.arange(count) * windows.stride[axis] - pad[0]
        places = np.expand_dims(of_windows, (0, 2 - axis, 3))
        return widen(offsets[..., axis]) + jnp.asarray(places + element, wide_dtype(offsets.dtype))

    def flat(v):
        return v.reshape(*v.shape[:3], K * v.shape[-1])

    def flat_weights(W):
        return widen(W).reshape(F, K * W.shape[-1])

    return Layer(init, forward, backward, who)


@called_as(deformable_convolution)
def reference(
    params: DeformableConvolutionParams, x: ImagesAndOffsets, window, stride, dilation, padding, **_
) -> Array:
    images, offsets, mask = x
    wide = wide_dtype(images.dtype)
    images, offsets = images.astype(wide), offsets.astype(wide)
    steps, spread = ((v, v) if isinstance(v, int) else v for v in (stride, dilation))
    if padding in ("same", "valid"):
        sizes = zip(images.shape[1:3], window, steps, spread, strict=True)
        lacking = [max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) for n, k, s, d in sizes]
        front = [lack // 2 if padding == "same" else 0 for lack in lacking]
    else:
        front = [lo for lo, _ in in_pairs(padding, 2)]

    def of_channel(image, down, across):
        return map_coordinates(image, [down, across], order=1, mode="constant")

    read_at = jax.vmap(jax.vmap(of_channel, in_axes=(-1, None, None), out_axes=-1))
    y = jnp.zeros((*offsets.shape[:3], len(params.W)), wide)
    for k, (i, j) in enumerate(np.ndindex(*window)):
        down = jnp.arange(offsets.shape[1]) * steps[0] + spread[0] * i - front[0]
        across = jnp.arange(offsets.shape[2]) * steps[1] + spread[1] * j - front[1]
        down = offsets[..., k, 0] + down.astype(wide)[None, :, None]
        across = offsets[..., k, 1] + across.astype(wide)[None, None, :]
        values = read_at(images, down, across)
        if mask is not None:
            values = values * mask[..., k].astype(wide)[..., None]
        y = y + jnp.einsum("npqc,fc->npqf", values, params.W[:, i, j].astype(wide))
    y = y if params.b is None else y + jnp.broadcast_to(params.b.astype(wide), y.shape)
    return y.astype(x.images.dtype)


RULE = Rule(
    "deformable_convolution",
    deformable_convolution,
    reference,
    cases=(
        Case(
            "a mask",
            specs(ImagesAndOffsets, Real("N H W C"), Real("N H W K two", -1.5, 1.5), Real("N H W K", 0.0, 1.0)),
            {"features": Size("F"), "window": (2, 3)},
            never_empty=("C", "F"),
            fixed={"N": 2, "H": 4, "W": 5, "K": 6, "two": 2},
            timed={"N": 2, "H": 32, "W": 32, "C": 32, "F": 32, "K": 6, "two": 2},
        ),
        Case(
            "no mask, no b, stride and dilation",
            specs(ImagesAndOffsets, Real("N H W C"), Real("N P Q K two", -1.5, 1.5)),
            {
                "features": 3,
                "window": (2, 2),
                "stride": (2, 1),
                "dilation": (1, 2),
                "padding": ((1, 0), (0, 2)),
                "bias": False,
            },
            never_empty=("C",),
            fixed={"H": 4, "W": 5, "P": 2, "Q": 5, "K": 4, "two": 2},
        ),
    ),
    cite="Dai et al., 'Deformable convolutional networks', arXiv:1703.06211, equations 2 to 4; the mask: Zhu et al., "
    "arXiv:1811.11168, equation 1",
    covers=("deform_conv2d", "dcn", "modulated deformable convolution"),
)
