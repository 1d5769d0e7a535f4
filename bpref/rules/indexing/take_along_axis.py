"""take_along_axis: y_rm = x_{r, i_rm}, an element for each index, every line along the axis with its own indices.

Forward, with r the coordinates on all axes but one, which has n elements in x and M in the indices i:

    y_rm = x_{r, i_rm}                                                    x: (R..., n), i, y: (R..., M)

An index below 0 counts from the end; one outside [-n, n) takes NaN, as in `jnp.take_along_axis`.

Differential: delta y_rm = delta x_{r, i_rm}, a matrix of zeros and ones for each line. Its transpose adds up the
cotangents of all places that took an element:

    dx_rk = sum_m [i_rm = k] dy_rm                                        dx: (R..., n)

and 0 where none did. What was taken from outside has nowhere to go, and is dropped. The indices are integers: None.

Cached: the indices, as places from 0 to n - 1 with n for nowhere, in the smallest integers: one byte up to n = 255,
two up to 65535. Of x nothing but its shape is needed, which an array without elements remembers.

Numerical care: half precision is summed in float32 and rounded once; the order of the sum is the device's.
"""

import jax.numpy as jnp
from jax import Array

from bpref.dtypes import widen_integers
from bpref.formulas.indexing.indices import DataAndIndices, PlacesCache, add_along, axis_of_each, placed
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule


def take_along_axis(axis: int = -1) -> Layer[tuple[()], tuple[Array, Array], Reals, PlacesCache]:
    """y = x at the indices along an axis, element by element.

    Args:
      axis: the axis that is indexed, counted from the last if negative.

    Returns:
      A layer with params `()`, x `(data, indices)`, two arrays that agree in all axes but this one, n elements of
      data and M indices along it, and y of the indices' shape. Indices from -n to -1 count from the end; where an
      index is outside `[-n, n)`, y is NaN and the cotangent is dropped. dx is `(ddata, None)`.

    Raises:
      ValueError: data has no such axis, or nothing along it; the shapes differ in another axis.
      TypeError: x is no pair; data is not floating-point; the indices are not integers.
    """
    who = "take_along_axis"

    def forward(params, x: DataAndIndices):
        data, indices = x
        along = axis_of_each(who, data, indices, axis)
        places = placed(indices, data.shape[along])
        y = jnp.take_along_axis(data, widen_integers(indices), along, mode="fill")
        return y, PlacesCache(places, shape_keeper(data))

    def backward(params, cache, dy):
        places, shape = cache
        return (), (add_along(jnp.zeros(shape.shape[1:], dy.dtype), places, dy, axis % dy.ndim), None)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], axis: int = -1) -> Array:
    return jnp.take_along_axis(*x, axis=axis)


RULE = Rule(
    "take_along_axis",
    take_along_axis,
    reference,
    cases=(
        Case(
            "last axis", (Real("N n"), Integer("N M", 0, "n")), never_empty=("n",), timed={"N": 512, "n": 512, "M": 512}
        ),
        Case("middle axis, from either end", (Real("N n d"), Integer("N M d", -1, 1)), {"axis": 1}, never_empty=("n",)),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.2: the adjoint of an assignment adds",
    covers=("torch.gather",),
)
