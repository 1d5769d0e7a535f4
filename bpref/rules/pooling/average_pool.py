"""average_pool: the mean of every window, over 1, 2 or 3 spatial axes, channels last.

Forward along one spatial axis of n elements, with window k, stride s, and padding of `lo` and `hi` zeros (x_j = 0
outside [0, n)); of several axes the sums are taken one after the other, and the q multiplied:

    y_i = 1/q_i sum_o x_{s i + o - lo}        m = floor((n + lo + hi - k) / s) + 1       x: (N, *sizes, C)
    q_i = k, or how many of the window's elements lie in [0, n)                           y: (N, *counts, C)

or m is the ceil of it (`bpref.formulas.convolution.windows`), and q_i counts the elements in [-lo, n + hi), or in [0,
n). Where a divisor is given, it stands in the place of the product of the q: of a divisor of 1 y are the sums.

Differential: delta y_i = 1/q_i sum_o delta x_{s i + o - lo}, linear in x. Collect the factor of each delta x_j:

    dx_j = sum_o sum over i with s i + o - lo = j of dy_i / q_i                           (N, *sizes, C)

For one o that is dy / q with s - 1 zeros put between its elements, shifted by o - lo; k of these are added along each
axis, and nothing is scattered.

Cached: nothing but x's sizes and dtype, which an array without examples carries in 0 bytes. The stride may leave some
elements of x over, so that y's sizes do not tell x's.

Numerical care: sums run in at least float32, axis by axis, and are divided once, by the product of the q. Two axes of
k offsets take 2 k additions, not k^2.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.convolution.windows import Padding, as_pads, as_windows, place_pool
from bpref.formulas.indexing.shifts import add_up, pad_axis, put_in_all, seen
from bpref.layer import Layer, Reals, no_params
from bpref.naive.windows import in_pairs, pads_to_ceil, reduce_windows
from bpref.rule import Case, Real, Rule, called_as


class AveragePoolCache(NamedTuple):
    no_examples: Float[Array, "0 *sizes C"]


def average_pool(
    window: tuple[int, ...] = (2, 2),
    stride: int | tuple[int, ...] | None = None,
    padding: Padding = "valid",
    count_padding: bool = True,
    ceil: bool = False,
    divisor: float | None = None,
) -> Layer[tuple[()], Array, Reals, AveragePoolCache]:
    """y = the mean over each window, of as many spatial axes as the window has entries.

    Args:
      window: the window's size along each of 1 to 3 spatial axes.
      stride: the step from window to window; a number, or one for each axis; None for the window's size.
      padding: "valid" for none, "same" for ceil(n / stride) windows along each axis, or for each axis the pair of
        zeros in front and behind, each fewer than the window's; a number for as many on both sides.
      count_padding: whether these zeros count as elements; else the mean is that of the elements of x.
      ceil: whether the number of windows is rounded up, as PyTorch's `ceil_mode`: the last one may end behind the
        padding, where nothing counts, but begins in x or in front of it.
      divisor: what every sum is divided by, in place of how many elements count, as PyTorch's `divisor_override`.

    Returns:
      A layer with params `()`, x `(N, *sizes, C)` and y `(N, *counts, C)`: `N T C`, `N H W C` or `N D H W C`.

    Raises:
      ValueError: an argument is out of its range, or the divisor is 0; x has other axes than N, the window's and C, or
        an empty one among the spatial; the window reaches over more than x with its padding, or might see nothing but
        padding.
      TypeError: x is not floating-point.
    """
    who = "average_pool"
    require_flags(who, count_padding=count_padding)
    windows = as_windows(who, window, window if stride is None else stride, 1, padding, ceil)
    divisor = None if divisor is None else require_finite(who, "divisor", divisor)
    if divisor == 0:
        raise ValueError(f"{who}: divisor is 0, expected another number or None")
    of_all = math.prod(windows.size) if count_padding and not ceil and divisor is None else divisor

    def divided(v, x):
        """v / q, of y's shape."""
        if of_all is not None:
            return lax.mul(v, jnp.asarray(1 / of_all, v.dtype))
        asked = as_pads(windows.padding, x.shape[1:-1], windows.reach, windows.stride)
        for (axis, _, k, s, _, _), (lo, hi) in zip(place_pool(who, windows, x), asked, strict=True):
            first = s * np.arange(v.shape[axis]) - lo
            least, end = (-lo, x.shape[axis] + hi) if count_padding else (0, x.shape[axis])
            q = np.minimum(first + k, end) - np.maximum(first, least)
            v = lax.mul(v, lax.broadcast_in_dim(jnp.asarray(1 / q, v.dtype), v.shape, (axis,)))
        return v

    def forward(params, x: Float[Array, "N some=*sizes C"]):
        placed = place_pool(who, windows, x)
        y = widen(x)
        for axis, count, k, s, _, pads in placed:
            padded = pad_axis(y, axis, pads, 0)
            y = add_up(seen(padded, axis, o, s, count) for o in range(k))
        return cast(divided(y, x), x.dtype), AveragePoolCache(x[:0])

    def backward(params, cache, dy):
        x = cache.no_examples
        dx = divided(widen(dy), x)
        for axis, _, k, s, _, (lo, _) in reversed(place_pool(who, windows, x)):
            dx = put_in_all(dx, axis, k, s, -lo, x.shape[axis])
        return (), cast(dx, x.dtype)

    return Layer(no_params, forward, backward, who)


@called_as(average_pool)
def reference(params: tuple[()], x: Array, window, stride, padding, count_padding, ceil, divisor) -> Array:
    def sums(v, pads):
        return reduce_windows(v, 0.0, lax.add, window, stride, pads)

    if ceil:
        pads = pads_to_ceil(x, window, stride or window, padding)
        if divisor is not None:
            return sums(x, pads) / divisor
        asked = [(0, 0), *in_pairs(padding, len(window)), (0, 0)]
        counted = jnp.pad(jnp.ones_like(x), asked, constant_values=1.0 * count_padding)
        beyond = tuple((0, b - hi) for (_, b), (_, hi) in zip(pads, asked[1:-1], strict=True))
        return sums(x, pads) / sums(counted, beyond)
    y = sums(x, padding)
    if divisor is not None:
        return y / divisor
    return y / math.prod(window) if count_padding else y / sums(jnp.ones_like(x), padding)


RULE = Rule(
    "average_pool",
    average_pool,
    reference,
    cases=(
        Case("2-D", Real("N H W C"), least={"H": 2, "W": 2}, timed={"N": 16, "H": 32, "W": 32, "C": 32}),
        Case(
            "2-D, overlapping, padding not counted",
            Real("N H W C"),
            {"window": (3, 3), "stride": 2, "padding": ((1, 1), (0, 1)), "count_padding": False},
            least={"H": 1, "W": 2},
        ),
        Case(
            "2-D, padded by a number, rounded up",
            Real("N H W C"),
            {"window": (3, 2), "stride": 2, "padding": (1, 0), "ceil": True},
            least={"H": 1, "W": 2},
        ),
        Case("1-D, same", Real("N T C"), {"window": (4,), "stride": 1, "padding": "same"}, never_empty=("T",)),
        Case(
            "3-D, elements left over, another divisor",
            Real("N D H W C"),
            {"window": (1, 2, 2), "stride": (2, 3, 1), "divisor": 2.5},
            never_empty=("D",),
            least={"H": 2, "W": 2},
        ),
    ),
    cite="LeCun et al., 'Gradient-based learning applied to document recognition' (1998), section II.B, sub-sampling",
    covers=("avg_pool1d", "avg_pool2d", "avg_pool3d", "mean pooling"),
)
