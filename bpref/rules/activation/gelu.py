"""gelu: y = x P(x), element by element, with P the distribution function of a standard normal, or nearly.

    erf form:   P(x) = erfc(-x / sqrt(2)) / 2,      P'(x) = exp(-x^2 / 2) / sqrt(2 pi)
    tanh form:  P(x) = (1 + tanh(v / 2)) / 2 = s(v),   P'(x) = s(v) (1 - s(v)) v',   s(v) = 1 / (1 + exp(-v))
                v = k x (1 + c x^2),   v' = k (1 + 3 c x^2),   k = sqrt(8 / pi),   c = 0.044715

Differential: delta y = (P(x) + x P'(x)) delta x, so the adjoint is

    dx = dy (P(x) + x P'(x))                                              x, y, dy, dx: one shape

which in the tanh form is dy s(v) (1 + x v' (1 - s(v))).

Cached: x alone. y is not monotonic, so it does not determine the derivative.

Numerical care: for negative x, 1 + erf and 1 + tanh cancel to nothing (`jax.nn` writes the latter); erfc and s(v)
do not, so the tail on the left is a small number with a relative error of about |v| rounding errors. On a CPU an
exponential and a division in the place of a tanh make the tanh form's forward and backward 1.2 times as long as
autodiff's. In float64 `jax.nn`'s has lost all but 1.3e-11 at x = -4, and this agrees with the truth to 3e-15 there. For
positive v, 1 - s(v) cancels, but beside 1, as in `silu`. v' overflows far from 0, but is
never made by itself: its terms are those of s(v) (1 - s(v)) x, which is 0 there, and the slope is 0 or 1.
An infinity is multiplied as the farthest finite number: y is -0 at -inf, and the slope 0 there and 1 at +inf.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_flags
from bpref.formulas.caches import InputCache
from bpref.formulas.elementwise import above_infinity, elementwise, finite
from bpref.layer import Layer, Reals
from bpref.rule import Case, Real, Rule

K = math.sqrt(8 / math.pi)
C = 0.044715


def P(x: Array) -> Array:
    return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)


def v(x: Array) -> Array:
    return K * x * (1 + C * (x * x))


def gelu(approximate: bool = True) -> Layer[tuple[()], Array, Reals, InputCache]:
    """y = x P(x) for x of any shape, in the tanh form or, with `approximate=False`, the erf form.

    Raises `ValueError` when `approximate` is no boolean, and `TypeError` when x is not floating-point.
    """
    require_flags("gelu", approximate=approximate)
    s = jax.lax.logistic

    def g_tanh(x):
        return above_infinity(x) * s(v(x)), InputCache(x)

    def slope_tanh(cache):
        s_v = s(v(cache.x))
        x = finite(cache.x)
        # Far from 0 this is 0, and so are its products with x; v' by itself overflows.
        falling = s_v * (1 - s_v) * x
        return s_v + (K * falling + (3 * C * K) * (falling * x * x))

    def g_erf(x):
        return above_infinity(x) * P(x), InputCache(x)

    def slope_erf(cache):
        x = finite(cache.x)
        return P(cache.x) + x * (math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * (x * x)))

    return elementwise("gelu", g_tanh, slope_tanh) if approximate else elementwise("gelu", g_erf, slope_erf)


def reference(params: tuple[()], x: Array, approximate: bool = True) -> Array:
    return jax.nn.gelu(x, approximate=approximate)


X = Real("N d", points=(0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4))

RULE = Rule(
    "gelu",
    gelu,
    reference,
    cases=(
        Case("tanh form", X, {"approximate": True}, timed={"N": 512, "d": 2048}),
        Case("erf form", X, {"approximate": False}),
    ),
    cite="arXiv:1606.08415",
)
