"""adaptive_pool: as many windows as are asked for, however large x is; the mean or the maximum of each.

Along one spatial axis of n elements, m windows: window i is the elements j with

    floor(i n / m) <= j < ceil((i + 1) n / m)

which cover the axis, neighbours sharing an element where n / m is not whole. Since floor(a) <= j is a < j + 1 and
ceil(b) > j is b > j for a whole j, both say i n < (j + 1) m and j m < (i + 1) n: the relation is symmetric, and the
windows that element j lies in are

    floor(j m / n) <= i < ceil((j + 1) m / n)

the adaptive windows of m elements in n windows. Of several axes each is taken by itself. Forward, with l_i = the
window's length, or with w_i = the offset at which the window's first largest element stands:

    mean      y_i = 1/l_i sum over window i of x_j                                        x: (N, *sizes, C)
    maximum   y_i = x_{floor(i n / m) + w_i}                                              y: (N, *counts, C)

Differential: delta y_i = 1/l_i sum over window i of delta x_j, or delta x at the place of the maximum, which stays
there while no two elements are equal. Collect the factor of each delta x_j, the sum over the windows j lies in:

    mean      dx_j = sum over i of dy_i / l_i                                             (N, *sizes, C)
    maximum   dx_j = sum over i of [j = floor(i n / m) + w_i] dy_i                        (N, *sizes, C)

The adjoint of a mean is again a sum over adaptive windows, with m and n in each other's place.

Ties: the first of the largest elements gets all of dy, within a row and then of the rows, as in `max_pool`: axes are
taken from the last to the first. A NaN is larger than everything, and the first one gets dy.

With indices the place of the element that won is given too, j counted through all spatial axes of x: along every axis
what is taken of the places is what w takes of x. Integers, they have no cotangent.

Cached: for means x's sizes and dtype alone, which an array without examples carries in 0 bytes; for maxima w for each
axis as well, a byte for an element of the result along that axis. Where m = n, w is 0 and not kept.

Numerical care: sums run in at least float32. Windows that do not share elements are strided slices, and the adjoint a
repetition; others are looked up, o for o, at places known while tracing. Windows of more than 256 elements are laid
side by side, each summed or searched as a whole: an addition for each o, 16,384 of them in sequence, was less precise
than autodiff, and took minutes to compile.
"""

import math
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.convolution.windows import WinnersCache, places_of, require_spatial
from bpref.formulas.indexing.shifts import add_up
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule, called_as

LONG = 256
"""The elements of a window that are taken one after the other."""


def adaptive_pool(
    counts: tuple[int, ...] = (1, 1), kind: Literal["average", "max"] = "average", with_indices: bool = False
) -> Layer[tuple[()], Array, Reals | tuple[Reals, Array], WinnersCache]:
    """y = the mean or the maximum of `counts` windows that cover x evenly.

    Args:
      counts: the number of windows along each of 1 to 3 spatial axes.
      kind: "average" or "max".
      with_indices: whether the places of the largest elements are given too.

    Returns:
      A layer with params `()`, x `(N, *sizes, C)` and y `(N, *counts, C)`: `N T C`, `N H W C` or `N D H W C`. With
      indices y is a pair `(values, indices)`, as of `max_pool`; of dy, a pair too, only the values' is read.

    Raises:
      ValueError: an argument is out of its range, or indices are asked for of means; x has other axes than N, those of
        `counts` and C, or an empty one among the spatial.
      TypeError: x is not floating-point.
    """
    who = "adaptive_pool"
    if not isinstance(counts, tuple) or not 1 <= len(counts) <= 3 or not all(_is_count(m) for m in counts):
        raise ValueError(f"{who}: counts is {counts!r}, expected a tuple of 1 to 3 positive integers")
    require_kind(who, kind)
    require_flags(who, with_indices=with_indices)
    if with_indices and kind == "average":
        raise ValueError(f"{who}: with_indices is True, which is for maxima; a mean has no place")

    def forward(params, x: Float[Array, "N some=*sizes C"]):
        require_spatial(who, x, len(counts))
        y, winners, places = (widen(x) if kind == "average" else x), [], places_of(x) if with_indices else None
        for axis, m in reversed(list(enumerate(counts, 1))):
            if kind == "average":
                y = _over(_sums(y, axis, m), axis, x.shape[axis])
            else:
                y, w = _largest(y, axis, m)
                winners.insert(0, w)
                places = None if places is None else _chosen(places, w, axis, m)
        y = cast(y, x.dtype)
        return y if places is None else (y, places), WinnersCache(tuple(winners), x[:0])

    def backward(params, cache, dy):
        dy = dy[0] if with_indices else dy
        if dy is None:
            return (), None
        x = cache.no_examples
        dx = widen(dy)
        for axis in range(1, len(counts) + 1):
            n = x.shape[axis]
            if kind == "average":
                dx = _sums(_over(dx, axis, n), axis, n)
            else:
                dx = _put_back(dx, cache.winners[axis - 1], axis, n)
        return (), cast(dx, x.dtype)

    return Layer(no_params, forward, backward, who)


