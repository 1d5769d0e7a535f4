"""gather: y_m = x_{i_m}, slices of x along one axis, by integer index.

Forward, with data x of shape (n, ...), the axis written first, and integer indices i of any shape (M...):

    y_m = x_{i_m}                                                         y: (M..., ...)

An index below 0 counts from the end; one outside [-n, n) takes NaN, as in `jnp.take`.

Differential: delta y_m = delta x_{i_m}. Written with the matrix that chooses, P_mk = [i_m = k], y = P x, and the
adjoint is P^T: every row of x adds up the cotangents of all places that took it,

    dx_k = sum_m [i_m = k] dy_m                                           dx: (n, ...)

and 0 where none did. What was taken from outside has nowhere to go, and is dropped. The indices are integers: None.

Cached: the indices, as places from 0 to n - 1 with n for nowhere, in the smallest integers: one byte up to n = 255,
two up to 65535. Of x nothing but its shape is needed, which an array without elements remembers.

Numerical care: half precision is summed in float32 and rounded once, which matters where one row is taken often; the
order of the sum is the device's.
"""

import jax.numpy as jnp
from jax import Array

from bpref.dtypes import widen_integers
from bpref.formulas.indexing.indices import DataAndIndices, PlacesCache, add_rows, indexed_axis, placed
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule


def gather(axis: int = 0) -> Layer[tuple[()], tuple[Array, Array], Reals, PlacesCache]:
    """y = x at the indices along an axis, whole slices at a time.

    Args:
      axis: the axis that is indexed, counted from the last if negative.

    Returns:
      A layer with params `()`, x `(data, indices)`, data of shape `(..., n, ...)` with at least one element in that
      axis, integer indices of any shape, which takes the place of n in y. Indices from -n to -1 count from the end;
      where an index is outside `[-n, n)`, y is NaN and the cotangent is dropped. dx is `(ddata, None)`.

    Raises:
      ValueError: data has no such axis, or nothing along it.
      TypeError: x is no pair; data is not floating-point; the indices are not integers.
    """
    who = "gather"

    def forward(params, x: DataAndIndices):
        data, indices = x
        along = indexed_axis(who, data, axis)
        places = placed(indices, data.shape[along])
        return jnp.take(data, widen_integers(indices), axis=along, mode="fill"), PlacesCache(places, shape_keeper(data))

    def backward(params, cache, dy):
        places, shape = cache
        nothing = jnp.zeros(shape.shape[1:], dy.dtype)
        return (), (add_rows(nothing, places, dy, axis % nothing.ndim), None)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], axis: int = 0) -> Array:
    return jnp.take(*x, axis=axis)


RULE = Rule(
    "gather",
    gather,
    reference,
    cases=(
        Case("rows", (Real("n d"), Integer("M", 0, "n")), never_empty=("n",), timed={"n": 4096, "d": 64, "M": 16384}),
        Case("middle axis, from either end", (Real("N n d"), Integer("P Q", -1, 1)), {"axis": 1}, never_empty=("n",)),
        Case("one index", (Real("N n"), Integer("", 0, "n")), {"axis": -1}, never_empty=("n",)),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.2: the adjoint of an assignment adds",
    covers=("take", "index_select"),
)
