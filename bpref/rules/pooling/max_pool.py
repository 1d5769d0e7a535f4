"""max_pool: the largest element of every window, over 1, 2 or 3 spatial axes, channels last.

The maximum over a box is the maximum along one axis of the maxima along another, so one axis is all there is to
derive; the layer takes the axes from the last to the first. Forward along an axis of n elements, with window k, stride
s, dilation d, and padding of `lo` and `hi` elements that are -inf:

    y_i = max_o x_{s i + d o - lo}        m = floor((n + lo + hi - d (k-1) - 1) / s) + 1       x: (N, *sizes, C)
    w_i = the first o that attains it     or the ceil of it (`bpref.formulas.convolution.windows`)    y: (N, *counts, C)

Differential: while no two elements of a window are equal, w does not change, and delta y_i = delta x_j with
j = s i + d w_i - lo. The adjoint puts dy_i where it came from:

    dx_j = sum_o sum over i with s i + d o - lo = j of [w_i = o] dy_i                           (N, *sizes, C)

For one o that is dy where w = o and 0 elsewhere, with s - 1 zeros put between its elements, shifted by d o - lo: k
of these are added, and nothing is scattered. Along several axes, the adjoints follow in the opposite order.

Ties: the first of the largest elements in the window gets all of dy, in the order in which x lies in memory, as in the
derivative of `jax.lax.reduce_window`. Within a row the first offset wins, then the first row: hence the order of the
axes. An element of -inf is tied with the padding in front of it, and then nothing gets dy. A NaN is larger than
everything: y is NaN, and the first NaN of the window gets dy.

With indices the place of the element that won is given too, j counted through all spatial axes of x: what travels with
y along every axis is chosen by the same w. Integers, they have no cotangent; where nothing but padding won, -1.

Cached: w for each axis, a byte for an element of the result along that axis. Neither x nor y is needed; jax.vjp keeps
x, 5 times as many bytes for windows of 2 by 2 in float32. Where k is 1, w is 0 and not kept. An array without examples
carries x's sizes and dtype to the backward, in 0 bytes.

Numerical care: the forward rounds nothing. dx adds up what overlapping windows give, in at least float32, axis by axis.
Two axes of k offsets take 2 k comparisons, not k^2, and what XLA computes again in the backward instead of keeping it,
which on a CPU is w, stays as small.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.convolution.windows import Along, Padding, WinnersCache, as_windows, place_pool, places_of
from bpref.formulas.indexing.shifts import add_up, pad_axis, put, seen
from bpref.layer import Layer, Reals, no_params
from bpref.naive.windows import first_largest, in_pairs, pads_to_ceil, reduce_windows
from bpref.rule import Case, Real, Rule, called_as


def max_pool(
    window: tuple[int, ...] = (2, 2),
    stride: int | tuple[int, ...] | None = None,
    padding: Padding = "valid",
    dilation: int | tuple[int, ...] = 1,
    with_indices: bool = False,
    ceil: bool = False,
) -> Layer[tuple[()], Array, Reals | tuple[Reals, Array], WinnersCache]:
    """y = the maximum over each window, of as many spatial axes as the window has entries.

    Args:
      window: the window's size along each of 1 to 3 spatial axes.
      stride: the step from window to window; a number, or one for each axis; None for the window's size.
      padding: "valid" for none, "same" for ceil(n / stride) windows along each axis, or for each axis the pair of
        elements -inf in front and behind, each fewer than the window reaches over; a number for as many on both sides.
      dilation: the step from element to element in a window; a number, or one for each axis.
      with_indices: whether the places of the largest elements are given too.
      ceil: whether the number of windows is rounded up, as PyTorch's `ceil_mode`: the last one may end behind the
        padding, but begins in x or in front of it.

    Returns:
      A layer with params `()`, x `(N, *sizes, C)` and y `(N, *counts, C)`: `N T C`, `N H W C` or `N D H W C`. With
      indices y is a pair `(values, indices)`, the indices int32, each the place of its element in x's spatial axes as
      one long vector; of dy, a pair too, only the values' is read.

    Raises:
      ValueError: an argument is out of its range; x has other axes than N, the window's and C, or an empty one among
        the spatial; the window reaches over more than x with its padding, or might see nothing but padding.
      TypeError: x is not floating-point.
    """
    who = "max_pool"
    require_flags(who, with_indices=with_indices)
    windows = as_windows(who, window, window if stride is None else stride, dilation, padding, ceil)

    def forward(params, x: Float[Array, "N some=*sizes C"]):
        y, winners, places = x, [], places_of(x) if with_indices else None
        for along in reversed(place_pool(who, windows, x)):
            y, w, places = _largest_along(y, along, places)
            winners.insert(0, w)
        return y if places is None else (y, places), WinnersCache(tuple(winners), x[:0])

    def backward(params, cache, dy):
        dy = dy[0] if with_indices else dy
        if dy is None:
            return (), None
        x = cache.no_examples
        dx = widen(dy)
        for (axis, _, k, s, d, (lo, _)), w in zip(place_pool(who, windows, x), cache.winners, strict=True):
            shares = [dx] if w is None else [jnp.where(w == o, dx, 0) for o in range(k)]
            dx = add_up(put(share, axis, d * o - lo, s, x.shape[axis]) for o, share in enumerate(shares))
        return (), cast(dx, x.dtype)

    return Layer(no_params, forward, backward, who)


def _largest_along(x: Array, along: Along, places: Array | None) -> tuple[Array, Array | None, Array | None]:
    """y and w along one axis, None for a w of nothing but zeros, and what the places become."""
    axis, count, size, stride, dilation, pads = along
    padded = pad_axis(x, axis, pads, -jnp.inf)
    y = seen(padded, axis, 0, stride, count)
    if places is not None:
        places = pad_axis(places, axis, pads, -1)
    of_y = None if places is None else seen(places, axis, 0, stride, count)
    if size == 1:
        return y, None, of_y
    w = jnp.zeros(y.shape, np.min_scalar_type(size - 1))
    for o in range(1, size):
        v = seen(padded, axis, dilation * o, stride, count)
        wins = ~(v <= y) & (y == y)
        y, w = jnp.where(wins, v, y), jnp.where(wins, jnp.asarray(o, w.dtype), w)
        if places is not None and of_y is not None:
            of_y = jnp.where(wins, seen(places, axis, dilation * o, stride, count), of_y)
    return y, w, of_y


@called_as(max_pool)
def reference(
    params: tuple[()], x: Array, window, stride, padding, dilation, with_indices, ceil
) -> Array | tuple[Array, Array]:
    if ceil:
        padding = pads_to_ceil(x, window, stride or window, padding, dilation)
    if with_indices:
        y, places = first_largest(x, window, stride or window, in_pairs(padding, len(window)), dilation)
        return y, places.astype(jnp.int32)
    if dilation == 1:
        return reduce_windows(x, -jnp.inf, lax.max, window, stride, padding)
    return first_largest(x, window, stride, padding, dilation)[0]


RULE = Rule(
    "max_pool",
    max_pool,
    reference,
    cases=(
        Case(
            "2-D",
            Real("N H W C", points=(1.0,) * 24),
            least={"H": 2, "W": 2},
            timed={"N": 16, "H": 32, "W": 32, "C": 32},
        ),
        Case(
            "2-D, overlapping, dilated, padded",
            Real("N H W C"),
            {"window": (3, 2), "stride": (2, 1), "padding": ((3, 2), (0, 1)), "dilation": (2, 3)},
            least={"H": 2, "W": 3},
        ),
        Case(
            "2-D, with indices, padded by a number, rounded up",
            Real("N H W C", points=(1.0,) * 24),
            {"window": (3, 2), "stride": (2, 3), "padding": 1, "dilation": (1, 1), "with_indices": True, "ceil": True},
            least={"H": 1, "W": 1},
        ),
        Case("1-D, same", Real("N T C"), {"window": (4,), "stride": 1, "padding": "same"}, never_empty=("T",)),
        Case(
            "3-D, elements left over",
            Real("N D H W C"),
            {"window": (1, 2, 2), "stride": (2, 3, 1)},
            never_empty=("D",),
            least={"H": 2, "W": 2},
        ),
    ),
    cite="Ranzato et al., 'Unsupervised learning of invariant feature hierarchies' (2007), CVPR, section 2",
    covers=("max_pool1d", "max_pool2d", "max_pool3d", "maximum pooling"),
)
