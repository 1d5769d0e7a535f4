"""Where the windows of a convolution or of pooling lie: what was asked for, checked, and what it means for one x.

Along one spatial axis of n elements, padded by `lo` elements in front and `hi` behind, window i (of m) sees with its
offset o (of k) the element at `s i + d o - lo`, s the stride and d the dilation. It reaches over `r = d (k - 1) + 1`
elements, and so

    m = floor((n + lo + hi - r) / s) + 1          "valid": lo = hi = 0
    m = ceil(n / s)                               "same":  lo + hi = max(s (m - 1) + r - n, 0), lo = floor(half of it)

Pools may round up, m = ceil((n + lo + hi - r) / s) + 1: then the last window ends behind the padding, in elements as of
padding, and is left out where it begins behind x, s (m - 1) - lo >= n.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, UInt

from bpref.checks.hyperparameters import is_integer, plain, require_flags

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
Padding = str | int | Ints | Pairs
"""What a layer is asked for: "same", "valid", or for every spatial axis the elements in front and behind; of one number
as many on both sides, and of one number alone along every axis."""


class Windows(NamedTuple):
    """The windows that a layer slides over the spatial axes, each field with one entry for each of these."""

    size: Ints
    stride: Ints
    dilation: Ints
    padding: str | Pairs
    ceil: bool = False

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def reach(self) -> Ints:
        return tuple(d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True))


class WinnersCache(NamedTuple):
    """Along each axis which offset's element each window has, `None` where it has one; and x without its examples."""

    winners: tuple[UInt[Array, "N *sizes C"] | None, ...]
    no_examples: Float[Array, "0 *sizes C"]


def places_of(x: Array) -> Array:
    """For every element of x its number among those of its example and channel."""
    sizes = x.shape[1:-1]
    return jnp.broadcast_to(lax.iota(jnp.int32, math.prod(sizes)).reshape(*sizes, 1), x.shape)


def as_windows(
    who: str, window: Ints, stride: int | Ints, dilation: int | Ints, padding: Padding, ceil: bool = False
) -> Windows:
    """The arguments checked, numbers for all axes spread over them; raises `ValueError`."""
    require_flags(who, ceil=ceil)
    if not isinstance(window, (tuple, list)) or not 1 <= len(window) <= 3 or not all(map(_is_positive, window)):
        raise ValueError(f"{who}: window is {window!r}, expected a tuple of 1 to 3 positive integers")
    rank = len(window)
    steps = per_axis(who, "stride", stride, rank), per_axis(who, "dilation", dilation, rank)
    return Windows(tuple(map(plain, window)), *steps, _as_padding(who, padding, rank), ceil)


def per_axis(who: str, argument: str, value: int | Ints, rank: int, least: int = 1) -> Ints:
    """`value` as one integer of at least `least` for each of `rank` axes; raises `ValueError`."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank or not all(is_integer(v) and v >= least for v in values):
        kind = "positive" if least == 1 else "non-negative"
        raise ValueError(f"{who}: {argument} is {value!r}, expected a {kind} integer, or {rank} of them")
    return tuple(map(plain, values))


def as_pads(padding: str | Pairs, sizes: Ints, reach: Ints, stride: Ints) -> Pairs:
    """The pairs (lo, hi) that `padding` means for an x of these sizes."""
    if padding == "valid":
        return ((0, 0),) * len(sizes)
    if padding == "same":
        lacking = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reach, stride, strict=True)]
        return tuple((lack // 2, lack - lack // 2) for lack in lacking)
    assert not isinstance(padding, str)
    return padding


def require_spatial(who: str, x: Array, rank: int) -> None:
    """Raise `ValueError` unless x has a batch axis, `rank` spatial axes and channels."""
    if len(x.shape) != rank + 2:
        expected = {1: "(N, T, C)", 2: "(N, H, W, C)", 3: "(N, D, H, W, C)"}[rank]
        raise ValueError(f"{who}: x has shape {x.shape}, expected {rank + 2} axes {expected}")


def place(who: str, windows: Windows, x: Array) -> Pairs:
    """The padding of x, in numbers; raises unless x has the right axes and some window fits in along each."""
    require_spatial(who, x, windows.rank)
    sizes = x.shape[1:-1]
    pads = as_pads(windows.padding, sizes, windows.reach, windows.stride)
    if windows.ceil:
        pads = tuple(map(_up_to_the_last, sizes, windows.reach, windows.stride, pads))
    for axis, (n, r, (lo, hi)) in enumerate(zip(sizes, windows.reach, pads, strict=True), 1):
        if r > n + lo + hi:
            raise ValueError(
                f"{who}: the window reaches over {r} elements of axis {axis}, x has {n} there and {lo + hi} of padding"
            )
    return pads


def _up_to_the_last(n: int, r: int, s: int, pads: tuple[int, int]) -> tuple[int, int]:
    """The padding with what the last window needs behind it, where their number is rounded up."""
    lo, hi = pads
    m = -(-(n + lo + hi - r) // s) + 1
    m -= s * (m - 1) >= n + lo
    return lo, max(hi, s * (m - 1) + r - n - lo)


class Along(NamedTuple):
    """The windows of pooling along one axis of x: their count m, k, s, d, and the padding lo and hi."""

    axis: int
    windows: int
    size: int
    stride: int
    dilation: int
    pads: tuple[int, int]


def place_pool(who: str, windows: Windows, x: Array) -> list[Along]:
    """As `place`, for each spatial axis; raises where some window would see nothing but padding, too."""
    reach = windows.reach
    for r, (lo, hi) in zip(reach, () if isinstance(windows.padding, str) else windows.padding, strict=False):
        if max(lo, hi) >= r:
            less = f"the window {windows.size}" if reach == windows.size else f"the {reach} that a window reaches over"
            raise ValueError(f"{who}: padding is {windows.padding}, expected less than {less}")
    pads = place(who, windows, x)
    of_axes = zip(x.shape[1:-1], reach, windows.stride, pads, strict=True)
    windows_along = [(n + lo + hi - r) // s + 1 for n, r, s, (lo, hi) in of_axes]
    axes = range(1, x.ndim - 1)
    placed = list(map(Along, axes, windows_along, windows.size, windows.stride, windows.dilation, pads))
    for axis, m, k, s, d, (lo, _) in placed:
        begin = s * np.arange(m) - lo
        seen = begin + d * np.maximum(0, -(begin // d))
        if ((seen >= x.shape[axis]) | (seen > begin + d * (k - 1))).any():
            raise ValueError(
                f"{who}: a window sees nothing but padding along axis {axis}: x has {x.shape[axis]} elements there, "
                f"the dilation is {d}"
            )
    return placed


def _as_padding(who: str, padding: Padding, rank: int) -> str | Pairs:
    if isinstance(padding, str) and padding in ("same", "valid"):
        return padding
    of_axes = list(padding) if isinstance(padding, (tuple, list)) else [padding] * rank
    pairs = [(p, p) if is_integer(p) else p for p in of_axes]
    if len(pairs) == rank and all(map(_is_pair, pairs)):
        return tuple((plain(pair[0]), plain(pair[1])) for pair in pairs if isinstance(pair, (tuple, list)))
    expected = f"'same', 'valid', a non-negative integer, or {rank} of them or of pairs"
    raise ValueError(f"{who}: padding is {padding!r}, expected {expected}")


def _is_pair(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(is_integer(v) and v >= 0 for v in value)


def _is_positive(value: int) -> bool:
    return is_integer(value) and value > 0
