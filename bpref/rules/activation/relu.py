"""relu: y = max(x, 0), element by element.

Differential: delta y = [x > 0] delta x, so the adjoint passes the cotangent where the input was positive:

    dx = dy [x > 0]                                                       x, y, dy, dx: one shape

At the kink x = 0 the subgradient is 0, as in `jax.nn.relu`.

Cached: the sign of x, one byte an element. Neither x nor y is needed.

Numerical care: none; the forward and the backward are exact.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def relu() -> Layer[tuple[()], Array, Reals, PassingCache]:
    """y = max(x, 0) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        return jnp.where(x <= 0, 0, x), PassingCache(x > 0)

    return elementwise("relu", g)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.relu(x)


RULE = Rule(
    "relu",
    relu,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Nair and Hinton, 'Rectified linear units improve restricted Boltzmann machines' (2010)",
)
