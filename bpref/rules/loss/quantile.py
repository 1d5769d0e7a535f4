"""quantile: the pinball loss, whose least value is at the tau-th quantile of the target.

The mean is that of all terms, one for each element of the prediction: what `reduction="none"` gives.

Forward, with the prediction y_hat and the target y of one shape, i running over all M elements, and tau from 0 to 1:

    e_i = y_hat_i - y_i
    l_i = (1 - tau) e_i     where e_i >= 0, the prediction is too large
          -tau e_i          where e_i < 0, it is too small
    J   = 1/M sum_i l_i                                                   J: ()

At the least J the examples below the prediction, weighed by 1 - tau, balance those above it, weighed by tau: a share
tau lies below. tau = 1/2 is half of `absolute`, whose best prediction is the median.

With K taus the prediction has one more axis than the target, of size K, and so have the terms:
e_iq = y_hat_iq - y_i, with tau_q.

Differential: delta l = s(e) delta e, with the slope s of the line that e lies on. The factor of each perturbation,
with g_i = dJ / M, or another `reduction`'s (`bpref.formulas.loss.terms`):

    s_i      = 1 - tau,  -tau,  or 1/2 - tau, where e_i is > 0, < 0 or = 0
    dy_hat_i = g_i s_i                                                    y_hat's shape
    dy_i     = -g_i s_i,  with K taus -sum_q g_iq s_iq                    y's shape

Kink: at e = 0 every slope from -tau to 1 - tau is a subgradient; the middle, 1/2 - tau, is taken, as `jnp.maximum`
does and as |e| / 2 + (1/2 - tau) e has with the 0 of |e|.

Cached: the sign of e, in one byte. How large an error was has no effect on the gradient.

Numerical care: 1 - tau and tau are taken as they are, and not as differences from 1/2, which would lose the digits
of a small tau. Half precision is subtracted and summed in float32. A NaN makes J NaN, and its own gradient;
the byte has a value for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import as_numbers, is_traced, require_share
from bpref.checks.shapes import require_shape
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import of_no_size
from bpref.formulas.loss.signs import SignCache, as_byte
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule


class PredictionAndTarget(NamedTuple):
    prediction: Float[Array, "*k"]
    target: Float[Array, "*n"]


def quantile(
    tau: float | Sequence[float] = 0.5, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, SignCache]:
    """J = mean of (1 - tau) e where e = y_hat - y is positive, and -tau e where it is negative.

    Args:
      tau: the quantile that is predicted, from 0 to 1; or K of them, one for each number in the prediction's last axis.
        An array that is traced is taken as it is: its values cannot be seen.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)` of one shape, and y the scalar J, or the terms, in at least
      float32. With K taus the prediction is `(..., K)` for a target `(...)`.

    Raises:
      ValueError: a tau is not from 0 to 1, or there is none; the reduction is none of these; prediction and target do
        not fit in shape; a mean is over no terms.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "quantile"
    taus = as_numbers(tau)
    if taus is None or taus.ndim > 1 or taus.size == 0:
        raise ValueError(f"{who}: tau is {tau!r}, expected a number from 0 to 1, or several")
    for value in [] if is_traced(taus) else taus.ravel().tolist():
        require_share(who, "tau", value)
    is_several = taus.ndim == 1
    J_of = require_reduction(who, reduction)

    def spread(v, like, dtype):
        """A number, or one for each tau, in the shape of `like`."""
        return lax.broadcast_in_dim(jnp.asarray(v, dtype), like.shape, range(like.ndim - v.ndim, like.ndim))

    def forward(params, x: PredictionAndTarget):
        y_hat, y = x
        require_shape(who, "prediction", y_hat, (*y.shape, *taus.shape), f"by target {y.shape} and {taus.size} taus")
        e = widen(y_hat) - jnp.broadcast_to(widen(y)[..., None] if is_several else widen(y), y_hat.shape)
        terms = jnp.where(e > 0, spread(1 - taus, e, e.dtype) * e, spread(-taus, e, e.dtype) * e)
        return J_of.of(terms), SignCache(as_byte(e), of_no_size(y_hat))

    def backward(params, cache, dJ):
        sign = cache.sign
        g = J_of.at_terms(dJ, sign.shape)
        over, under, at = (g * spread(v, sign, g.dtype) for v in (1 - taus, -taus, 0.5 - taus))
        dy_hat = jnp.where(sign == 1, over, jnp.where(sign == -1, under, jnp.where(sign == 0, at, jnp.nan)))
        dy = -(jnp.sum(dy_hat, -1) if is_several else dy_hat)
        return (), (cast(dy_hat, cache.like.dtype), cast(dy, cache.like.dtype))

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()], x: tuple[Array, Array], tau: float | Sequence[float] = 0.5, reduction: str = "mean"
) -> Array:
    y_hat, y = x
    if isinstance(tau, Sequence):
        terms = [reference(params, (y_hat[..., k], y), v, "none") for k, v in enumerate(tau)]
        return naive_reduction(jnp.stack(terms, -1), reduction)
    return naive_reduction(jnp.maximum(tau * (y - y_hat), (tau - 1) * (y - y_hat)), reduction)


_TAU = Interval(0.0, 1.0, 0.9)

RULE = Rule(
    "quantile",
    quantile,
    reference,
    cases=(
        Case(
            "several outputs",
            (Real("N d"), Real("N d")),
            {"tau": _TAU},
            never_empty=("N", "d"),
            timed={"N": 4096, "d": 256},
        ),
        Case(
            "three quantiles",
            (Real("N K"), Real("N")),
            {"tau": (0.1, 0.5, 0.9), "reduction": "batch_mean"},
            ("N",),
            fixed={"K": 3},
        ),
        Case("each median", (Real("N", points=(0.5,)), Real("N", points=(0.5,))), {"reduction": "none"}),
    ),
    cite="Koenker and Bassett, 'Regression Quantiles' (1978), Econometrica 46, equation 1.4",
    covers=("pinball",),
)
