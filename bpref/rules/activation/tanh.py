"""tanh: y = tanh(x), element by element.

Differential: delta y = (1 - tanh(x)^2) delta x. The adjoint of an elementwise function is a product:

    dx = dy (1 - y^2)                                                     x, y, dy, dx: one shape

Cached: y alone. The derivative is a function of the output, and the next layer keeps that output anyway.

Numerical care: 1 - y^2 is computed as (1 - y)(1 + y), whose factors are exact or round once, where
squaring first would cancel near |y| = 1.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import OutputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def tanh() -> Layer[tuple[()], Array, Reals, OutputCache]:
    """y = tanh(x) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        y = jnp.tanh(x)
        return y, OutputCache(y)

    def slope(cache):
        return (1 - cache.y) * (1 + cache.y)

    return elementwise("tanh", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.tanh(x)


RULE = Rule(
    "tanh",
    tanh,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0)), timed={"N": 512, "d": 2048}),),
    cite="LeCun et al., 'Efficient BackProp' (1998), section 4.4",
)
