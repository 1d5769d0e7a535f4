"""softsign: y = x / (1 + |x|), element by element.

Differential: by the quotient rule delta y = ((1 + |x|) - x sign(x)) / (1 + |x|)^2 delta x, and x sign(x) = |x|:

    dx = dy / (1 + |x|)^2                                                 x, y, dy, dx: one shape

There is no kink: the derivative at x = 0 is 1 from both sides.

Cached: x alone. The output would do, since 1 / (1 + |x|) = 1 - |y|, but that difference cancels as |y| nears 1,
and the tails here are long.

Numerical care: the reciprocal is taken first and squared after, so that the square does not overflow.
An infinity is divided as the farthest finite number, and y is -1 or 1 there.
"""

import jax
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise, finite
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def softsign() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = x / (1 + |x|) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        v = finite(x)
        return v / (1 + abs(v)), InputCache(x)

    def slope(cache):
        r = 1 / (1 + abs(cache.x))
        return r * r

    return elementwise("softsign", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.soft_sign(x)


RULE = Rule(
    "softsign",
    softsign,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Bergstra et al., 'Quadratic polynomials learn better image features' (2009)",
)
