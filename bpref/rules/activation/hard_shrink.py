"""hard_shrink: y = x where |x| > l, 0 elsewhere, element by element.

Differential: delta y = [|x| > l] delta x, since the places where y jumps are two points. The adjoint is

    dx = dy [|x| > l]                                                     x, y, dy, dx: one shape

At the jumps x = -l and x = l, where y is 0, so is the derivative that is taken, as in PyTorch.

Cached: whether |x| > l, one byte an element. The output tells it too, except where l and x are 0.

Numerical care: none; the forward and the backward are exact.
"""

import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_non_negative
from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def hard_shrink(size: float = 0.5) -> Layer[tuple[()], Array, Reals, PassingCache]:
    """y = x where |x| > `size`, 0 elsewhere, for x of any shape.

    Raises:
      ValueError: `size`, which is l, is negative or not finite.
      TypeError: x is not floating-point.
    """
    size = require_non_negative("hard_shrink", "size", size)

    def g(x):
        return jnp.where(abs(x) <= size, 0, x), PassingCache(abs(x) > size)

    return elementwise("hard_shrink", g)


def reference(params: tuple[()], x: Array, size: float = 0.5) -> Array:
    return jnp.where((x >= -size) & (x <= size), 0, x)


RULE = Rule(
    "hard_shrink",
    hard_shrink,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 0.5, -0.5, 1e4, -1e4)),
            {"size": Interval(0.0, 2.0, 0.5)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="Donoho and Johnstone, 'Ideal spatial adaptation by wavelet shrinkage' (1994), hard thresholding",
    covers=("hardshrink", "hard_thresholding"),
)
