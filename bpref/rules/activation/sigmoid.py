"""sigmoid: y = 1 / (1 + exp(-x)), element by element.

Differential: delta y = exp(-x) / (1 + exp(-x))^2 delta x. The first factor is y (1 - y), so the adjoint is

    dx = dy y (1 - y)                                                     x, y, dy, dx: one shape

Cached: y alone. The derivative is a function of the output, and the next layer keeps that output anyway.

Numerical care: for y >= 1/2 the difference 1 - y is exact, and for small y it does not cancel, so the
derivative is as good as the y that was kept: accurate to a few units in the last place on the left, and only to
a fraction of a unit in the last place of 1 on the right, where y rounds to 1.
"""

import jax
from jax import Array

from bpref.formulas.caches import OutputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def sigmoid() -> Layer[tuple[()], Array, Reals, OutputCache]:
    """y = 1 / (1 + exp(-x)) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        y = jax.lax.logistic(x)
        return y, OutputCache(y)

    def slope(cache):
        return cache.y * (1 - cache.y)

    return elementwise("sigmoid", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.sigmoid(x)


RULE = Rule(
    "sigmoid",
    sigmoid,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Rumelhart, Hinton and Williams, 'Learning representations by back-propagating errors' (1986), equation 2",
)
