"""transposed_convolution: the adjoint of a convolution as a layer, which makes an image larger by its stride.

Forward, for one spatial axis (of several, each index is one for each), with x (N, m, C), W (C, k, F/g), stride s,
dilation d, padding lo and hi, and c running over the channels of f's group:

    y_njf = sum over (i, o) with s i + d o - lo = j, and over c, of x_nic W_cof + b_f     (N, n, F)

Every element of x puts a multiple of the window into y, s apart, and where these overlap they add up. With D the x that
has s - 1 zeros between its elements, D_{s i} = x_i, and V_q = W_{k-1-q} the window turned round, it is the convolution

    y_j = sum_q D_{j + d q - lo'} V_q + b,     lo' = d (k-1) - lo,    hi' = n - 1 + lo - s (m-1)

of stride 1. n is chosen, among those for which a convolution with the same W, stride and padding has m windows:

    n = s (m-1) + d (k-1) + 1 - lo - hi + p           p < s: `output_padding`
    n = s m                                           "same"
    n = s m + max(d (k-1) + 1 - s, 0)                 "valid", lo = 0

Differential, in x, W and b:

    delta J = sum_nif' dy_njf (sum_oc (delta x_nic W_cof + x_nic delta W_cof) + delta b_f),   j = s i + d o - lo

Collect the factor of each perturbation, with dy_njf = 0 for a j outside [0, n):

    dx_nic = sum_o sum_f dy_njf W_cof            where  j = s i + d o - lo                (N, m, C)
    dW_cof = sum_n sum_i x_nic dy_njf            where  j = s i + d o - lo                (C, k, F/g)
    db_f   = sum_n sum_j dy_njf                                                           (F,)

The adjoint of an adjoint: dx is the ordinary convolution of dy with W, of stride s and dilation d, and dW is that of
`convolution` with dy in the place of its x and x in the place of its dy.

Cached: x alone, which dW needs. dx needs W, which is a parameter; db needs nothing.

Numerical care: as in `convolution`: half-precision products and sums accumulate in float32, and b is added before y
is rounded.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus
from bpref.formulas.convolution.correlate import Slide, correlate, correlate_dW, correlate_dx
from bpref.formulas.convolution.kernels import channels_in_groups, require_groups
from bpref.formulas.convolution.windows import Ints, Padding, as_pads, as_windows, per_axis, require_spatial
from bpref.layer import Layer, Reals
from bpref.naive.windows import in_pairs
from bpref.rule import Case, Real, Rule, Size, called_as


class TransposedConvolutionParams(NamedTuple):
    W: Float[Array, "C *window F/g"]
    b: Float[Array, " F"] | None


class TransposedConvolutionCache(NamedTuple):
    x: Float[Array, "N *counts C"]


def transposed_convolution(
    features: int,
    window: tuple[int, ...] = (3, 3),
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    padding: Padding = "same",
    output_padding: int | tuple[int, ...] = 0,
    groups: int = 1,
    bias: bool = True,
    name: str = "",
) -> Layer[TransposedConvolutionParams, Array, Reals, TransposedConvolutionCache]:
    """The transpose of a convolution over 1 to 3 spatial axes, and b.

    Args:
      features: the number of outputs F, a multiple of `groups`.
      window: the window's size along each of 1 to 3 spatial axes.
      stride: how far apart the elements of x lie in y; a number, or one for each axis.
      dilation: how far apart the elements of a window lie in y, likewise.
      padding: that of the convolution this is the transpose of: "same" for n = s m; "valid"; or for each axis the
        pair of elements that y lacks in front and behind; a number for as many on both sides.
      output_padding: with pairs, so many more elements behind, less than the stride.
      groups: g, in which channels and outputs are shared out.
      bias: whether there is a b.
      name: shown in error messages, as in `transposed_convolution 'up'`.

    Returns:
      A layer with params `TransposedConvolutionParams(W: (C, *window, F/g), b: (F,) or None)`, x `(N, *counts, C)`
      and y `(N, *sizes, F)`. W is that of the convolution from y to x, outputs of that one first. It is drawn
      uniformly with variance 1 over the number of elements of x that an element of y sees (LeCun), b is zero.

    Raises:
      ValueError: an argument is out of its range; x has other axes than N, the window's and C, or an empty one;
        groups do not divide C; C is not what W expects; the padding leaves nothing of y.
      TypeError: x is not floating-point, or not of W's dtype.
    """
    who = f"transposed_convolution '{name}'" if name else "transposed_convolution"
    require_flags(who, bias=bias)
    windows = as_windows(who, window, stride, dilation, padding)
    more = per_axis(who, "output_padding", output_padding, windows.rank, least=0)
    if any(p >= s for p, s in zip(more, windows.stride, strict=True)):
        raise ValueError(f"{who}: output_padding is {more}, expected less than the stride {windows.stride}")
    if any(more) and isinstance(windows.padding, str):
        raise ValueError(f"{who}: output_padding is {more}, which needs pairs for the padding, not {padding!r}")
    features, groups = require_groups(who, features, groups)

    def init(key, x):
        require_spatial(who, x, windows.rank)
        C = channels_in_groups(who, x, groups)
        fan_in = C // groups * max(1, math.prod(windows.size) // math.prod(windows.stride))
        W = lecun_uniform(key, (C, *windows.size, features // groups), fan_in, x.dtype)
        return TransposedConvolutionParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def place(x) -> tuple[Ints, Slide]:
        """The spatial sizes of y, and how the windows of the convolution from y to x move over it."""
        require_spatial(who, x, windows.rank)
        counts = x.shape[1:-1]
        steps = list(zip(counts, windows.stride, windows.reach, strict=True))
        if isinstance(windows.padding, str):
            sizes = tuple(s * m + (max(r - s, 0) if padding == "valid" else 0) for m, s, r in steps)
        else:
            ends = [p - lo - hi for p, (lo, hi) in zip(more, windows.padding, strict=True)]
            sizes = tuple(s * (m - 1) + r + end for (m, s, r), end in zip(steps, ends, strict=True))
        if min(sizes) < 1:
            raise ValueError(f"{who}: the padding {windows.padding} leaves y the sizes {sizes}, from x {x.shape}")
        pads = as_pads(windows.padding, sizes, windows.reach, windows.stride)
        return sizes, Slide(windows.stride, windows.dilation, pads, groups)

    def forward(params, x: Float[Array, "N some=*size C>0"]):
        W, b = params
        sizes, slide = place(x)
        return cast(plus(correlate_dx(x, W, sizes, slide), b), x.dtype), TransposedConvolutionCache(x)

    def backward(params, cache, dy):
        W, b = params
        x = cache.x
        _, slide = place(x)
        dW = cast(correlate_dW(dy, x, windows.size, slide), W.dtype)
        dx = cast(correlate(dy, W, slide), x.dtype)
        return TransposedConvolutionParams(dW, bias_cotangent(dy, b)), dx

    return Layer(init, forward, backward, who)


@called_as(transposed_convolution)
def reference(
    params: TransposedConvolutionParams, x: Array, window, stride, dilation, padding, output_padding, groups, **_
) -> Array:
    steps, gaps, more = ((v,) * len(window) if isinstance(v, int) else v for v in (stride, dilation, output_padding))
    if isinstance(padding, str):
        pads = padding.upper()
    else:
        ends = zip(window, gaps, in_pairs(padding, len(window)), more, strict=True)
        pads = [(d * (k - 1) - lo, d * (k - 1) - hi + p) for k, d, (lo, hi), p in ends]
    letters = "DHW"[-len(window) :]
    layouts = (f"N{letters}C", f"O{letters}I", f"N{letters}C")
    of_groups = zip(jnp.split(x, groups, -1), jnp.split(params.W, groups, 0), strict=True)
    parts = [lax.conv_transpose(part, W, steps, pads, gaps, layouts, transpose_kernel=True) for part, W in of_groups]
    y = jnp.concatenate(parts, -1)
    return y if params.b is None else y + jnp.broadcast_to(params.b, y.shape)


RULE = Rule(
    "transposed_convolution",
    transposed_convolution,
    reference,
    cases=(
        Case(
            "2-D, same, stride 2",
            Real("N H W C"),
            {"features": 32, "stride": 2},
            never_empty=("H", "W", "C"),
            timed={"N": 8, "H": 16, "W": 16, "C": 64},
        ),
        Case(
            "1-D, dilated, in groups",
            Real("N T C"),
            {
                "features": 12,
                "window": (3,),
                "stride": 3,
                "dilation": 2,
                "padding": ((1, 2),),
                "output_padding": 1,
                "groups": 2,
                "bias": False,
            },
            never_empty=("T",),
            fixed={"C": 12},
        ),
        Case(
            "2-D, padded by a number",
            Real("N H W C"),
            {"features": Size("F"), "stride": (2, 1), "padding": 1},
            never_empty=("H", "W", "C", "F"),
        ),
        Case(
            "2-D, side by side, more behind",
            Real("N H W C"),
            {
                "features": Size("F"),
                "window": (2, 3),
                "stride": (2, 3),
                "padding": ((0, 0), (0, 0)),
                "output_padding": 1,
            },
            never_empty=("H", "W", "C", "F"),
        ),
        Case(
            "3-D, valid",
            Real("N D H W C"),
            {"features": Size("F"), "window": (1, 2, 3), "stride": (2, 1, 2), "padding": "valid", "bias": False},
            never_empty=("D", "H", "W", "C", "F"),
        ),
    ),
    cite="Zeiler et al., 'Deconvolutional networks' (2010), CVPR; Dumoulin and Visin, 'A guide to convolution "
    "arithmetic' (2016), arXiv:1603.07285, section 4",
    covers=("conv_transpose", "deconvolution", "fractionally strided convolution", "convtranspose2d"),
)
