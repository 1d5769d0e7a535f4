"""leaky_relu: y = x where x >= 0, a x where x < 0, element by element, with a the negative slope.

Differential: delta y = delta x where x >= 0, a delta x elsewhere, so the adjoint is

    dx = dy (1 where x >= 0, a where x < 0)                               x, y, dy, dx: one shape

At the kink x = 0 the subgradient is 1, as in `jax.nn.leaky_relu` (and unlike relu, where it is 0).

Cached: the sign of x, one byte an element. The slope takes two values, and the sign tells which.

Numerical care: none; each element is copied or multiplied once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from bpref.checks.hyperparameters import require_non_negative
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


class LeakyReluCache(NamedTuple):
    nonnegative: Bool[Array, "..."]


def leaky_relu(negative_slope: float = 0.01) -> Layer[tuple[()], Array, Reals, LeakyReluCache]:
    """y = x where x >= 0, `negative_slope` x where x < 0, for x of any shape.

    Raises:
      ValueError: `negative_slope` is negative or not finite.
      TypeError: x is not floating-point.
    """
    negative_slope = require_non_negative("leaky_relu", "negative_slope", negative_slope)

    def g(x):
        nonnegative = x >= 0
        return jnp.where(nonnegative, x, negative_slope * x), LeakyReluCache(nonnegative)

    def slope(cache):
        return jnp.where(cache.nonnegative, 1.0, negative_slope)

    return elementwise("leaky_relu", g, slope)


def reference(params: tuple[()], x: Array, negative_slope: float = 0.01) -> Array:
    return jax.nn.leaky_relu(x, negative_slope)


RULE = Rule(
    "leaky_relu",
    leaky_relu,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 1e4, -1e4)),
            {"negative_slope": Interval(0.0, 2.0, 0.01)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="Maas, Hannun and Ng, 'Rectifier nonlinearities improve neural network acoustic models' (2013)",
)
