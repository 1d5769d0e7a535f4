"""softplus: y = log(1 + exp(b x)) / b, element by element, with b the sharpness; of itself b = 1.

Differential: delta y = exp(b x) / (1 + exp(b x)) delta x, so with s(v) = 1 / (1 + exp(-v)) the adjoint is

    dx = dy s(b x)                                                        x, y, dy, dx: one shape

With a threshold r, y = x and dx = dy where b x > r, as PyTorch has it (r = 20): y jumps there by log(1 + exp(-r)) / b,
and the derivative by s(-r). Of itself there is none, since nothing overflows.

Cached: x alone. The output would do, since s(b x) = 1 - exp(-b y), but that takes an expm1 in the place of an exp, and
in half precision has the rounding of y.

Numerical care: y is max(x, 0) + log1p(exp(-b |x|)) / b, where the exponential cannot overflow and both terms are
positive; s(b x) keeps full relative precision for very negative x, where it is exp(b x). Both are made of one
exponential: see `formulas/logistic.py`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_positive, require_positive_or_none
from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.formulas.logistic import falling, logistic
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule


def softplus(beta: float = 1.0, threshold: float | None = None) -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = log(1 + exp(beta x)) / beta for x of any shape; x itself where beta x is above a threshold.

    Raises:
      ValueError: beta is not positive, or the threshold neither positive nor None.
      TypeError: x is not floating-point.
    """
    beta = require_positive("softplus", "beta", beta)
    threshold = require_positive_or_none("softplus", "threshold", threshold)

    def g(x):
        y = jnp.where(x >= 0, x, 0) + jnp.log1p(falling(beta * x)) / beta
        return y if threshold is None else jnp.where(beta * x > threshold, x, y), InputCache(x)

    def slope(cache):
        s = logistic(beta * cache.x)
        return s if threshold is None else jnp.where(beta * cache.x > threshold, 1, s)

    return elementwise("softplus", g, slope)


def reference(params: tuple[()], x: Array, beta: float = 1.0, threshold: float | None = None) -> Array:
    y = jax.nn.softplus(beta * x) / beta
    return y if threshold is None else jnp.where(beta * x > threshold, x, y)


_POINTS = (0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)

RULE = Rule(
    "softplus",
    softplus,
    reference,
    cases=(
        Case("", Real("N d", points=_POINTS), timed={"N": 512, "d": 2048}),
        Case("sharper", Real("N d", points=_POINTS), {"beta": Interval(0.2, 5.0, 2.0)}),
        Case("linear above a threshold", Real("N d", points=_POINTS), {"beta": 2.0, "threshold": 5.0}),
    ),
    cite="Dugas et al., 'Incorporating second-order functional knowledge for better option pricing' (2000)",
)
