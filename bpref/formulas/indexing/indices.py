"""What layers that take indices share: their input checked, places kept small, and sums into them.

Indices are read as `jax.numpy` reads them: a negative one counts from the end; one beyond either end takes NaN, and
adds nowhere. The cotangent of what was taken NaN for is dropped.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int, UInt

from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.indexing.along_axis import axis_of


class DataAndIndices(NamedTuple):
    data: Float[Array, "*n"]
    indices: Int[Array, "*m"]


class DataAndIds(NamedTuple):
    data: Float[Array, " N *n"]
    ids: Int[Array, " N"]


class PlacesCache(NamedTuple):
    places: UInt[Array, "..."]
    shape: Float[Array, "0 ..."]


def indexed_axis(who: str, data: Array, axis: int) -> int:
    """`axis` of data counted from the first; raises `ValueError` unless there is something along it."""
    along = axis_of(who, "data", data, axis)
    if data.shape[along] == 0:
        raise ValueError(f"{who}: data has shape {data.shape}, expected at least one element in axis {along}")
    return along


def axis_of_each(who: str, data: Array, indices: Array, axis: int) -> int:
    """The same; raises `ValueError` too unless indices have data's shape but for this axis."""
    along = indexed_axis(who, data, axis)
    expected = (*data.shape[:along], "M", *data.shape[along + 1 :])
    if indices.ndim != data.ndim or any(n not in (m, "M") for n, m in zip(expected, indices.shape, strict=True)):
        text = ", ".join(map(str, expected))
        raise ValueError(f"{who}: indices has shape {indices.shape}, expected ({text}), data's but for axis {along}")
    return along


def smallest_integer(n: int) -> np.dtype:
    """The smallest unsigned dtype that holds the indices below n."""
    return np.min_scalar_type(max(n - 1, 0))


def placed(indices: Array, n: int, wrap: bool = True) -> Array:
    """Indices along n elements for a cache: from 0 to n - 1, and n for nowhere, in the smallest unsigned integers.

    `wrap` says whether those from -n to -1 count from the end, or are nowhere.
    """
    wide = widen_integers(indices)
    if wrap:
        wide = jnp.where(wide < 0, wide + n, wide)
    return jnp.where((wide >= 0) & (wide < n), wide, n).astype(smallest_integer(n + 1))


def add_rows(to: Array, indices: Array, rows: Array, axis: int) -> Array:
    """`to` and, at each index along an axis, the slice of `rows` that belongs to it; summed in at least float32."""
    at = (slice(None),) * axis + (widen_integers(indices),)
    return cast(widen(to).at[at].add(widen(rows), mode="drop"), to.dtype)


def add_along(to: Array, indices: Array, values: Array, axis: int, unique: bool = False) -> Array:
    """`to` and each value at its own index along an axis, all other coordinates as they are; as `add_rows` sums."""
    others = tuple(k for k in range(indices.ndim) if k != axis)
    numbers = lax.ScatterDimensionNumbers((), (axis,), (axis,), others, others)
    mode = "promise_in_bounds" if unique else "drop"
    at = widen_integers(indices)[..., None]
    return cast(lax.scatter_add(widen(to), at, widen(values), numbers, unique_indices=unique, mode=mode), to.dtype)


def of_segments(rows: Array, ids: Array, of_none: float = 0.0) -> Array:
    """For each id its segment's row, `of_none` for an id from `placed` that is nowhere."""
    return jnp.take(rows, widen_integers(ids), axis=0, mode="fill", fill_value=of_none)
