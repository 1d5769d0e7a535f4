"""threshold: y = x where x > t, v elsewhere, element by element; relu where both are 0.

Differential: delta y = [x > t] delta x, since v is a constant and the place where y may jump is one point:

    dx = dy [x > t]                                                       x, y, dy, dx: one shape

At x = t, where y is v, the derivative that is taken is 0, as in PyTorch.

Cached: whether x > t, one byte an element. The output does not tell it where v is above t.

Numerical care: none; the forward and the backward are exact.
"""

import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_finite
from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def threshold(bound: float = 0.0, value: float = 0.0) -> Layer[tuple[()], Array, Reals, PassingCache]:
    """y = x where x is above `bound`, `value` elsewhere, for x of any shape.

    Raises:
      ValueError: the bound, which is t, or the value is not finite.
      TypeError: x is not floating-point.
    """
    bound = require_finite("threshold", "bound", bound)
    value = require_finite("threshold", "value", value)

    def g(x):
        return jnp.where(x <= bound, value, x), PassingCache(x > bound)

    return elementwise("threshold", g)


def reference(params: tuple[()], x: Array, bound: float = 0.0, value: float = 0.0) -> Array:
    return jnp.where(x > bound, x, value)


RULE = Rule(
    "threshold",
    threshold,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 0.5, -2.0, 1e4, -1e4)),
            {"bound": Interval(-2.0, 2.0, 0.5), "value": Interval(-3.0, 3.0, -2.0)},
            timed={"N": 512, "d": 2048},
        ),
    ),
    cite="torch.nn.Threshold",
)
