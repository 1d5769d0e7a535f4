"""soft_shrink: y = x - l where x > l, x + l where x < -l, 0 between, element by element.

It is the minimiser of 1/2 (y - x)^2 + l |y|, the proximal map of the absolute value.

Differential: delta y = [|x| > l] delta x, so the adjoint passes the cotangent outside of the kinks:

    dx = dy [|x| > l]                                                     x, y, dy, dx: one shape

At the kinks x = -l and x = l the subgradient is 0, as in PyTorch.

Cached: whether |x| > l, one byte an element. Neither x nor y is needed.

Numerical care: none; y is one difference, rounded once, and the backward is exact.
"""

import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_non_negative
from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def soft_shrink(size: float = 0.5) -> Layer[tuple[()], Array, Reals, PassingCache]:
    """x brought nearer to 0 by `size`, and 0 where it is no farther off, for x of any shape.

    Raises:
      ValueError: `size`, which is l, is negative or not finite.
      TypeError: x is not floating-point.
    """
    size = require_non_negative("soft_shrink", "size", size)

    def g(x):
        y = jnp.where(x > size, x - size, jnp.where(x < -size, x + size, jnp.where(jnp.isnan(x), x, 0)))
        return y, PassingCache(abs(x) > size)

    return elementwise("soft_shrink", g)


def reference(params: tuple[()], x: Array, size: float = 0.5) -> Array:
    return jnp.where(x > size, x - size, 0) + jnp.where(x < -size, x + size, 0)


RULE = Rule(
    "soft_shrink",
    soft_shrink,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 0.5, -0.5, 1e4, -1e4)),
            {"size": Interval(0.0, 2.0, 0.5)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="Donoho, 'De-noising by soft-thresholding' (1995)",
    covers=("softshrink", "soft_thresholding"),
)
