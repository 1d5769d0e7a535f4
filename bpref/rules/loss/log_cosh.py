"""log_cosh: a square near zero, an absolute value far away, and smooth between.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with the prediction y_hat and the target y of one shape, i running over all M elements:

    e_i = y_hat_i - y_i
    J   = 1/M sum_i log cosh(e_i)                                         J: ()

log cosh e is e^2 / 2 for a small e and |e| - log 2 for a large one: `huber` without a corner in its slope, and
without a delta.

Differential: delta log cosh(e) = sinh(e) / cosh(e) delta e = t delta e with t = tanh(e), hence, with g_i = dJ / M, or
another `reduction`'s (`bpref.formulas.loss.terms`),

    dy_hat_i = g_i t_i                                                    y_hat's shape
    dy_i     = -g_i t_i                                                   y's shape

Cached: t. Both adjoints are multiples of it; e is not needed.

Numerical care: cosh overflows. With 1 / cosh^2 = 1 - t^2 = (1 - |t|) (1 + |t|) and (1 - |t|) / (1 + |t|) = exp(-2|e|),

    log cosh e = -1/2 log(1 - t^2) = |e| - log(1 + |t|)

of which the former cancels in 1 - t^2 where e is large, and the latter where it is small: the former is taken for
|e| < 1, the latter beyond, and one log1p serves both. There is no kink: the branches agree, in value and in slope.
Half precision is computed and summed in float32; t is kept in the prediction's dtype.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import Pair
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule


class LogCoshCache(NamedTuple):
    t: Float[Array, "..."]


def log_cosh(reduction: str = "mean") -> Layer[tuple[()], tuple[Array, Array], Reals, LogCoshCache]:
    """J = mean of log cosh(y_hat - y).

    Args:
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)` of one shape, and y the scalar J, or the terms, in at least
      float32.

    Raises:
      ValueError: the reduction is none of these; prediction and target differ in shape; a mean is over no terms.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "log_cosh"
    J_of = require_reduction(who, reduction)

    def forward(params, x: Pair):
        y_hat, y = x
        e = widen(y_hat) - widen(y)
        t, a = jnp.tanh(e), jnp.abs(e)
        is_small = a < 1
        L = jnp.log1p(jnp.where(is_small, -t * t, jnp.abs(t)))
        return J_of.of(jnp.where(is_small, -0.5 * L, a - L)), LogCoshCache(cast(t, y_hat.dtype))

    def backward(params, cache, dJ):
        dy_hat = J_of.scaled(dJ, cache.t)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], reduction: str = "mean") -> Array:
    import optax

    return naive_reduction(optax.log_cosh(*x), reduction)


_FAR = (0.0, 100.0, -100.0, 1e4)

RULE = Rule(
    "log_cosh",
    log_cosh,
    reference,
    cases=(
        Case(
            "several outputs",
            (Real("N d", points=_FAR), Real("N d", points=(0.0,))),
            never_empty=("N", "d"),
            timed={"N": 4096, "d": 64},
        ),
        Case("each of one output", (Real("N", -2.0, 2.0), Real("N", -2.0, 2.0)), {"reduction": "none"}),
    ),
    cite="Chen et al., 'Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder' (2019)",
)
