"""Images or volumes read between their pixels, whose centres are at 0, 1, ...: a mixture of those around each point.

A point has a coordinate u along each axis of the images, and the pixels k around it along that axis their weights, with
i = floor(u) the pixel before and the fractions t = u - i, s = 1 - t:

    nearest:    w = 1                               k = u rounded, halves to the even
    bilinear:   w = s, t                            k = i, i + 1
    bicubic:    w = a t s^2,  s (1 + t - (a + 2) t^2),  t (1 + s - (a + 2) s^2),  a s t^2
                                                    k = i - 1, i, i + 1, i + 2,     a = -3/4
    y = sum over the pixels of (w of one axis) (w of the next) ... x

Pixels outside are 0 ("zeros"), or the nearest one inside ("border"), or the nearest one for a point no more than one
pixel beyond the last centres, -1 <= u <= W, and 0 for any other ("near"); or the images go on as their own mirror
images, at the last pixels' edges ("reflect") or centres ("mirror").

Differential, with k constant and w' the slopes of the weights along one axis, which is -1 and 1 of s and t:

    delta y_c = sum (the weights) delta x_c + over the axes, sum (w' of this axis) (w of the others) x_c delta u

A pixel that is outside is left out, not multiplied by zero: it may be NaN.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.dtypes import widen
from bpref.formulas.indexing.indices import add_rows

FAR = 2**30
"""Pixels at least so far away are not told apart."""

Number = TypeVar("Number", Array, float)
Weights = tuple[Float[Array, "*m 1"], ...]


class Pixels(NamedTuple):
    """Where each point is read: its pixels' rows in the list of all, those along the last axis side by side.

    A row behind the last is of no pixel. Along each axis of the images the pixels have their weights, and slopes.
    """

    rows: tuple[Int[Array, "*m"], ...]
    weights: tuple[Weights, ...]
    slopes: tuple[Weights, ...]


def locate(points: Sequence[Array], n: Array, shape: tuple[int, ...], padding: str, method: str = "bilinear") -> Pixels:
    """The pixels of points (*m) of images n, which broadcasts against them; the image N is none, and reads zeros.

    The points have a coordinate for each axis of the images, in the order of these.
    """
    N, *sizes, _ = shape
    is_read = n < N
    if padding == "near":
        for u, size in zip(points, sizes, strict=True):
            is_read &= (u >= -1) & (u <= size)
    around = [_around(u, method) for u in points]
    seen = [[_placed(k, size, padding) for k in pixels] for (pixels, _, _), size in zip(around, sizes, strict=True)]
    rows = []
    for chosen in product(*seen):
        row, inside = n, is_read
        for (k, is_inside), size in zip(chosen, sizes, strict=True):
            row, inside = row * size + k, inside & is_inside
        rows.append(jnp.where(inside, row, N * math.prod(sizes)))
    _, weights, slopes = zip(*around, strict=True)
    return Pixels(tuple(rows), weights, slopes)


def read(images: Array, pixels: Pixels) -> list[Float[Array, "*m C"]]:
    """The pixels of each point, those outside as zeros, in at least float32."""
    listed = images.reshape(math.prod(images.shape[:-1]), images.shape[-1])
    found = (jnp.take(listed, row, axis=0, mode="fill", fill_value=0) for row in pixels.rows)
    return [widen(v).reshape(*row.shape, images.shape[-1]) for v, row in zip(found, pixels.rows, strict=True)]


def mixed(values: list[Array], pixels: Pixels) -> Float[Array, "*m C"]:
    """y of what was read."""
    return _summed(values, pixels.weights)


def pull_images(dy: Array, pixels: Pixels, shape: tuple[int, ...]) -> Array:
    """dx: each of the pixels adds its weight times dy, which is in at least float32."""
    shares = [dy]
    for weights in pixels.weights:
        shares = [_times(w, share) for share in shares for w in weights]
    nothing = jnp.zeros((math.prod(shape[:-1]), shape[-1]), dy.dtype)
    return add_rows(nothing, jnp.stack(pixels.rows), jnp.stack(shares), 0).reshape(shape)


def pull_points(dy: Array, values: list[Array], pixels: Pixels) -> list[Float[Array, "*m"]]:
    """du of each axis, summed over the channels. What is subtracted is so before it is mixed along the other axes."""
    weights = pixels.weights
    found = []
    for axis, slopes in enumerate(pixels.slopes):
        apart = math.prod(map(len, weights[axis + 1 :]))
        rest = weights[:axis] + weights[axis + 1 :]
        found.append(jnp.sum(dy * _summed(_summed_along(values, slopes, apart), rest), -1))
    return found


def cubic(t: Number, s: Number) -> tuple[Number, ...]:
    """The weights at distances 1 + t, t, s and 1 + s, with s = 1 - t: Keys's cubic with a = -3/4."""
    a = -0.75
    return a * t * s * s, s * (1 + t - (a + 2) * t * t), t * (1 + s - (a + 2) * s * s), a * s * t * t


def _cubic_slopes(t: Array, s: Array) -> tuple[Array, ...]:
    """Those of `cubic` in t."""
    a = -0.75

    def near(d):
        return d * (2 * (a + 3) - 3 * (a + 2) * d)

    return a * s * (s - 2 * t), -near(t), near(s), a * t * (2 * s - t)


def _around(u: Array, method: str) -> tuple[list[Array], Weights, Weights]:
    """The pixels around each point along an axis, as integers, their weights and slopes."""
    if method == "nearest":
        one = jnp.ones_like(u)[..., None]
        return [_whole(jnp.round(u))], (one,), (0 * one,)
    before = jnp.floor(u)
    i, t = _whole(before), (u - before)[..., None]
    if method == "bilinear":
        one = jnp.ones_like(t)
        return [i, i + 1], (1 - t, t), (-one, one)
    return [i - 1, i, i + 1, i + 2], cubic(t, 1 - t), _cubic_slopes(t, 1 - t)


def _whole(k: Array) -> Int[Array, "*m"]:
    return jnp.clip(k, -FAR, FAR).astype(jnp.int32)


def _placed(k: Array, size: int, padding: str) -> tuple[Int[Array, "*m"], Bool[Array, "*m"] | bool]:
    """Which pixel of an axis k is, and whether it is any."""
    is_inside = (k >= 0) & (k < size) if padding == "zeros" else True
    if padding in ("reflect", "mirror"):
        last = 2 * size - 1 if padding == "reflect" else 2 * size - 2
        k = jnp.mod(k, 2 * size if padding == "reflect" else max(last, 1))
        k = jnp.where(k < size, k, last - k)
    return jnp.clip(k, 0, size - 1), is_inside


def _summed(values: list[Array], weights: Sequence[Weights]) -> Array:
    for along in reversed(weights):
        values = _summed_along(values, along, 1)
    (y,) = values
    return y


def _summed_along(values: list[Array], weights: Weights, apart: int) -> list[Array]:
    """The sums along one axis, whose pixels stand so far apart in the list."""
    span = len(weights) * apart
    starts = [i + j for i in range(0, len(values), span) for j in range(apart)]
    each = (values[start : start + span : apart] for start in starts)
    return [reduce(jnp.add, map(_times, weights, vs)) for vs in each]


def _times(w: Array, v: Array) -> Array:
    return jnp.broadcast_to(w, v.shape) * v
