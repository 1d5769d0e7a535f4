"""sort: y is x in ascending order along one axis, or in descending order.

Forward, with p the permutation that sorts a line of n elements, all other axes apart:

    y_j = x_{p_j},   y_1 <= y_2 <= ... <= y_n                             y, x: one shape

Descending, y_1 >= y_2 >= ... >= y_n. Stable either way: equal elements keep their order. NaN comes last, descending
first. With indices p is given too; integers, they have no cotangent.

Differential: while no two elements are equal, a small change of x leaves p as it is, and delta y_j = delta x_{p_j}.
A permutation matrix has its inverse as its transpose, so the adjoint puts everything back where it came from:

    dx_{p_j} = dy_j                                                       dx: as x

Kinks: where elements are equal, their order changes with them; p, the stable one, is taken, as in `jnp.sort`.

Cached: p alone, in the smallest integers that hold n: one byte an element up to n = 256, two up to 65536.

Numerical care: nothing is computed, both directions are exact. The backward is a scatter to distinct places, told so;
to sort by p again would do as well, at the price of the forward. What is to descend is turned round, sorted, and turned
round again, so that equal elements keep their order without a sign that NaN would not take.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, UInt

from bpref.checks.hyperparameters import require_flags
from bpref.formulas.indexing.along_axis import axis_of, scalar_as_line
from bpref.formulas.indexing.indices import add_along, smallest_integer
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class SortCache(NamedTuple):
    permutation: UInt[Array, "..."]


def sort(
    axis: int = -1, descending: bool = False, with_indices: bool = False
) -> Layer[tuple[()], Array, Reals | tuple[Reals, Array], SortCache]:
    """y = x in ascending order along an axis, or in descending order.

    Args:
      axis: the axis that is sorted along, counted from the last if negative.
      descending: whether the largest comes first.
      with_indices: whether the permutation is given too.

    Returns:
      A layer with params `()`, x of any shape and y of x's shape and dtype; a scalar is a line of one element. Equal
      elements keep their order; NaN comes last, or first where it descends. With indices y is a pair
      `(values, indices)`, the indices int32; of dy, a pair too, only the values' is read.

    Raises:
      ValueError: x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "sort"
    require_flags(who, descending=descending, with_indices=with_indices)

    def forward(params, x: Float[Array, "..."]):
        along = axis_of(who, "x", x, axis)
        places = lax.broadcasted_iota(smallest_integer(x.shape[along]), x.shape, along)
        y, permutation = lax.sort(
            (turned(x, along), turned(places, along)), dimension=along, num_keys=1, is_stable=True
        )
        y, permutation = turned(y, along), turned(permutation, along)
        return (y, permutation.astype(jnp.int32)) if with_indices else y, SortCache(permutation)

    def turned(v, along):
        return lax.rev(v, (along,)) if descending else v

    def backward(params, cache, dy):
        dy = dy[0] if with_indices else dy
        if dy is None:
            return (), None
        return (), add_along(jnp.zeros_like(dy), cache.permutation, dy, axis % dy.ndim, unique=True)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def reference(
    params: tuple[()], x: Array, axis: int = -1, descending: bool = False, with_indices: bool = False
) -> Array | tuple[Array, Array]:
    if not descending and not with_indices:
        return jnp.sort(x, axis)
    p = jnp.argsort(x, axis, stable=True, descending=descending)
    y = jnp.take_along_axis(x, p, axis)
    return (y, p.astype(jnp.int32)) if with_indices else y


RULE = Rule(
    "sort",
    sort,
    reference,
    cases=(
        Case("last axis", Real("N n"), timed={"N": 128, "n": 512}),
        Case("middle axis, with ties", Real("N n d", points=(1.0, 1.0, 1.0, -4.0, -4.0)), {"axis": 1}),
        Case("descending", Real("N n"), {"descending": True}),
        Case(
            "descending, with ties and indices",
            Real("N n d", points=(1.0, 1.0, 1.0, -4.0, -4.0)),
            {"axis": 1, "descending": True, "with_indices": True},
        ),
    ),
    cite="Blondel et al., 'Fast differentiable sorting and ranking', arXiv:2002.08871, section 2",
    covers=("argsort",),
)
