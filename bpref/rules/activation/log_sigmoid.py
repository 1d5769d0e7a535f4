"""log_sigmoid: y = log(s(x)) = -log(1 + exp(-x)), element by element, with s(x) = 1 / (1 + exp(-x)).

Differential: delta y = s'(x) / s(x) delta x = (1 - s(x)) delta x. Since s(x) = exp(y), the adjoint is

    dx = dy (1 - exp(y))                                                  x, y, dy, dx: one shape

Cached: y alone. The derivative is a function of the output, which the next layer keeps anyway, and loses nothing
by it: a relative error of y becomes -y / (exp(-y) - 1) < 1 times that error in the derivative.

Numerical care: y is min(x, 0) - log1p(exp(-|x|)), where the exponential cannot overflow and neither term is
positive; 1 - exp(y) is -expm1(y), which keeps full relative precision for large x, where y nears 0. -|x| is
written min(x, -x): JAX differentiates it to 0 at x = 0 and |x| to 1, so only the former gives y''(0) = -1/4 there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer
from bpref.rule import Case, Real, Rule


class LogSigmoidCache(NamedTuple):
    y: Float[Array, "..."]


def log_sigmoid() -> Layer:
    """y = -log(1 + exp(-x)) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        y = jnp.minimum(x, 0) - jnp.log1p(jnp.exp(jnp.minimum(x, -x)))
        return y, LogSigmoidCache(y)

    def slope(cache):
        return -jnp.expm1(cache.y)

    return elementwise("log_sigmoid", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.log_sigmoid(x)


RULE = Rule(
    "log_sigmoid",
    log_sigmoid,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Maechler, 'Accurately computing log(1 - exp(-|a|)), assessed by the Rmpfr package' (2012)",
)
