"""softplus: y = log(1 + exp(x)), element by element.

Differential: delta y = exp(x) / (1 + exp(x)) delta x, so with s(x) = 1 / (1 + exp(-x)) the adjoint is

    dx = dy s(x)                                                          x, y, dy, dx: one shape

Cached: x alone. The output would do, since s(x) = 1 - exp(-y), but that takes an expm1 in the place of an exp, and in
half precision has the rounding of y.

Numerical care: y is max(x, 0) + log1p(exp(-|x|)), where the exponential cannot overflow and both terms are positive;
s(x) keeps full relative precision for very negative x, where it is exp(x). Both are made of one exponential: see
`formulas/logistic.py`.
"""

from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import Float

from bpref.formulas.elementwise import elementwise
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


class SoftplusCache(NamedTuple):
    x: Float[Array, "..."]


def softplus() -> Layer[tuple[()], Array, Reals, SoftplusCache]:
    """y = log(1 + exp(x)) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        return log1p_exp(x), SoftplusCache(x)

    def slope(cache):
        return logistic(cache.x)

    return elementwise("softplus", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.softplus(x)


RULE = Rule(
    "softplus",
    softplus,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Dugas et al., 'Incorporating second-order functional knowledge for better option pricing' (2000)",
)
