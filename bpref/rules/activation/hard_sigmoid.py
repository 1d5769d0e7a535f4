"""hard_sigmoid: y = relu6(x + 3) / 6 = min(max(x + 3, 0), 6) / 6, element by element.

Differential: delta y = [|x| < 3] / 6 delta x, so the adjoint is

    dx = dy [|x| < 3] / 6                                                 x, y, dy, dx: one shape

At the kinks x = -3 and x = 3 the subgradient is 0, as in `jax.nn.hard_sigmoid`.

Cached: whether x is inside, one byte an element. The slope takes two values, and this tells which.

Numerical care: the kinks are looked for in x and not in x + 3, whose rounding moves them.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def hard_sigmoid() -> Layer[tuple[()], Array, Reals, PassingCache]:
    """y = min(max(x + 3, 0), 6) / 6 for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        y = jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (x + 3) / 6))
        return y, PassingCache(abs(x) < 3)

    def slope(cache):
        return jnp.full(cache.passes.shape, 1 / 6)

    def flat(cache):
        return ~cache.passes

    return elementwise("hard_sigmoid", g, slope, flat)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.hard_sigmoid(x)


RULE = Rule(
    "hard_sigmoid",
    hard_sigmoid,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 3.0, -3.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="arXiv:1905.02244, section 5.2",
)
