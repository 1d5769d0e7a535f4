"""The sliding inner product of a convolution, and its adjoint in either argument: three convolutions of XLA's.

With x (N, n, C), W (F, k, C/g) and dy (N, m, F), written for one spatial axis (each axis by itself is the same), with
`s` the stride, `d` the dilation, `lo` and `hi` the padding, g the groups, f an output of group f g // F and c a channel
of the same group:

    correlate     y_nif  = sum_oc   x_n,j,c W_foc     where  j = s i + d o - lo
    correlate_dx  dx_njc = sum_iof dy_nif   W_foc     over   s i + d o - lo = j
    correlate_dW  dW_foc = sum_ni  dy_nif x_n,j,c     where  j = s i + d o - lo

all three contractions of the same relation between i, o and j; elements of x outside [0, n) are 0. XLA's convolution is
`out_p = sum_q in_{a p + b q - lo'} kernel_q` on an input with zeros between its elements, so each is one:

- dx: put s - 1 zeros between the elements of dy, D_{s i} = dy_i, and turn the window round, V_q = W_{k-1-q}. Then
  dx_j = sum_o D_{j + lo - d o} W_o = sum_q D_{j + d q - (d (k-1) - lo)} V_q: stride 1, dilation d, and in front
  lo' = d (k-1) - lo. Behind it is whatever makes the result n long: hi' = n - 1 + lo - s (m-1), where D has
  s (m-1) + 1 elements. Inputs and outputs of a group have swapped their roles.
- dW: the sum runs over i, which becomes the window, m long and dilated by s, and o the place, in steps of d:
  dW_o = sum_i x_{d o + s i - lo} dy_i: stride and dilation have swapped. In front lo, and behind whatever makes the
  result k long, hi' = d (k-1) + s (m-1) + 1 - n - lo. The examples are summed over as channels are, and the channels
  of x, which dW keeps, take the place of the batch.

A negative lo' or hi' cuts off what no window saw. Some are no convolutions for XLA, which on a CPU takes much longer
for them: windows of one element are matrix products, and where every group is one channel (depthwise) there is nothing
to contract, and each offset is a multiplication and an addition. Where windows lie side by side, s = k and nothing
around them, as patches of an image do, each element is in one window: j = s i + o and dx_{s i + o} = dy_i W_o, so that
dx and dW are a product each, between tiles (for patches of 16 in a 25th of the time; y is as fast as it is). dW with
groups is another: XLA's batch groups are 50 times slower on a CPU, and as a convolution with feature groups it sums all
places one after the other. Each offset is a matrix product for every group and every block of `BLOCK` places, and the
blocks are added: in float32 that is as precise as autodiff, or more.
"""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import wide_dtype, widen
from bpref.formulas.convolution.windows import Ints, Pairs

BLOCK = 256
"""How many products are summed in sequence: the error of a sum grows with their number."""


class Slide(NamedTuple):
    """How the windows move, each field but `groups` with one entry for every spatial axis."""

    stride: Ints
    dilation: Ints
    pads: Pairs
    groups: int


def correlate(x: Array, W: Array, slide: Slide) -> Array:
    """y of x `(N, *sizes, C)` and W `(F, *window, C/groups)`, in at least float32."""
    if _is_product(W.shape[1:-1], slide):
        return _product(x, W.reshape(W.shape[0], -1), ((x.ndim - 1,), (1,)))
    if _is_depthwise(x, W, slide):
        return _multiply_add(_padded(x, slide.pads), W, slide)
    last = x.ndim - 1
    return _convolution(x, W, slide.stride, slide.pads, (1,) * (last - 1), slide.dilation, slide.groups)


def correlate_dx(dy: Array, W: Array, sizes: Ints, slide: Slide) -> Array:
    """dx of dy `(N, *counts, F)` and W, for an x with these spatial sizes, in at least float32."""
    if _is_product(W.shape[1:-1], slide):
        return _product(dy, W.reshape(W.shape[0], -1), ((dy.ndim - 1,), (0,)))
    if _is_tiled(W.shape[1:-1], slide):
        tiled, sliding = (partial(f, sizes=sizes, slide=slide) for f in (_tiled_dx, _sliding_dx))
        return lax.platform_dependent(dy, W, cpu=tiled, default=sliding)
    return _sliding_dx(dy, W, sizes, slide)


def _tiled_dx(dy: Array, W: Array, sizes: Ints, slide: Slide) -> Array:
    """Each window's dx beside the next one's, and 0 where there is none."""
    counts, window = dy.shape[1:-1], W.shape[1:-1]
    rank = len(window)
    tiles = _product(dy, W, ((rank + 1,), (0,)))  # (N, *counts, *window, C)
    in_turn = itertools.chain(*((1 + axis, 1 + rank + axis) for axis in range(rank)))
    covered = [m * k for m, k in zip(counts, window, strict=True)]
    dx = lax.reshape(lax.transpose(tiles, (0, *in_turn, 2 * rank + 1)), (len(dy), *covered, W.shape[-1]))
    return _padded(dx, tuple((0, n - end) for n, end in zip(sizes, covered, strict=True)))


