"""Images read between their pixels, whose centres are at 0, 1, ...: a bilinear mixture of the four around each point.

For images x of shape (N, H, W, C) and a point u across and v down, of image n, with the pixel before, i = floor(u),
j = floor(v), and the fractions a = u - i, b = v - j:

    y = (1 - b) ((1 - a) x_ji + a x_j,i+1) + b ((1 - a) x_j+1,i + a x_j+1,i+1)

Pixels outside are 0 ("zeros"), or the nearest one inside ("border"), or the nearest one for a point no more than one
pixel beyond the last centres, -1 <= u <= W and -1 <= v <= H, and 0 for any other ("near").

Differential, with i and j constant, w the four weights and c the channel:

    delta y_c = sum over the four of w delta x_c
                + ((1 - b) (x_j,i+1,c - x_jic) + b (x_j+1,i+1,c - x_j+1,i,c)) delta u
                + ((1 - a) (x_j+1,i,c - x_jic) + a (x_j+1,i+1,c - x_j,i+1,c)) delta v

A pixel that is outside is left out, not multiplied by zero: it may be NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.dtypes import widen
from bpref.formulas.indexing.indices import add_rows


class Pixels(NamedTuple):
    """Where each point is read, for its four pixels: their row in the list of all pixels, and the two fractions.

    A row behind the last is of no pixel.
    """

    rows: tuple[Int[Array, "*m"], ...]
    a: Float[Array, "*m 1"]
    b: Float[Array, "*m 1"]


def locate(u: Array, v: Array, n: Array, shape: tuple[int, ...], padding: str) -> Pixels:
    """The pixels of points (*m) of images n, which broadcasts against them; the image N is none, and reads zeros."""
    N, H, W, _ = shape
    (i, a), (j, b) = _cell(u, W), _cell(v, H)
    is_read = n < N
    if padding == "near":
        is_read &= (u >= -1) & (u <= W) & (v >= -1) & (v <= H)
    rows = []
    for k in (j, j + 1):
        for l in (i, i + 1):
            inside = is_read & (k >= 0) & (k < H) & (l >= 0) & (l < W) if padding == "zeros" else is_read
            row = (n * H + jnp.clip(k, 0, H - 1)) * W + jnp.clip(l, 0, W - 1)
            rows.append(jnp.where(inside, row, N * H * W))
    return Pixels(tuple(rows), a[..., None], b[..., None])


def read(images: Array, pixels: Pixels) -> list[Float[Array, "*m C"]]:
    """The four pixels of each point, those outside as zeros, in at least float32."""
    N, H, W, C = images.shape
    listed = images.reshape(N * H * W, C)
    found = (jnp.take(listed, row, axis=0, mode="fill", fill_value=0) for row in pixels.rows)
    return [widen(v).reshape(*pixels.a.shape[:-1], C) for v in found]


def mixed(four: list[Array], pixels: Pixels) -> Float[Array, "*m C"]:
    """y of the four."""
    before_before, before_after, after_before, after_after = four
    above = _between(before_before, before_after, pixels.a)
    below = _between(after_before, after_after, pixels.a)
    return _between(above, below, pixels.b)


def pull_images(dy: Array, pixels: Pixels, shape: tuple[int, ...]) -> Float[Array, "N H W C"]:
    """dx: each of the four pixels adds its weight times dy, which is in at least float32."""
    N, H, W, C = shape
    a, b = (jnp.broadcast_to(v, dy.shape) for v in (pixels.a, pixels.b))
    above, below = (1 - b) * dy, b * dy
    shares = [(1 - a) * above, a * above, (1 - a) * below, a * below]
    nothing = jnp.zeros((N * H * W, C), dy.dtype)
    return add_rows(nothing, jnp.stack(pixels.rows), jnp.stack(shares), 0).reshape(shape)


def pull_points(dy: Array, four: list[Array], pixels: Pixels) -> tuple[Float[Array, "*m"], Float[Array, "*m"]]:
    """du and dv, summed over the channels."""
    before_before, before_after, after_before, after_after = four
    du = dy * _between(before_after - before_before, after_after - after_before, pixels.b)
    dv = dy * _between(after_before - before_before, after_after - before_after, pixels.a)
    return jnp.sum(du, -1), jnp.sum(dv, -1)


def _cell(u: Array, n: int) -> tuple[Array, Array]:
    """The pixel before each point along an axis of n, and how far behind it the point is."""
    before = jnp.floor(u)
    return jnp.clip(before, -2, n).astype(jnp.int32), u - before


def _between(before: Array, after: Array, fraction: Array) -> Array:
    fraction = jnp.broadcast_to(fraction, before.shape)
    return (1 - fraction) * before + fraction * after
