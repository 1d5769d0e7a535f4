"""elu: y = x where x > 0, alpha (exp(x) - 1) where x <= 0, element by element.

Differential: delta y = delta x where x > 0, alpha exp(x) delta x elsewhere, so the adjoint is

    dx = dy (1 where x > 0, alpha exp(x) where x <= 0)                    x, y, dy, dx: one shape

At x = 0, a kink unless alpha = 1, the subgradient is alpha, as in `jax.nn.elu`.

Cached: x alone. The output would do, since alpha exp(x) = y + alpha, but that sum cancels as y nears -alpha.

Numerical care: exp(x) - 1 is expm1(x). Both branches are computed for every x, so the exponential takes
min(x, 0), which cannot overflow; for x > 0 the forward's expm1(0) = 0 then adds nothing to max(x, 0).
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_positive
from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def elu(alpha: float = 1.0) -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = x where x > 0, alpha (exp(x) - 1) where x <= 0, for x of any shape.

    Raises:
      ValueError: alpha is not positive or not finite.
      TypeError: x is not floating-point.
    """
    alpha = require_positive("elu", "alpha", alpha)

    def g(x):
        return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.where(x > 0, 0, x))), InputCache(x)

    def slope(cache):
        return jnp.where(cache.x > 0, 1, alpha * jnp.exp(jnp.minimum(cache.x, 0)))

    return elementwise("elu", g, slope)


def reference(params: tuple[()], x: Array, alpha: float = 1.0) -> Array:
    return jax.nn.elu(x, alpha)


RULE = Rule(
    "elu",
    elu,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 20.0, -20.0, 1e4, -1e4)),
            {"alpha": Interval(0.1, 3.0, 1.0)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="arXiv:1511.07289",
)
