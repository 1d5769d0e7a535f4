"""scatter_add: y = x, and at each index along one axis the update that belongs to it, added.

Forward, with data x of shape (n, ...), the axis written first, M integer indices i and updates u of shape (M, ...):

    y_k = x_k + sum_m [i_m = k] u_m                                       y: (n, ...)

An index below 0 counts from the end; one outside [-n, n) adds nowhere, as in `x.at[i].add(u)`.

Differential: delta y_k = delta x_k + sum_m [i_m = k] delta u_m. x passes through; the factor of delta u_m is the
cotangent of the one place that it was added to:

    dx_k = dy_k                                                           (n, ...)
    du_m = dy_{i_m}                           0 where i_m is outside      (M, ...)

so that a gather is the adjoint of a scatter, as `gather` has it the other way round. The indices are integers: None.

Cached: the indices, as places from 0 to n - 1 with n for nowhere, in the smallest integers: one byte up to n = 255,
two up to 65535. The map is linear in x and u, whose values are not needed.

Numerical care: half precision is summed in float32 and rounded once; the order of the sum is the device's. The
backward only moves numbers, and is exact.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, UInt

from bpref.checks.shapes import require_shape
from bpref.dtypes import widen_integers
from bpref.formulas.indexing.indices import add_rows, indexed_axis, placed
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule


class Updated(NamedTuple):
    data: Float[Array, "*n"]
    indices: Int[Array, " M"]
    updates: Float[Array, "*m"]


class ScatterAddCache(NamedTuple):
    places: UInt[Array, " M"]


def scatter_add(axis: int = 0) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, ScatterAddCache]:
    """y = data, with the updates added at the indices along an axis; an index may come often.

    Args:
      axis: the axis that is indexed, counted from the last if negative.

    Returns:
      A layer with params `()`, x `(data, indices, updates)`: data of shape `(..., n, ...)`, indices `(M,)`, updates
      `(..., M, ...)` of data's dtype, and y of data's shape. Indices from -n to -1 count from the end; an update
      whose index is outside `[-n, n)` is added nowhere, and has a cotangent of 0. dx is `(ddata, None, dupdates)`.

    Raises:
      ValueError: data has no such axis, or nothing along it; the shapes do not fit.
      TypeError: x is no triple; data is not floating-point; the indices are not integers; the updates have another
        dtype.
    """
    who = "scatter_add"

    def forward(params, x: Updated):
        data, indices, updates = x
        along = indexed_axis(who, data, axis)
        expected = (*data.shape[:along], indices.shape[0], *data.shape[along + 1 :])
        require_shape(who, "updates", updates, expected, f"data's with M in axis {along}")
        return add_rows(data, indices, updates, along), ScatterAddCache(placed(indices, data.shape[along]))

    def backward(params, cache, dy):
        places = widen_integers(cache.places)
        return (), (dy, None, jnp.take(dy, places, axis=axis, mode="fill", fill_value=0))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array, Array], axis: int = 0) -> Array:
    data, indices, updates = x
    return jnp.moveaxis(jnp.moveaxis(data, axis, 0).at[indices].add(jnp.moveaxis(updates, axis, 0)), 0, axis)


RULE = Rule(
    "scatter_add",
    scatter_add,
    reference,
    cases=(
        Case(
            "rows",
            (Real("n d"), Integer("M", 0, "n"), Real("M d")),
            never_empty=("n",),
            timed={"n": 4096, "d": 64, "M": 16384},
        ),
        Case(
            "middle axis, some outside",
            (Real("N n d"), Integer("M", -1, 1, points=(-70, 99)), Real("N M d")),
            {"axis": 1},
            never_empty=("n",),
        ),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.2: the adjoint of an increment copies",
    covers=("index_add",),
)
