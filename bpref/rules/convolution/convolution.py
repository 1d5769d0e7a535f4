"""convolution: every window of x times the same weights, over 1, 2 or 3 spatial axes, channels last.

Forward, for one spatial axis (of several, i, o, j, s, d, lo, k, m and n are one number for each), with x (N, n, C),
W (F, k, C/g), stride s, dilation d, `lo` elements of padding in front and `hi` behind. The g groups share out the
outputs f and the channels c, and c runs over those of f's group:

    y_nif = sum_o sum_c x_n,j,c W_foc + b_f     where  j = s i + d o - lo     (N, m, F)
    m = floor((n + lo + hi - d (k-1) - 1) / s) + 1

An element of x outside [0, n) is 0. g = 1 is the dense convolution, g = C the depthwise one. The window is not turned
round: this is what every library calls a convolution, and mathematics a correlation.

Differential, in x, W and b:

    delta J = sum_nif dy_nif (sum_oc (delta x_njc W_foc + x_njc delta W_foc) + delta b_f),   j = s i + d o - lo

Collect the factor of each perturbation:

    dx_njc = sum over (i, o) with s i + d o - lo = j, and over f, of dy_nif W_foc     (N, n, C)
    dW_foc = sum_n sum_i dy_nif x_n,s i + d o - lo,c                                  (F, k, C/g)
    db_f   = sum_n sum_i dy_nif                                                       (F,)

Both of the first are convolutions again.

- dx: for o fixed, i is (j + lo - d o) / s where that is whole. Put s - 1 zeros between the elements of dy, so that
  D_{s i} = dy_i, turn the window round, V_q = W_{k-1-q}, and swap its inputs with its outputs in each group:
  dx_j = sum_q D_{j + d q - lo'} V_q, a convolution of D with V, of stride 1, dilation d and with
  lo' = d (k-1) - lo in front; behind, hi' = n - 1 + lo - s (m-1) makes it n long.
- dW: i is summed over, so dy is the window, and its elements stand s apart; o is where it stands, in steps of d:
  dW_o = sum_i x_{d o + s i - lo} dy_i, a convolution of x with dy, of stride d and dilation s, with lo in front and
  hi' = d (k-1) + s (m-1) + 1 - n - lo behind. It sums over the examples as the forward does over the channels, and
  keeps the channels as the forward keeps the examples: batch and channels swap their roles.

A negative lo' or hi' cuts elements off: those that no window saw, when the stride leaves some over.

Cached: x alone, which dW needs. dx needs W, which is a parameter; db needs nothing.

Numerical care: products of half-precision numbers accumulate in float32, and so does the sum of db; b is added before
y is rounded. Windows of one element and depthwise convolutions take a way of their own, see
`bpref.formulas.convolution.correlate`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast
from bpref.formulas.affine import bias_cotangent, lecun_uniform, plus, total, unmade
from bpref.formulas.convolution.correlate import Slide, correlate, correlate_dW, correlate_dx, seen
from bpref.formulas.convolution.kernels import channels_in_groups, require_groups
from bpref.formulas.convolution.windows import Padding, Windows, as_windows, place, require_spatial
from bpref.layer import Layer, Reals
from bpref.naive.windows import in_pairs
from bpref.rule import Case, Real, Rule, Size, called_as


class ConvolutionParams(NamedTuple):
    W: Float[Array, "F *window C/g"]
    b: Float[Array, " F"] | None


class ConvolutionCache(NamedTuple):
    x: Float[Array, "N *sizes C"]


def convolution(
    features: int,
    window: tuple[int, ...] = (3, 3),
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    padding: Padding = "same",
    groups: int = 1,
    bias: bool = True,
    name: str = "",
) -> Layer[ConvolutionParams, Array, Reals, ConvolutionCache]:
    """y = x * W + b, a convolution over as many spatial axes as the window has entries.

    Args:
      features: the number of outputs F, a multiple of `groups`.
      window: the window's size along each of 1 to 3 spatial axes.
      stride, dilation: the step from window to window, and from element to element in one; a number, or one for
        each axis.
      padding: "valid" for none, "same" for ceil(n / stride) windows along each axis with zeros as equally as may be
        on both sides (one more behind), or for each axis the pair of zeros in front and behind; a number for as many on
        both sides. Other borders are those of `pad` before it, as in
        `serial(pad(((0, 0), (1, 1), (1, 1), (0, 0)), "circular"), convolution(64, padding="valid"))`.
      groups: g, in which channels and outputs are shared out; C of them make a depthwise convolution.
      bias: whether there is a b.
      name: shown in error messages, as in `convolution 'stem'`.

    Returns:
      A layer with params `ConvolutionParams(W: (F, *window, C/g), b: (F,) or None)`, x `(N, *sizes, C)` and
      y `(N, *counts, F)`: `N T C`, `N H W C` or `N D H W C`. W is drawn uniformly with variance 1 over the number of
      its inputs (LeCun), b is zero.

    Raises:
      ValueError: an argument is out of its range; x has other axes than N, the window's and C; groups do not
        divide C; C is not what W expects; W or b has another shape; the window reaches over more than x with
        its padding.
      TypeError: x is not floating-point, or not of W's dtype; b is not of W's dtype.
    """
    who = f"convolution '{name}'" if name else "convolution"
    require_flags(who, bias=bias)
    windows = as_windows(who, window, stride, dilation, padding)
    return convolution_layer(who, features, windows, groups, bias)


def convolution_layer(who: str, features: int, windows: Windows, groups: int, bias: bool) -> Layer:
    """The layer of a convolution with these windows, which error messages call `who`."""
    features, groups = require_groups(who, features, groups)

    def init(key, x):
        require_spatial(who, x, windows.rank)
        of_group = channels_in_groups(who, x, groups) // groups
        W = lecun_uniform(key, (features, *windows.size, of_group), math.prod(windows.size) * of_group, x.dtype)
        return ConvolutionParams(W, jnp.zeros((features,), x.dtype) if bias else None)

    def slide_over(x):
        return Slide(windows.stride, windows.dilation, place(who, windows, x), groups)

    def forward(params, x: Float[Array, "N *size C>0"]):
        W, b = params
        slide = slide_over(x)
        return cast(plus(correlate(x, W, slide), b), x.dtype), ConvolutionCache(x)

    def backward(params, cache, dy):
        W, b = params
        x = cache.x
        slide = slide_over(x)
        dW = cast(correlate_dW(x, dy, windows.size, slide), W.dtype)
        dx = cast(correlate_dx(dy, W, x.shape[1:-1], slide), x.dtype)
        return ConvolutionParams(dW, bias_cotangent(dy, b)), dx

    def opened(params, cache, dy):
        """Of each group: dW is a product too, with what the windows see."""
        W, b = params
        slide = slide_over(cache.x)
        A = seen(cache.x, windows.size, slide, dy.shape[1:-1])
        dW = unmade(dy.reshape(*A.shape[:-1], features // groups), A)
        dx = cast(correlate_dx(dy, W, cache.x.shape[1:-1], slide), dy.dtype)
        return ConvolutionParams(dW, total(dy, b)), dx

    return Layer(init, forward, backward, who, opened=opened)


@called_as(convolution)
def reference(params: ConvolutionParams, x: Array, window, stride, dilation, padding, groups, **_) -> Array:
    steps = [(v,) * len(window) if isinstance(v, int) else v for v in (stride, dilation)]
    letters = "DHW"[-len(window) :]
    layouts = (f"N{letters}C", f"O{letters}I", f"N{letters}C")
    pads = padding.upper() if isinstance(padding, str) else in_pairs(padding, len(window))
    y = lax.conv_general_dilated(x, params.W, steps[0], pads, None, steps[1], layouts, groups)
    return y if params.b is None else y + jnp.broadcast_to(params.b, y.shape)


_TIMED = {"N": 8, "H": 32, "W": 32, "C": 32, "F": 64}

RULE = Rule(
    "convolution",
    convolution,
    reference,
    cases=(
        Case(
            "2-D, same, stride 2",
            Real("N H W C"),
            {"features": Size("F"), "stride": 2},
            never_empty=("H", "W", "C", "F"),
            timed=_TIMED,
        ),
        Case(
            "1-D, dilated, in groups",
            Real("N T C"),
            {"features": 12, "window": (3,), "stride": 3, "dilation": 2, "padding": ((1, 3),), "groups": 2},
            fixed={"C": 12},
            least={"T": 1},
        ),
        Case(
            "2-D, depthwise, elements left over",
            Real("N H W C"),
            {"features": 8, "window": (3, 2), "stride": (2, 3), "padding": "valid", "groups": 8, "bias": False},
            fixed={"C": 8},
            least={"H": 3, "W": 2},
        ),
        Case(
            "3-D",
            Real("N D H W C"),
            {"features": Size("F"), "window": (1, 2, 2), "padding": ((0, 0), (1, 0), (2, 1)), "bias": False},
            never_empty=("D", "C", "F"),
            least={"H": 1},
        ),
        Case(
            "2-D, patches, elements left over",
            Real("N H W C"),
            {"features": Size("F"), "window": (2, 3), "stride": (2, 3), "padding": "valid"},
            never_empty=("C", "F"),
            least={"H": 2, "W": 3},
        ),
        Case(
            "2-D, padded by a number",
            Real("N H W C"),
            {"features": Size("F"), "window": (3, 4), "padding": 2},
            never_empty=("C", "F"),
        ),
    ),
    cite="LeCun et al., 'Gradient-based learning applied to document recognition' (1998), section II; strides and "
    "dilation: Dumoulin and Visin, 'A guide to convolution arithmetic' (2016), arXiv:1603.07285",
    covers=("conv1d", "conv2d", "conv3d", "depthwise convolution", "dilated convolution", "grouped convolution"),
)
