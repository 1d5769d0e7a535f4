"""log_sigmoid: y = log(s(x)) = -log(1 + exp(-x)), element by element, with s(x) = 1 / (1 + exp(-x)).

Differential: delta y = s'(x) / s(x) delta x = (1 - s(x)) delta x, and 1 - s(x) = s(-x). The adjoint is

    dx = dy s(-x)                                                         x, y, dy, dx: one shape

Cached: x alone. The output would do, since s(-x) = 1 - exp(y), but that takes an expm1, in all 1.6 times autodiff's
time, where the exponential of the forward gives s(-x) by a division.

Numerical care: y is min(x, 0) - log1p(exp(-|x|)), where the exponential cannot overflow and neither term is
positive; s(-x) keeps full relative precision for large x, where it is exp(-x). See `formulas/logistic.py`.
"""

import jax
from jax import Array

from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import elementwise
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def log_sigmoid() -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = -log(1 + exp(-x)) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        return -log1p_exp(-x), InputCache(x)

    def slope(cache):
        return logistic(-cache.x)

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
