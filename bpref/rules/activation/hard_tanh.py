"""hard_tanh: y = min(max(x, l), h), element by element; of themselves l = -1 and h = 1.

Differential: delta y = [l <= x <= h] delta x, so the adjoint passes the cotangent between the kinks:

    dx = dy [l <= x <= h]                                                 x, y, dy, dx: one shape

At the kinks x = l and x = h the subgradient is 1, as in `jax.nn.hard_tanh`; PyTorch takes 0 there.

Cached: whether x is inside, one byte an element. Neither x nor y is needed.

Numerical care: none; the forward and the backward are exact.
"""

import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_finite
from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def hard_tanh(low: float = -1.0, high: float = 1.0) -> Layer[tuple[()], Array, Reals, PassingCache]:
    """y = min(max(x, low), high) for x of any shape.

    Raises:
      ValueError: a bound is not finite, or `low` is not below `high`.
      TypeError: x is not floating-point.
    """
    low, high = require_finite("hard_tanh", "low", low), require_finite("hard_tanh", "high", high)
    if low >= high:
        raise ValueError(f"hard_tanh: low is {low}, expected a number below high = {high}")

    def g(x):
        y = jnp.where(x < low, low, jnp.where(x > high, high, x))
        return y, PassingCache((low <= x) & (x <= high))

    return elementwise("hard_tanh", g)


def reference(params: tuple[()], x: Array, low: float = -1.0, high: float = 1.0) -> Array:
    return jnp.where(x > high, high, jnp.where(x < low, low, x))


RULE = Rule(
    "hard_tanh",
    hard_tanh,
    reference,
    cases=(
        Case("", Real("N d", points=(0.0, 1.0, -1.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),
        Case(
            "other bounds",
            Real("N d", points=(0.0, 0.5, -2.0, 1e4, -1e4)),
            {"low": Interval(-3.0, -0.5, -2.0), "high": Interval(0.1, 3.0, 0.5)},
        ),
    ),
    cite="Collobert et al., 'Natural language processing (almost) from scratch' (2011), arXiv:1103.0398",
)
