"""mish: y = x t(x), element by element, with t(x) = tanh(log(1 + exp(x))).

With E = exp(x), tanh(log(1 + E)) = ((1 + E)^2 - 1) / ((1 + E)^2 + 1), so that

    t = E (E + 2) / D,    D = E (E + 2) + 2.

Differential: delta t = 4 E (1 + E) / D^2 delta x, and delta y = t delta x + x delta t, so the adjoint is

    dx = dy (t + x 4 E (1 + E) / D^2)                                     x, y, dy, dx: one shape

Cached: x alone. y is not monotonic, so it does not determine the derivative.

Numerical care: t and its derivative are ratios of sums of positive terms, so neither cancels at either end,
where 1 - tanh^2 would; D^2 is divided out one D at a time. Beyond x = 40, t is 1 and its derivative times x is
below 1e-32: taking min(x, 40) there changes no bit and keeps E^2 from overflowing.
-inf is multiplied as the lowest finite number: y is -0 and its slope 0 there.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import above_infinity, elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule

LARGE = 40.0


def mish() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = x tanh(log(1 + exp(x))) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        v = above_infinity(x)
        E = jnp.exp(jnp.minimum(v, LARGE))
        N = E * (E + 2)
        return v * (N / (N + 2)), InputCache(x)

    def slope(cache):
        x = jnp.minimum(above_infinity(cache.x), LARGE)
        E = jnp.exp(x)
        N = E * (E + 2)
        D = N + 2
        return (N + x * (4 * E * (1 + E) / D)) / D

    return elementwise("mish", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.mish(x)


RULE = Rule(
    "mish",
    mish,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="arXiv:1908.08681",
)
