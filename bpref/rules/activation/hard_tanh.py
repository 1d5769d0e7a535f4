"""hard_tanh: y = min(max(x, -1), 1), element by element.

Differential: delta y = [|x| <= 1] delta x, so the adjoint passes the cotangent between the kinks:

    dx = dy [|x| <= 1]                                                    x, y, dy, dx: one shape

At the kinks x = -1 and x = 1 the subgradient is 1, as in `jax.nn.hard_tanh`.

Cached: whether x is inside, one byte an element. Neither x nor y is needed.

Numerical care: none; the forward and the backward are exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule


class HardTanhCache(NamedTuple):
    inside: Bool[Array, "..."]


def hard_tanh() -> Layer[tuple[()], Array, Reals, HardTanhCache]:
    """y = min(max(x, -1), 1) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        return jnp.where(x < -1, -1, jnp.where(x > 1, 1, x)), HardTanhCache(abs(x) <= 1)

    def slope(cache):
        return cache.inside

    return elementwise("hard_tanh", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return jax.nn.hard_tanh(x)


RULE = Rule(
    "hard_tanh",
    hard_tanh,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 1.0, -1.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="Collobert et al., 'Natural language processing (almost) from scratch' (2011), arXiv:1103.0398",
)
