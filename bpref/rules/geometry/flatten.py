"""flatten: several axes that follow one another made one.

Forward, with x of shape (*a, n_1, ..., n_k, *b) and the last of the axes running fastest:

    y[a, (...(i_1 n_2 + i_2) n_3 + ...) n_k + i_k, b] = x[a, i_1, ..., i_k, b]       (*a, n_1 ... n_k, *b)

Differential: delta y has the elements of delta x at the same places, each once, so the adjoint puts them back:

    dx[a, i_1, ..., i_k, b] = dy[a, (...(i_1 n_2 + i_2) n_3 + ...) n_k + i_k, b]     dx: as x

Cached: x's shape, in an array of no elements.

Numerical care: nothing is computed.
"""

import math
from typing import NamedTuple

from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import is_integer
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class FlattenCache(NamedTuple):
    of_x: Array


def flatten(start: int = 1, end: int = -1) -> Layer[tuple[()], Array, Reals, FlattenCache]:
    """The axes from `start` to `end`, both of them too, as one; as it is called, a row for each example.

    Args:
      start, end: the first and the last of the axes; from the end where negative.

    Returns:
      A layer with params `()`, x `(*a, n_1, ..., n_k, *b)` and y `(*a, n_1 ... n_k, *b)`.

    Raises:
      ValueError: `start` or `end` is no integer; x has no such axis; `start` stands behind `end`.
      TypeError: x is not floating-point.

    Example:
      >>> flatten().forward((), jnp.ones((2, 3, 4, 5)))[0].shape
      (2, 60)
    """
    who = "flatten"
    for name, axis in (("start", start), ("end", end)):
        if not is_integer(axis):
            raise ValueError(f"{who}: {name} is {axis!r}, expected an integer")

    def forward(params, x: Float[Array, "..."]):
        rank = x.ndim
        for name, axis in (("start", start), ("end", end)):
            if not -rank <= axis < rank:
                raise ValueError(f"{who}: x has shape {x.shape}, expected an axis {axis}, its {name}")
        first, last = start % rank, end % rank
        if first > last:
            raise ValueError(
                f"{who}: x has shape {x.shape}, in which its start, axis {start}, is behind its end, {end}"
            )
        shape = (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])
        return x.reshape(shape), FlattenCache(shape_keeper(x))

    def backward(params, cache, dy):
        return (), dy.reshape(cache.of_x.shape[1:])

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: Array, start: int = 1, end: int = -1) -> Array:
    first, last = start % x.ndim, end % x.ndim
    for _ in range(last - first):
        n, m = x.shape[first : first + 2]
        merged = (*x.shape[:first], n * m, *x.shape[first + 2 :])
        x = x.reshape(merged)
    return x


RULE = Rule(
    "flatten",
    flatten,
    reference,
    cases=(
        Case("examples", Real("N H W C"), timed={"N": 32, "H": 32, "W": 32, "C": 64}),
        Case("axes in between", Real("A B T d"), {"start": -3, "end": 2}),
    ),
    cite="the adjoint of a reordering of elements",
    covers=("reshape", "view"),
)
