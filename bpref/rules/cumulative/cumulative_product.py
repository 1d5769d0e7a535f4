"""cumulative_product: y_t = x_1 x_2 ... x_t along one axis, with zeros among the factors or without.

Forward, t along the axis, all other axes apart:

    y_t = x_t y_{t-1},   y_0 = 1                                          y, x: one shape

`reverse` counts t from the end.

Differential: delta y_t = y_{t-1} delta x_t + x_t delta y_{t-1}. Unrolled, a change of x_k reaches y_t for every
t >= k, times all factors but x_k:

    delta y_t = sum_{k <= t} y_{k-1} (x_{k+1} ... x_t) delta x_k

The factor of delta x_k in sum_t dy_t delta y_t splits into what comes before k and what comes after:

    R_k  = sum_{t >= k} dy_t (x_{k+1} ... x_t) = dy_k + x_{k+1} R_{k+1}   a recurrence from the end
    dx_k = y_{k-1} R_k                                                    dx: as x

The textbook form dx_k = sum_{t >= k} dy_t y_t / x_k is 0 / 0 at a zero. Nothing is divided here, and a zero is a
factor like any other: R is cut there, y is 0 from there on, so that dx is right with one zero, where it alone and
what is before it get a gradient, and with many. On a CPU that is one pass over memory, T products; elsewhere stretches
of both recurrences are joined two by two, in 2 log2 T steps.

Cached: x and y. y is the output, so that only x is kept on its account.

Numerical care: half precision is multiplied in float32 and rounded once; y, where it is kept in half precision, is
rounded before it meets R. y_{k-1} may underflow, or R_k overflow, where their product is an ordinary number; then
y_t over- or underflows as well within the axis, unless the cotangent is what is large. In joined stretches a product of
factors that overflows is NaN where the cotangents behind it are 0, and step by step it is 0.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import InputAndOutputCache
from bpref.formulas.indexing.along_axis import axis_of, join_affine, run_along, scalar_as_line, shifted
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


def cumulative_product(axis: int = -1, reverse: bool = False) -> Layer[tuple[()], Array, Reals, InputAndOutputCache]:
    """y_t = the product of x_k over k up to t.

    Args:
      axis: the axis that is multiplied along, counted from the last if negative.
      reverse: whether the product runs from the end: over k from t on.

    Returns:
      A layer with params `()`, x of any shape and y of x's shape and dtype; a scalar is a line of one element. The
      gradient is exact where factors are zero, any number of them.

    Raises:
      ValueError: x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "cumulative_product"
    require_flags(who, reverse=reverse)

    def multiply(before, x_t):
        return before * x_t, before * x_t

    def gather_up(from_later, dy_k, x_k):
        R_k = dy_k + from_later
        return x_k * R_k, R_k

    def gather_joined(dy, x, axis, reverse):
        return join_affine(shifted(x, axis, reverse, first=0.0), dy, axis, reverse)[1]

    def forward(params, x: Float[Array, "..."]):
        axis_of(who, "x", x, axis)
        y = cast(run_along(multiply, jnp.ones_like, (widen(x),), axis, reverse, lax.cumprod), x.dtype)
        return y, InputAndOutputCache(x, y)

    def backward(params, cache, dy):
        x, y = cache
        R = run_along(gather_up, jnp.zeros_like, (widen(dy), widen(x)), axis, not reverse, gather_joined)
        return (), cast(shifted(widen(y), axis, reverse, first=1.0) * R, x.dtype)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def reference(params: tuple[()], x: Array, axis: int = -1, reverse: bool = False) -> Array:
    along = jnp.flip(x, axis) if reverse else x
    y = jnp.cumprod(along, axis)
    return jnp.flip(y, axis) if reverse else y


_ZEROS = (0.0, 1.5, 0.0, 2.0, 0.0)

RULE = Rule(
    "cumulative_product",
    cumulative_product,
    reference,
    cases=(
        Case("last axis", Real("N T", -2.0, 2.0)),
        Case("zeros", Real("N T", -2.0, 2.0, points=(1.5, -0.5, *_ZEROS))),
        Case(
            "middle axis, from the end",
            Real("B T d", -2.0, 2.0, points=_ZEROS),
            {"axis": 1, "reverse": True},
            timed={"B": 64, "T": 512, "d": 32},
        ),
    ),
    cite="Griewank and Walther, 'Evaluating Derivatives' (2008), section 3.3 (Speelpenning's product)",
    covers=("cumprod",),
)
