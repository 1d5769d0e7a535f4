"""sort: y is x in ascending order along one axis.

Forward, with p the permutation that sorts a line of n elements, all other axes apart:

    y_j = x_{p_j},   y_1 <= y_2 <= ... <= y_n                             y, x: one shape

Stable: equal elements keep their order. NaN comes last.

Differential: while no two elements are equal, a small change of x leaves p as it is, and delta y_j = delta x_{p_j}.
A permutation matrix has its inverse as its transpose, so the adjoint puts everything back where it came from:

    dx_{p_j} = dy_j                                                       dx: as x

Kinks: where elements are equal, their order changes with them; p, the stable one, is taken, as in `jnp.sort`.

Cached: p alone, in the smallest integers that hold n: one byte an element up to n = 256, two up to 65536.

Numerical care: nothing is computed, both directions are exact. The backward is a scatter to distinct places, told so;
to sort by p again would do as well, at the price of the forward.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, UInt

from bpref.formulas.along_axis import axis_of, scalar_as_line
from bpref.formulas.indices import add_along, smallest_integer
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class SortCache(NamedTuple):
    permutation: UInt[Array, "..."]


def sort(axis: int = -1) -> Layer[tuple[()], Array, Reals, SortCache]:
    """y = x in ascending order along an axis.

    Args:
      axis: the axis that is sorted along, counted from the last if negative.

    Returns:
      A layer with params `()`, x of any shape and y of x's shape and dtype; a scalar is a line of one element. Equal
      elements keep their order; NaN comes last.

    Raises:
      ValueError: x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "sort"

    def forward(params, x: Float[Array, "..."]):
        along = axis_of(who, "x", x, axis)
        places = lax.broadcasted_iota(smallest_integer(x.shape[along]), x.shape, along)
        y, permutation = lax.sort((x, places), dimension=along, num_keys=1, is_stable=True)
        return y, SortCache(permutation)

    def backward(params, cache, dy):
        return (), add_along(jnp.zeros_like(dy), cache.permutation, dy, axis % dy.ndim, unique=True)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def reference(params: tuple[()], x: Array, axis: int = -1) -> Array:
    return jnp.sort(x, axis)


RULE = Rule(
    "sort",
    sort,
    reference,
    cases=(
        Case("last axis", Real("N n"), timed={"N": 128, "n": 512}),
        Case("middle axis, with ties", Real("N n d", points=(1.0, 1.0, 1.0, -4.0, -4.0)), {"axis": 1}),
    ),
    cite="Blondel et al., 'Fast differentiable sorting and ranking', arXiv:2002.08871, section 2",
    covers=("argsort",),
)
