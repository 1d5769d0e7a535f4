"""relu6: y = min(max(x, 0), 6), element by element.

Differential: delta y = [0 < x < 6] delta x, so the adjoint passes the cotangent between the kinks:

    dx = dy [0 < x < 6]                                                   x, y, dy, dx: one shape

At the kinks x = 0 and x = 6 the subgradient is 0, as in `jax.nn.relu6`.

Cached: whether x is inside, one byte an element. Neither x nor y is needed.

Numerical care: none; the forward and the backward are exact.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.formulas.caches import PassingCache
from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


def relu6() -> Layer[tuple[()], Array, Reals, PassingCache]:
    """y = min(max(x, 0), 6) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        return jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x)), PassingCache((x > 0) & (x < 6))

    return elementwise("relu6", g)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.relu6(x)


RULE = Rule(
    "relu6",
    relu6,
    reference,
    cases=(Case("", Real("N d", low=-3.0, high=9.0, points=(0.0, 6.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Krizhevsky, 'Convolutional deep belief networks on CIFAR-10' (2010)",
)
