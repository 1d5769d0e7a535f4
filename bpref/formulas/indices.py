"""What layers that take indices share: their input checked, places kept small, and sums into them.

Indices are read as `jax.numpy` reads them: a negative one counts from the end; one beyond either end takes NaN, and
adds nowhere. The cotangent of what was taken NaN for is dropped.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from bpref.dtypes import cast, require_floating, require_integer, widen, widen_integers
from bpref.formulas.tuples import as_arrays


def require_indexed(who: str, name: str, data: Any, index_name: str, indices: Any) -> None:
    """Raise `TypeError` unless `data` is floating-point and the indices are integers."""
    require_floating(who, name, data)
    require_integer(who, index_name, indices)


def require_some(who: str, name: str, data: Any, axis: int) -> None:
    """Raise `ValueError` when there is nothing along the axis that is indexed."""
    if data.shape[axis] == 0:
        raise ValueError(f"{who}: {name} has shape {data.shape}, expected at least one element in axis {axis}")


def smallest_integer(n: int) -> Any:
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
    others = (lax.broadcasted_iota(widen_integers(indices).dtype, indices.shape, k) for k in range(indices.ndim))
    at = tuple(widen_integers(indices) if k == axis else i for k, i in enumerate(others))
    mode = "promise_in_bounds" if unique else "drop"
    return cast(widen(to).at[at].add(widen(values), mode=mode, unique_indices=unique), to.dtype)


def as_segments(who: str, x: Any) -> tuple[Array, Array]:
    """`x` as data (N, ...) and integer ids (N,); raises `TypeError` or `ValueError` otherwise."""
    data, ids = as_arrays(who, ("data", "ids"), x)
    require_indexed(who, "data", data, "ids", ids)
    if data.ndim == 0:
        raise ValueError(f"{who}: data is a scalar, expected (N, ...)")
    if ids.shape != data.shape[:1]:
        raise ValueError(f"{who}: ids has shape {ids.shape}, expected {data.shape[:1]}, one for each row of data")
    return data, widen_integers(ids)


def of_segments(rows: Array, ids: Array, of_none: float = 0.0) -> Array:
    """For each id its segment's row, `of_none` for an id from `placed` that is nowhere."""
    return jnp.take(rows, widen_integers(ids), axis=0, mode="fill", fill_value=of_none)
