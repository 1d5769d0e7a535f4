"""log_softmax: y_c = x_c - log sum_k exp(x_k) along one axis; the logarithm of a distribution.

Forward, with c and k along the axis and n over all others:

    l_n  = log sum_k exp(x_nk)
    y_nc = x_nc - l_n                                                     (..., C)

Differential, with p_nc = exp(y_nc) and delta l_n = sum_k p_nk delta x_nk:

    delta y_nc = delta x_nc - sum_k p_nk delta x_nk

The factor of each perturbation delta x_nc, which appears in its own output and in every l_n:

    dx_nc = dy_nc - p_nc s_n,   s_n = sum_k dy_nk                         x, y, dy, dx: one shape

dx sums to 0 along the axis, since p sums to 1.

Cached: e = exp(d), d = x - m with m the largest logit, and S = sum e, one number for each n: p = e / S. Of half
precision y alone: p = exp(y), in half of the bytes that e has in float32.

Numerical care: y is d - log S: nothing overflows, and log S lies between 0 and log C whatever the size of the logits. m
is a shift that cancels, and is held constant. e / S has the precision of an exponential, where exp(y) also has the
rounding of y, |y| / 2 units of p, and exp(x - l) that of l. Half precision is computed and summed in float32. A logit
of -inf has y = -inf and p = 0.

Lost is what lies beside 1 in a class that is all but certain. Where R = 1 - p is below half a unit of 1 (6e-8, in
float64 1.1e-16), its y is 0 for -R, and its own dx, dy R less p times the others' dy, has an error of a unit of its dy:
0 for R if dy is one-hot. The others' dx keep all their digits. To keep R as well takes sums of all classes but the
largest, of exp(d) in the forward and of dy in the backward: 1.5 to 2.3 times autodiff's time on a CPU. Where there is a
label, `token_log_probability` and `softmax_cross_entropy` keep R.

There is no kink.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.indexing.along_axis import require_axis, scalar_as_line
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class LogSoftmaxCache(NamedTuple):
    of_p: Float[Array, "..."]
    S: Float[Array, "..."] | None


def log_softmax(axis: int = -1) -> Layer[tuple[()], Array, Reals, LogSoftmaxCache]:
    """y = x - log sum exp(x) along an axis.

    Args:
      axis: the one along which exp(y) sums to 1.

    Returns:
      A layer with params `()`, x of any shape with at least one element along the axis, or a scalar, which is a
      line of one, and y of x's shape.

    Raises:
      ValueError: x has no such axis, or nothing along it.
      TypeError: x is not floating-point.
    """
    who = "log_softmax"

    def forward(params, x: Float[Array, "..."]):
        along = require_axis(who, x, axis)
        z = widen(x)
        d = z - lax.stop_gradient(jnp.max(z, along, keepdims=True))
        e = jnp.exp(d)
        S = jnp.sum(e, along, keepdims=True)
        y = cast(d - jnp.log(S), x.dtype)
        return y, LogSoftmaxCache(e, S) if z.dtype == x.dtype else LogSoftmaxCache(y, None)

    def backward(params, cache, dy):
        of_p, S = cache
        v = widen(dy)
        s = jnp.sum(v, axis, keepdims=True)
        return (), cast(v - (jnp.exp(widen(of_p)) * s if S is None else of_p * (s / S)), dy.dtype)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def reference(params: tuple[()], x: Array, axis: int = -1) -> Array:
    return jax.nn.log_softmax(x, axis)


RULE = Rule(
    "log_softmax",
    log_softmax,
    reference,
    cases=(
        Case("", Real("N C", points=(100.0, -100.0, 1e4)), never_empty=("C",), timed={"N": 512, "C": 2048}),
        Case("another axis", Real("B C T"), {"axis": 1}, never_empty=("C",)),
    ),
    cite="Goodfellow, Bengio and Courville, 'Deep Learning' (2016), equation 6.30",
)
