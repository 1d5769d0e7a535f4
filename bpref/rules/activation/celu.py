"""celu: y = max(x, 0) + alpha (exp(min(x, 0) / alpha) - 1), element by element.

Differential: one of the two terms is constant on either side of 0, so delta y = delta x where x > 0 and
exp(x / alpha) delta x elsewhere. Since exp(0) = 1, the adjoint needs no branch:

    dx = dy exp(min(x, 0) / alpha)                                        x, y, dy, dx: one shape

There is no kink: the derivative at x = 0 is 1 from both sides, for any alpha, as in `jax.nn.celu`.

Cached: x alone. The output would do, since exp(x / alpha) = y / alpha + 1, but that sum cancels as y nears -alpha.

Numerical care: exp(...) - 1 is expm1; min(x, 0) keeps the exponential from overflowing.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_positive
from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def celu(alpha: float = 1.0) -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = max(x, 0) + alpha (exp(min(x, 0) / alpha) - 1) for x of any shape.

    Raises:
      ValueError: alpha is not positive or not finite.
      TypeError: x is not floating-point.
    """
    alpha = require_positive("celu", "alpha", alpha)

    def g(x):
        return jnp.maximum(x, 0) + alpha * jnp.expm1(jnp.minimum(x, 0) / alpha), InputCache(x)

    def slope(cache):
        return jnp.exp(jnp.minimum(cache.x, 0) / alpha)

    return elementwise("celu", g, slope)


def reference(params: tuple[()], x: Array, alpha: float = 1.0) -> Array:
    return jax.nn.celu(x, alpha)


RULE = Rule(
    "celu",
    celu,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 20.0, -20.0, 1e4, -1e4)),
            {"alpha": Interval(0.2, 3.0, 1.0)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="arXiv:1704.07483",
)
