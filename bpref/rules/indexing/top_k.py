"""top_k: the k largest elements along one axis in descending order, or the k smallest in ascending order, and where.

Forward, with n elements in a line, all other axes apart, and i the indices of the largest:

    v_j = x_{i_j},   v_1 >= ... >= v_k >= every other element             v, i: (..., k), x: (..., n)

and with v_1 <= ... <= v_k <= every other element for the smallest. Equal elements come in the order of their indices.
NaN is larger than every number; among the smallest it counts as infinity.

Differential: while no two elements are equal, a small change of x leaves i as it is, and delta v_j = delta x_{i_j}.
Each element was chosen once at most, so the adjoint puts every cotangent back where its value came from:

    dx_{i_j} = dv_j                           0 where x was not chosen    (..., n)

The indices are integers, and have no cotangent.

Kinks: where elements are equal, the lower index is taken for the larger, as `lax.top_k` does.

Cached: the indices, in the smallest integers that hold n: one byte each up to n = 256, two up to 65536. Of x nothing
but its shape is needed, which an array without elements remembers.

Numerical care: nothing is computed, both directions are exact. The backward is a scatter to distinct places, told so.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, UInt

from bpref.checks.hyperparameters import require_count, require_flags
from bpref.formulas.indexing.along_axis import axis_of, scalar_as_line
from bpref.formulas.indexing.indices import add_along, smallest_integer
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class TopKCache(NamedTuple):
    indices: UInt[Array, "..."]
    shape: Float[Array, "0 ..."]


def top_k(k: int, axis: int = -1, smallest: bool = False) -> Layer[tuple[()], Array, tuple[Reals, Array], TopKCache]:
    """The k largest along an axis, in descending order, or the k smallest in ascending order, and their indices.

    Args:
      k: how many, from 0 to n.
      axis: the axis that is chosen along, counted from the last if negative.
      smallest: whether the smallest are chosen.

    Returns:
      A layer with params `()`, x `(..., n, ...)` and y a pair `(values, indices)`, both `(..., k, ...)`, the values
      in x's dtype, the indices int32. Of dy, a pair too, only the values' is read. Of a
      scalar, for k = 1, both are scalars.

    Raises:
      ValueError: k is not an integer of at least 0; x has no such axis, or fewer than k elements along it.
      TypeError: x is not floating-point.
    """
    who = "top_k"
    k = require_count(who, "k", k)
    require_flags(who, smallest=smallest)

    def forward(params, x: Float[Array, "..."]):
        along = axis_of(who, "x", x, axis)
        n = x.shape[along]
        if n < k:
            raise ValueError(f"{who}: x has shape {x.shape}, expected at least k = {k} elements in axis {along}")
        values, indices = _smallest(x, k, along) if smallest else lax.top_k(x, k, axis=along)
        return (values, indices), TopKCache(indices.astype(smallest_integer(n)), shape_keeper(x))

    def backward(params, cache, dy):
        indices, shape = cache
        dvalues = dy[0]
        if dvalues is None:
            return (), None
        nothing = jnp.zeros(shape.shape[1:], dvalues.dtype)
        return (), add_along(nothing, indices, dvalues, axis % dvalues.ndim, unique=True)

    layer = Layer(no_params, forward, backward, who)
    return scalar_as_line(layer, axis) if k == 1 else layer


def _smallest(x: Array, k: int, axis: int) -> tuple[Array, Array]:
    indices = lax.top_k(jnp.where(jnp.isnan(x), -jnp.inf, -x), k, axis=axis)[1]
    return jnp.take_along_axis(x, indices, axis), indices


def reference(params: tuple[()], x: Array, k: int, axis: int = -1, smallest: bool = False) -> tuple[Array, Array]:
    if smallest:
        indices = lax.slice_in_dim(jnp.argsort(x, axis), 0, k, axis=axis % x.ndim)
        return jnp.take_along_axis(x, indices, axis), indices.astype(jnp.int32)
    values, indices = lax.top_k(jnp.moveaxis(x, axis, -1), k)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(indices, -1, axis)


RULE = Rule(
    "top_k",
    top_k,
    reference,
    cases=(
        Case("last axis", Real("N n"), {"k": 3}, least={"n": 3}, timed={"N": 512, "n": 1024}),
        Case("middle axis, with ties", Real("N n d", points=(4.0,) * 9), {"k": 2, "axis": 1}, least={"n": 2}),
        Case(
            "the smallest, with ties",
            Real("N n d", points=(-4.0,) * 9),
            {"k": 2, "axis": 1, "smallest": True},
            least={"n": 2},
        ),
    ),
    cite="Shazeer et al., 'Outrageously large neural networks', arXiv:1701.06538, equation 5 (KeepTopK)",
    covers=("topk",),
)
