"""gumbel_softmax: a random class with probability softmax(x), as a vector that the logits can be trained through.

Forward, with c and k along the axis, n over all others, t the temperature and g_nc Gumbel numbers drawn from the key:

    z_nc = x_nc + g_nc
    p_nc = exp(z_nc / t) / sum_k exp(z_nk / t)                            (..., C)
    y_nc = p_nc,  or if `hard`  [c = argmax_k p_nk]

The argmax of x + g is a draw from softmax(x) (the Gumbel-max trick); p relaxes it, and nears it as t falls to 0.

Differential: the draw does not depend on x; with delta z = delta x it is softmax's,

    delta p_nc = p_nc (delta x_nc - sum_k p_nk delta x_nk) / t

which is symmetric, so the adjoint is the same map:

    dx_nc = p_nc (dy_nc - s_n) / t,   s_n = sum_k p_nk dy_nk              x, y, dy, dx: one shape

`hard` is a straight-through estimator: y is one-hot, and the backward is that of p all the same, by decision, since
the true derivative is 0. The key is a parameter that is not trained: its cotangent is None.

Cached: p alone, for `hard` too. The derivative is a function of it; the draw is not needed again.

Numerical care: exponentials are of (z - m) / t, m the largest z, and never overflow; m is a shift that cancels, and is
held constant. It is subtracted before the division: a quotient may be rounded in two ways where it is made twice.
g is drawn in float32, whatever x's dtype is, so that every dtype sees the same draw; half precision is computed and
summed in float32. Where several p are equal, `hard` takes the first. Whoever differentiates the forward itself is given
the slope of p.

There is no kink in p.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.indexing.along_axis import require_axis, scalar_as_line
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Key, Real, Rule
from bpref.tangents import by_decision


class GumbelSoftmaxParams(NamedTuple):
    key: PyTree


class GumbelSoftmaxCache(NamedTuple):
    p: Float[Array, "..."]


def gumbel_softmax(
    temperature: float = 1.0, hard: bool = False, axis: int = -1
) -> Layer[GumbelSoftmaxParams, Array, Reals, GumbelSoftmaxCache]:
    """y = softmax((x + g) / temperature), g drawn from the Gumbel distribution; or its argmax, one-hot.

    Args:
      temperature: t > 0; the smaller, the nearer y is to one-hot, and the more its derivative varies.
      hard: whether y is one-hot; the backward is the same.
      axis: the one along which the classes lie.

    Returns:
      A layer with params `GumbelSoftmaxParams(key)`, a PRNG key whose cotangent is None, x of any shape with at least
      one element along the axis, and y of x's shape.

    Raises:
      ValueError: the temperature is not positive; x has no such axis, or nothing along it; there are several keys.
      TypeError: x is not floating-point; the key is none.
    """
    who = "gumbel_softmax"
    require_flags(who, hard=hard)
    temperature = require_positive(who, "temperature", temperature)

    def init(key, x):
        return GumbelSoftmaxParams(key)

    def forward(params, x: Float[Array, "..."]):
        along = require_axis(who, x, axis)
        require_key(who, params.key)
        g = jax.random.gumbel(params.key, x.shape, jnp.float32)
        v = widen(x)
        z = v + cast(g, v.dtype)
        e = jnp.exp((z - lax.stop_gradient(jnp.max(z, along, keepdims=True))) / temperature)
        p = cast(e / jnp.sum(e, along, keepdims=True), x.dtype)
        y = by_decision(partial(_one_hot, axis=along), lambda p: p)(p) if hard else p
        return y, GumbelSoftmaxCache(p)

    def backward(params, cache, dy):
        p, v = widen(cache.p), widen(dy)
        s = jnp.sum(p * v, axis, keepdims=True)
        return GumbelSoftmaxParams(None), cast(p * (v - s) / temperature, dy.dtype)

    return scalar_as_line(Layer(init, forward, backward, who, held=KEY), axis)


def _one_hot(p: Array, axis: int) -> Array:
    first = jnp.argmax(p, axis, keepdims=True)
    return (lax.broadcasted_iota(first.dtype, p.shape, p.ndim + axis) == first).astype(p.dtype)


def reference(
    params: GumbelSoftmaxParams, x: Array, temperature: float = 1.0, hard: bool = False, axis: int = -1
) -> Array:
    g = jax.random.gumbel(params.key, x.shape, jnp.float32).astype(x.dtype)
    soft = jax.nn.softmax((x + g) / temperature, axis)
    if not hard:
        return soft
    one_hot = jax.nn.one_hot(jnp.argmax(soft, axis), x.shape[axis], dtype=x.dtype, axis=axis)
    return one_hot + (soft - lax.stop_gradient(soft))


_TEMPERATURE = Interval(0.5, 3.0, 1.0)
_PARAMS = GumbelSoftmaxParams(Key())

RULE = Rule(
    "gumbel_softmax",
    gumbel_softmax,
    reference,
    cases=(
        Case(
            "soft",
            Real("N C"),
            {"temperature": _TEMPERATURE},
            never_empty=("C",),
            params=_PARAMS,
            timed={"N": 256, "C": 1024},
        ),
        Case("hard", Real("N C"), {"temperature": _TEMPERATURE, "hard": True}, never_empty=("C",), params=_PARAMS),
        Case("hard, another axis", Real("B C T"), {"hard": True, "axis": 1}, never_empty=("C",), params=_PARAMS),
    ),
    cite="arXiv:1611.01144, equation 2 and section 2.2; arXiv:1611.00712",
    covers=("concrete", "straight_through_gumbel_softmax"),
)
