"""silu: y = x s(x), element by element, with s(x) = 1 / (1 + exp(-x)); also known as swish.

Differential: s' = s (1 - s), so delta y = (s(x) + x s(x) (1 - s(x))) delta x, and the adjoint is

    dx = dy s(x) (1 + x (1 - s(x)))                                       x, y, dy, dx: one shape

Cached: x alone. y is not monotonic, so it does not determine the derivative; s(x) is cheaper to compute
again than to keep, and x is what precision needs.

Numerical care: for very negative x the derivative is the product of exp(x) and 1 + x, with the relative precision of
either. For positive x, 1 - s(x) cancels, but beside 1: before s(x) is 1, at x = 17 in float32, x times its error is a
few units in the last place of the derivative. s(-x) would be exact, for a second exponential and 1.2 times the time.
An infinity is multiplied as the farthest finite number: y is -0 at -inf, and the slope 0 there and 1 at +inf.
"""

import jax
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import above_infinity, elementwise, finite
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def silu() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = x / (1 + exp(-x)) for x of any shape; raises `TypeError` when x is not floating-point."""
    s = jax.lax.logistic

    def g(x):
        return above_infinity(x) * s(x), InputCache(x)

    def slope(cache):
        x = cache.x
        s_x = s(x)
        return s_x * (1 + finite(x) * (1 - s_x))

    return elementwise("silu", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.silu(x)


RULE = Rule(
    "silu",
    silu,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="arXiv:1702.03118",
)
