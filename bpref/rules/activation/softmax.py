"""softmax: y_c = exp(x_c) / sum_k exp(x_k) along one axis; the logits become a distribution.

Forward, with c and k along the axis and n over all others:

    S_n  = sum_k exp(x_nk)
    y_nc = exp(x_nc) / S_n                                                (..., C)

Differential, with delta log S_n = sum_k y_nk delta x_nk:

    delta y_nc = y_nc (delta x_nc - sum_k y_nk delta x_nk)

The matrix diag(y) - y y^T is symmetric, so the adjoint is the same map:

    dx_nc = y_nc (dy_nc - s_n),   s_n = sum_k y_nk dy_nk                  x, y, dy, dx: one shape

What is constant along the axis is lost in both directions: dx sums to 0 there.

Cached: y alone. The derivative is a function of the output, and whatever comes next keeps that output anyway.

Numerical care: exponentials are of x - m, m the largest logit, and never overflow; m is a shift that cancels, and is
held constant. Half precision is computed and summed in float32. A logit of -inf is a class of probability 0 and has a
gradient of 0; where all are -inf there is no distribution, and y is NaN. dx has the absolute precision of the largest
|dy|: where y is nearly one-hot dy_c - s cancels, and a loss of the logits, `softmax_cross_entropy`, loses nothing.

There is no kink.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.caches import OutputCache
from bpref.formulas.indexing.along_axis import require_axis, scalar_as_line
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


def softmax(axis: int = -1) -> Layer[tuple[()], Array, Reals, OutputCache]:
    """y = exp(x) / sum exp(x) along an axis.

    Args:
      axis: the one along which y sums to 1.

    Returns:
      A layer with params `()`, x of any shape with at least one element along the axis, or a scalar, which is a
      line of one, and y of x's shape.

    Raises:
      ValueError: x has no such axis, or nothing along it.
      TypeError: x is not floating-point.
    """
    who = "softmax"

    def forward(params, x: Float[Array, "..."]):
        along = require_axis(who, x, axis)
        z = widen(x)
        e = jnp.exp(z - lax.stop_gradient(jnp.max(z, along, keepdims=True)))
        y = cast(e / jnp.sum(e, along, keepdims=True), x.dtype)
        return y, OutputCache(y)

    def backward(params, cache, dy):
        y, v = widen(cache.y), widen(dy)
        s = jnp.sum(y * v, axis, keepdims=True)
        return (), cast(y * (v - s), dy.dtype)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def reference(params: tuple[()], x: Array, axis: int = -1) -> Array:
    return jax.nn.softmax(x, axis)


_X = Real("N C", points=(100.0, -100.0, 1e4))

RULE = Rule(
    "softmax",
    softmax,
    reference,
    cases=(
        Case("", _X, never_empty=("C",), timed={"N": 512, "C": 2048}),
        Case("another axis", Real("B C T"), {"axis": 1}, never_empty=("C",)),
    ),
    cite="Bridle, 'Training stochastic model recognition algorithms as networks' (1990)",
)