def _sliding_dx(dy: Array, W: Array, sizes: Ints, slide: Slide) -> Array:
    window = tuple(range(1, W.ndim - 1))
    V = lax.rev(W, window)
    front = [d * (k - 1) - lo for k, d, (lo, _) in zip(W.shape[1:-1], slide.dilation, slide.pads, strict=True)]
    extent = [s * (m - 1) + 1 for m, s in zip(dy.shape[1:-1], slide.stride, strict=True)]
    back = [n + lo - e for n, e, (lo, _) in zip(sizes, extent, slide.pads, strict=True)]
    pads = tuple(zip(front, back, strict=True))
    once = (1,) * len(sizes)
    if _is_depthwise(dy, W, slide):
        return _multiply_add(_padded(dy, pads, slide.stride), V, slide._replace(stride=once))
    last = dy.ndim - 1
    V = _outputs_of_groups_last(V, slide.groups)
    return _convolution(dy, V, once, pads, slide.stride, slide.dilation, slide.groups, kernel=(last, 0))


def correlate_dW(x: Array, dy: Array, window: Ints, slide: Slide) -> Array:
    """dW `(F, *window, C/groups)` of x `(N, *sizes, C)` and dy `(N, *counts, F)`, in at least float32."""
    F, C, g = dy.shape[-1], x.shape[-1], slide.groups
    last = x.ndim - 1
    examples = tuple(range(last))
    if _is_product(window, slide):
        return _product(dy, x, (examples, examples)).reshape(F, *window, C)
    if g == C == F:
        views = _views(_padded(x, slide.pads), window, slide, dy.shape[1:-1])
        sums = [lax.reduce_sum(lax.mul(v, widen(dy)), examples) for v in views]
        return lax.reshape(lax.concatenate([v[:, None] for v in sums], 1), (F, *window, 1))
    if g > 1:
        seen = _views(_padded(x, slide.pads), window, slide, dy.shape[1:-1])
        left = _in_blocks(widen(dy), g)
        sums = [_sum_of_products(left, _in_blocks(v, g)).reshape(F, 1, C // g) for v in seen]
        return lax.reshape(lax.concatenate(sums, 1), (F, *window, C // g))
    if _is_tiled(window, slide):
        tiled, sliding = (partial(f, window=window, slide=slide) for f in (_tiled_dW, _sliding_dW))
        return lax.platform_dependent(x, dy, cpu=tiled, default=sliding)
    return _sliding_dW(x, dy, window, slide)


def _tiled_dW(x: Array, dy: Array, window: Ints, slide: Slide) -> Array:
    counts, rank = dy.shape[1:-1], len(window)
    covered = lax.slice(x, (0,) * x.ndim, (len(x), *(m * k for m, k in zip(counts, window, strict=True)), x.shape[-1]))
    in_turn = itertools.chain(*zip(counts, window, strict=True))
    tiles = lax.reshape(covered, (len(x), *in_turn, x.shape[-1]))
    return _product(dy, tiles, (tuple(range(rank + 1)), (0, *range(1, 2 * rank, 2))))


def _sliding_dW(x: Array, dy: Array, window: Ints, slide: Slide) -> Array:
    last = x.ndim - 1
    steps = zip(x.shape[1:-1], dy.shape[1:-1], window, slide.stride, slide.dilation, slide.pads, strict=True)
    pads = tuple((lo, d * (k - 1) + s * (m - 1) + 1 - n - lo) for n, m, k, s, d, (lo, _) in steps)
    once = (1,) * len(window)
    return _convolution(
        x, dy, slide.dilation, pads, once, slide.stride, 1, features=(last, 0), kernel=(last, 0), channels_first=True
    )


def seen(x: Array, window: Ints, slide: Slide, counts: Ints) -> Array:
    """What every window sees, by groups and in the order of W: (N, places, g, window x C/g), in at least float32."""
    N, g = len(x), slide.groups
    views = [v.reshape(N, -1, g, 1, x.shape[-1] // g) for v in _views(_padded(x, slide.pads), window, slide, counts)]
    return lax.concatenate(views, 3).reshape(N, -1, g, len(views) * (x.shape[-1] // g))


def _in_blocks(v: Array, groups: int) -> Array:
    """All places (N, *counts) of v in blocks, the last filled up with zeros: (blocks, rows, groups, channels)."""
    rows = v.reshape(-1, groups, v.shape[-1] // groups)
    count = max(-(-len(rows) // BLOCK), 1)
    size = -(-len(rows) // count)
    rows = lax.pad(rows, jnp.zeros((), v.dtype), ((0, count * size - len(rows), 0), (0, 0, 0), (0, 0, 0)))
    return rows.reshape(count, size, groups, -1) if rows.size else rows[None]


def _sum_of_products(left: Array, right: Array) -> Array:
    """For each group the sum over all rows of the products of two channels, first within each block."""
    return jnp.sum(lax.dot_general(left, right, (((1,), (1,)), ((0, 2), (0, 2)))), 0)


def _convolution(
    x: Array,
    kernel_values: Array,
    stride: Ints,
    pads: Pairs,
    dilation: Ints,
    kernel_dilation: Ints,
    groups: int,
    features: tuple[int, int] | None = None,
    kernel: tuple[int, int] | None = None,
    channels_first: bool = False,
) -> Array:
    """XLA's, with the axes (batch, channels) of x and (outputs, inputs) of the kernel.

    Transposed first to the order of axes that XLA's fast convolution on a CPU takes: it transposes by itself, but not
    within a loop, where it would take 20 times as long.
    """
    last = x.ndim - 1
    inner = tuple(range(1, last))
    batch, channels = features or (0, last)
    outputs, inputs = kernel or (0, last)
    y = lax.conv_general_dilated(
        lax.transpose(x, (batch, *inner, channels)),
        lax.transpose(kernel_values, (*inner, inputs, outputs)),
        stride,
        pads,
        dilation,
        kernel_dilation,
        lax.ConvDimensionNumbers((0, last, *inner), (last, last - 1, *range(last - 1)), (0, last, *inner)),
        groups,
        preferred_element_type=wide_dtype(x.dtype),
    )
    return lax.transpose(y, (last, *inner, 0)) if channels_first else y


def _multiply_add(padded: Array, W: Array, slide: Slide) -> Array:
    """y of an x that is padded, where every channel is its own group."""
    window = W.shape[1:-1]
    reach = [d * (k - 1) + 1 for k, d in zip(window, slide.dilation, strict=True)]
    counts = tuple((n - r) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, slide.stride, strict=True))
    weights = widen(W).reshape(W.shape[0], -1)
    y = None
    for index, v in enumerate(_views(padded, window, slide, counts)):
        term = lax.mul(v, lax.broadcast_in_dim(weights[:, index], v.shape, (v.ndim - 1,)))
        y = term if y is None else lax.add(y, term)
    assert y is not None
    return y


def _views(padded: Array, window: Ints, slide: Slide, counts: Ints) -> Iterator[Array]:
    """For every offset in the window, what all windows see there."""
    N, C = padded.shape[0], padded.shape[-1]
    for offset in itertools.product(*map(range, window)):
        start = [o * d for o, d in zip(offset, slide.dilation, strict=True)]
        stop = [a + s * (m - 1) + 1 for a, s, m in zip(start, slide.stride, counts, strict=True)]
        yield lax.slice(padded, (0, *start, 0), (N, *stop, C), (1, *slide.stride, 1))


def _padded(x: Array, pads: Pairs, dilation: Ints | None = None) -> Array:
    """x in at least float32, with zeros around it and, when dilated, between its elements."""
    between = [step - 1 for step in dilation or (1,) * len(pads)]
    config = ((0, 0, 0), *((lo, hi, b) for (lo, hi), b in zip(pads, between, strict=True)), (0, 0, 0))
    return lax.pad(widen(x), jnp.zeros((), wide_dtype(x.dtype)), config)


def _outputs_of_groups_last(W: Array, groups: int) -> Array:
    """W `(g F/g, *window, C/g)` as `(F/g, *window, g C/g)`: the kernel whose outputs are the channels of x."""
    F, *window, c = W.shape
    by_group = W.reshape(groups, F // groups, *window, c)
    return jnp.moveaxis(by_group, 0, -2).reshape(F // groups, *window, groups * c)


def _product(left: Array, right: Array, contract: tuple[Ints, Ints]) -> Array:
    return lax.dot_general(left, right, (contract, ((), ())), preferred_element_type=wide_dtype(left.dtype))


def _is_product(window: Ints, slide: Slide) -> bool:
    """Whether windows of one element see every element of x once, and nothing else."""
    return all(n == 1 for n in (*window, *slide.stride)) and slide.groups == 1 and _is_bare(slide)


def _is_bare(slide: Slide) -> bool:
    return all(pair == (0, 0) for pair in slide.pads)


def _is_tiled(window: Ints, slide: Slide) -> bool:
    """Whether windows lie side by side, with nothing around them: each element of x is in one of them, or in none."""
    side_by_side = slide.stride == window and all(d == 1 for d in slide.dilation)
    return side_by_side and slide.groups == 1 and _is_bare(slide)


def _is_depthwise(x: Array, W: Array, slide: Slide) -> bool:
    return slide.groups == x.shape[-1] == W.shape[0] and W.shape[-1] == 1
