"""squared_relu: y = max(x, 0)^2, element by element.

Differential: delta y = 2 max(x, 0) delta x, so the adjoint is

    dx = dy 2 max(x, 0)                                                   x, y, dy, dx: one shape

The derivative is continuous; it is its slope that jumps, from 0 to 2 at x = 0, where jax takes 0.

Cached: x alone. sqrt(y) would tell max(x, 0) as well, but not where y underflows.

Numerical care: each of y and dx rounds once or twice; y overflows where x exceeds the root of the largest number.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def squared_relu() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = max(x, 0)^2 for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        r = jnp.where(x <= 0, 0, x)
        return r * r, InputCache(x)

    def slope(cache):
        return 2 * cache.x

    def flat(cache):
        return cache.x <= 0

    return elementwise("squared_relu", g, slope, flat)


def reference(params: tuple[()], x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


RULE = Rule(
    "squared_relu",
    squared_relu,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="arXiv:2109.08668, section 3.2",
)
