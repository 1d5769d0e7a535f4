"""hard_swish: y = x h(x), element by element, with h(x) = min(max(x + 3, 0), 6) / 6.

Differential: delta h = [|x| < 3] / 6 delta x, and delta y = h delta x + x delta h. Inside, h = (x + 3) / 6, and
the sum is (2 x + 3) / 6; outside, h is 0 or 1. The adjoint is

    dx = dy (0 where x <= -3, (2 x + 3) / 6 where |x| < 3, 1 where x >= 3)    x, y, dy, dx: one shape

At the kinks the subgradient is 0 at x = -3 and 1 at x = 3, as in `jax.nn.hard_swish`: that of the flat side.

Cached: x alone.

Numerical care: 2 x is exact, so the derivative inside rounds once in the sum and once in the quotient, where
h + x / 6 rounds four times and cancels near x = -3/2.
max(x, -3) h is x h, and -0 at -inf, where 0 times infinity is NaN.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def hard_swish() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = x min(max(x + 3, 0), 6) / 6 for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        h = jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (x + 3) / 6))
        return jnp.maximum(x, -3) * h, InputCache(x)

    def slope(cache):
        x = cache.x
        return jnp.where(abs(x) < 3, (2 * x + 3) / 6, (x > 0).astype(x.dtype))

    return elementwise("hard_swish", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.hard_swish(x)


RULE = Rule(
    "hard_swish",
    hard_swish,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 3.0, -3.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="arXiv:1905.02244, section 5.2",
)