def require_kind(who: str, kind: str) -> None:
    """Raise `ValueError` unless there is such a kind of pooling."""
    if kind not in ("average", "max"):
        raise ValueError(f"{who}: kind is {kind!r}, expected 'average' or 'max'")


def _is_count(m: object) -> bool:
    return isinstance(m, int) and m > 0


def _bounds(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of m windows over n elements begins, and how many elements it has."""
    i = np.arange(m)
    first = i * n // m
    return first, -(-(i + 1) * n // m) - first


def _views(x: Array, axis: int, m: int) -> Iterator[tuple[Array, np.ndarray, np.ndarray]]:
    """For each offset o: what the m windows see there, at which places, and in which of them there is an o."""
    n = x.shape[axis]
    first, length = _bounds(n, m)
    for o in range(length.max()):
        at = first + np.minimum(o, length - 1)
        if n % m == 0:
            v = lax.slice_in_dim(x, o, None, n // m, axis)
        elif m % n == 0:
            v = jnp.repeat(x, m // n, axis)
        else:
            v = jnp.take(x, at, axis, mode="clip")
        yield v, at, o < length


def _where(condition: np.ndarray, v: Array, axis: int) -> Array:
    """v where the condition on the place along the axis holds, 0 elsewhere."""
    if condition.all():
        return v
    return jnp.where(lax.broadcast_in_dim(jnp.asarray(condition), v.shape, (axis,)), v, 0)


def _side_by_side(x: Array, axis: int, m: int, filling: float) -> Array:
    """The m windows, (..., m, L, ...), those that are shorter than L filled up at their end."""
    n = x.shape[axis]
    first, length = _bounds(n, m)
    L = length.max()
    windows = (*x.shape[:axis], m, L, *x.shape[axis + 1 :])
    if n == m * L:
        return x.reshape(windows)
    at = np.minimum(first[:, None] + np.arange(L), n - 1)
    seen = jnp.take(x, at.reshape(-1), axis, mode="clip").reshape(windows)
    exists = lax.broadcast_in_dim(jnp.asarray(np.arange(L) < length[:, None]), windows, (axis, axis + 1))
    return jnp.where(exists, seen, jnp.asarray(filling, x.dtype))


def _is_long(n: int, m: int) -> bool:
    return n > m * LONG


def _sums(x: Array, axis: int, m: int) -> Array:
    if _is_long(x.shape[axis], m):
        return jnp.sum(_side_by_side(x, axis, m, 0.0), axis + 1)
    return add_up(_where(exists, v, axis) for v, _, exists in _views(x, axis, m))


def _over(y: Array, axis: int, n: int) -> Array:
    """y / l, for windows over n elements."""
    share = jnp.asarray(1 / _bounds(n, y.shape[axis])[1], y.dtype)
    return lax.mul(y, lax.broadcast_in_dim(share, y.shape, (axis,)))


def _largest(x: Array, axis: int, m: int) -> tuple[Array, Array | None]:
    """y and w along one axis; None for a w of nothing but zeros."""
    if _is_long(x.shape[axis], m):
        seen = _side_by_side(x, axis, m, -jnp.inf)
        w = jnp.argmax(seen, axis + 1, keepdims=True)
        y = jnp.take_along_axis(seen, w, axis + 1, mode="clip")
        w = w.astype(np.min_scalar_type(seen.shape[axis + 1] - 1))
        return jnp.squeeze(y, axis + 1), jnp.squeeze(w, axis + 1)
    (y, _, _), *others = _views(x, axis, m)
    if not others:
        return y, None
    w = jnp.zeros(y.shape, np.min_scalar_type(len(others)))
    for o, (v, _, _) in enumerate(others, 1):
        wins = ~(v <= y) & (y == y)
        y, w = jnp.where(wins, v, y), jnp.where(wins, jnp.asarray(o, w.dtype), w)
    return y, w


def _chosen(places: Array, w: Array | None, axis: int, m: int) -> Array:
    """The places of the elements that won along one axis."""
    first, _ = _bounds(places.shape[axis], m)
    if w is None:
        return jnp.take(places, first, axis, mode="clip")
    at = w.astype(jnp.int32) + lax.broadcast_in_dim(jnp.asarray(first, jnp.int32), w.shape, (axis,))
    return jnp.take_along_axis(places, at, axis, mode="clip")


def _put_back(dy: Array, w: Array | None, axis: int, n: int) -> Array:
    """dx along one axis: what element j was given by each of the windows that it lies in."""
    if w is None:
        return _sums(dy, axis, n)
    first, _ = _bounds(n, dy.shape[axis])
    terms = []
    for (v, i, exists), (won, _, _) in zip(_views(dy, axis, n), _views(w, axis, n), strict=True):
        own = lax.broadcast_in_dim(jnp.asarray(np.arange(n) - first[i], w.dtype), v.shape, (axis,))
        terms.append(_where(exists, jnp.where(won == own, v, 0), axis))
    return add_up(terms)


@called_as(adaptive_pool)
def reference(params: tuple[()], x: Array, counts, kind, with_indices) -> Array | tuple[Array, Array]:
    places = jnp.broadcast_to(jnp.arange(math.prod(x.shape[1:-1])).reshape(*x.shape[1:-1], 1), x.shape)
    start, add = (0.0, lax.add) if kind == "average" else (-jnp.inf, lax.max)
    for axis, m in reversed(list(enumerate(counts, 1))):
        n, parts, of_parts = x.shape[axis], [], []
        for i in range(m):
            part, of_part = (lax.slice_in_dim(v, i * n // m, -(-(i + 1) * n // m), axis=axis) for v in (x, places))
            sizes = [part.shape[a] if a == axis else 1 for a in range(x.ndim)]
            whole = lax.reduce_window(part, start, add, sizes, (1,) * x.ndim, "VALID")
            parts.append(whole / part.shape[axis] if kind == "average" else whole)
            of_parts.append(jnp.take_along_axis(of_part, jnp.argmax(part, axis, keepdims=True), axis))
        x, places = jnp.concatenate(parts, axis), jnp.concatenate(of_parts, axis)
    return (x, places.astype(jnp.int32)) if with_indices else x


RULE = Rule(
    "adaptive_pool",
    adaptive_pool,
    reference,
    cases=(
        Case(
            "average, 2-D, sharing elements",
            Real("N H W C"),
            {"counts": (7, 7)},
            never_empty=("H", "W"),
            timed={"N": 16, "H": 32, "W": 32, "C": 32},
        ),
        Case("average, 3-D", Real("N D H W C"), {"counts": (4, 3, 2)}, never_empty=("D", "H", "W")),
        Case("max, 1-D, sharing elements", Real("N T C"), {"counts": (5,), "kind": "max"}, never_empty=("T",)),
        Case(
            "max, 2-D, with indices",
            Real("N H W C", points=(1.0,) * 24),
            {"counts": (4, 3), "kind": "max", "with_indices": True},
            never_empty=("H", "W"),
        ),
    ),
    cite="He et al., 'Spatial pyramid pooling in deep convolutional networks' (2014), arXiv:1406.4729, section 2.3",
    covers=("adaptive_avg_pool2d", "adaptive_max_pool2d", "spatial pyramid pooling"),
)
