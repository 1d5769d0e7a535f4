"""tanh_shrink: y = x - tanh(x), element by element.

Differential: delta y = (1 - (1 - tanh(x)^2)) delta x = tanh(x)^2 delta x, so with t = tanh(x) the adjoint is

    dx = dy t^2                                                           x, y, dy, dx: one shape

Cached: t alone. x would do, at one more tanh; y does not tell t without solving for x.

Numerical care: near 0 y is about x^3 / 3, a difference of what is nearly equal. There Lambert's continued fraction is
used, tanh(x) = x / (1 + c) with

    c = x^2 / (3 + x^2 / (5 + x^2 / (7 + ...)))        so that        y = x c / (1 + c)

whose terms are all positive. Cut off after eight steps and written as one quotient of polynomials in x^2, it has an
error of at most 1e-16 of y up to |x| = 1; beyond, the difference itself loses less than a factor of 5. t^2 does not
cancel, where 1 - (1 - t^2) would.

There is no kink.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.formulas.elementwise import elementwise
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule

_C = (44.0, 12870.0, 810810.0, 11486475.0)
_ONE_AND_C = (45.0, 13860.0, 945945.0, 16216200.0, 34459425.0)


class TanhShrinkCache(NamedTuple):
    t: Float[Array, "..."]


def tanh_shrink() -> Layer[tuple[()], Array, Reals, TanhShrinkCache]:
    """y = x - tanh(x) for x of any shape; raises `TypeError` when x is not floating-point."""

    def g(x):
        t = jnp.tanh(x)
        is_near = abs(x) < 1
        near = jnp.where(is_near, x, 0)
        s = near * near
        series = near * s * jnp.polyval(jnp.asarray(_C, x.dtype), s) / jnp.polyval(jnp.asarray(_ONE_AND_C, x.dtype), s)
        return jnp.where(is_near, series, x - t), TanhShrinkCache(t)

    def slope(cache):
        return cache.t * cache.t

    return elementwise("tanh_shrink", g, slope)


def reference(params: tuple[()], x: Array) -> Array:
    return x - jnp.tanh(x)


RULE = Rule(
    "tanh_shrink",
    tanh_shrink,
    reference,
    cases=(Case("", Real("N d", points=(0.0, 1.0, -20.0, 1e4, -1e4)), timed={"N": 512, "d": 2048}),),
    cite="torch.nn.Tanhshrink; the continued fraction: Lambert, 'Mémoire sur quelques propriétés remarquables des "
    "quantités transcendentes' (1768)",
    covers=("tanhshrink",),
)
