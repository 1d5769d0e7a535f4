"""selu: y = scale elu(x) with elu's alpha fixed, element by element:

    y = scale (x where x > 0, alpha (exp(x) - 1) where x <= 0),   scale = 1.0507...,   alpha = 1.6732...

the pair for which mean 0 and variance 1 are a stable fixed point from layer to layer.

Differential: delta y = scale delta x where x > 0, scale alpha exp(x) delta x elsewhere, so the adjoint is

    dx = dy scale (1 where x > 0, alpha exp(x) where x <= 0)              x, y, dy, dx: one shape

At the kink x = 0 the subgradient is scale alpha, as in `jax.nn.selu`.

Cached: x alone. The output would do, since scale alpha exp(x) = y + scale alpha, but that sum cancels as y
nears -scale alpha.

Numerical care: exp(x) - 1 is expm1(x). Both branches are computed for every x, so the exponential takes
min(x, 0), which cannot overflow; for x > 0 the forward's expm1(0) = 0 then adds nothing to max(x, 0).
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule

ALPHA = 1.6732632423543772848170429916717
SCALE = 1.0507009873554804934193349852946


def selu() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = scale elu(x, alpha) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        y = jnp.where(x > 0, x, ALPHA * jnp.expm1(jnp.where(x > 0, 0, x)))
        return SCALE * y, InputCache(x)

    def slope(cache):
        return jnp.where(cache.x > 0, SCALE, SCALE * ALPHA * jnp.exp(jnp.minimum(cache.x, 0)))

    return elementwise("selu", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.selu(x)


RULE = Rule(
    "selu",
    selu,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="arXiv:1706.02515",
)
