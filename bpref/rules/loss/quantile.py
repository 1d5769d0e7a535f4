"""quantile: the pinball loss, whose least value is at the tau-th quantile of the target, as a mean over the batch.

Forward, with the prediction y_hat and the target y of one shape (N, ...), n the example, k whatever axes follow
the first (a scalar is one example), and tau from 0 to 1:

    e_nk = y_hat_nk - y_nk
    l_nk = (1 - tau) e_nk    where e_nk >= 0, the prediction is too large
           -tau e_nk         where e_nk < 0, it is too small
    J    = 1/N sum_n sum_k l_nk                                           J: ()

At the least J the examples below the prediction, weighed by 1 - tau, balance those above it, weighed by tau: a share
tau lies below. tau = 1/2 is half of `absolute`, whose best prediction is the median. Terms of one example are summed.

With K taus the prediction has one more axis than the target, of size K, and the terms of all are summed:
e_nkq = y_hat_nkq - y_nk, with tau_q.

Differential: delta l = s(e) delta e, with the slope s of the line that e lies on. The factor of each perturbation:

    s_nk      = 1 - tau,  -tau,  or 1/2 - tau, where e_nk is > 0, < 0 or = 0
    dy_hat_nk = dJ s_nk / N                                               (N, ...)
    dy_nk     = -dJ s_nk / N,  with K taus -dJ sum_q s_nkq / N            (N, ...)

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
from jaxtyping import Float, Int8

from bpref.checks.hyperparameters import as_numbers, is_traced, require_share
from bpref.checks.shapes import require_shape
from bpref.dtypes import cast, widen
from bpref.formulas.pairs import count_examples, of_no_size, require_batch
from bpref.formulas.signs import as_byte
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Interval, Real, Rule


class PredictionAndTarget(NamedTuple):
    prediction: Float[Array, "*k"]
    target: Float[Array, "*n"]


class QuantileCache(NamedTuple):
    sign: Int8[Array, "..."]
    like: Float[Array, "0"]


def quantile(tau: float | Sequence[float] = 0.5) -> Layer[tuple[()], tuple[Array, Array], Reals, QuantileCache]:
    """J = 1/N sum of (1 - tau) e where e = y_hat - y is positive, and -tau e where it is negative.

    Args:
      tau: the quantile that is predicted, from 0 to 1; or K of them, one for each number in the prediction's last axis.
        An array that is traced is taken as it is: its values cannot be seen.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)` or both scalar (N = 1), and y the
      scalar J in at least float32. With K taus the prediction is `(N, ..., K)`.

    Raises:
      ValueError: a tau is not from 0 to 1, or there is none; prediction and target do not fit in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "quantile"
    taus = as_numbers(tau)
    if taus is None or taus.ndim > 1 or taus.size == 0:
        raise ValueError(f"{who}: tau is {tau!r}, expected a number from 0 to 1, or several")
    for value in [] if is_traced(taus) else taus.ravel().tolist():
        require_share(who, "tau", value)
    is_several = taus.ndim == 1

    def spread(v, like, dtype):
        """A number, or one for each tau, in the shape of `like`."""
        return lax.broadcast_in_dim(jnp.asarray(v, dtype), like.shape, range(like.ndim - v.ndim, like.ndim))

    def forward(params, x: PredictionAndTarget):
        y_hat, y = x
        require_shape(who, "prediction", y_hat, (*y.shape, *taus.shape), f"by target {y.shape} and {taus.size} taus")
        N = require_batch(who, count_examples(y))
        e = widen(y_hat) - jnp.broadcast_to(widen(y)[..., None] if is_several else widen(y), y_hat.shape)
        J = jnp.sum(jnp.where(e > 0, spread(1 - taus, e, e.dtype) * e, spread(-taus, e, e.dtype) * e)) / N
        return J, QuantileCache(as_byte(e), of_no_size(y_hat))

    def backward(params, cache, dJ):
        wide = widen(dJ)
        sign = cache.sign
        g = wide / count_examples(sign[..., 0] if is_several else sign)
        over, under, at = (g * spread(v, sign, g.dtype) for v in (1 - taus, -taus, 0.5 - taus))
        dy_hat = jnp.where(sign == 1, over, jnp.where(sign == -1, under, jnp.where(sign == 0, at, jnp.nan)))
        dy = -(jnp.sum(dy_hat, -1) if is_several else dy_hat)
        return (), (cast(dy_hat, cache.like.dtype), cast(dy, cache.like.dtype))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], tau: float | Sequence[float] = 0.5) -> Array:
    y_hat, y = x
    if isinstance(tau, Sequence):
        return jnp.sum(jnp.stack([reference(params, (y_hat[..., k], y), v) for k, v in enumerate(tau)]))
    terms = jnp.maximum(tau * (y - y_hat), (tau - 1) * (y - y_hat))
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


_TAU = Interval(0.0, 1.0, 0.9)

RULE = Rule(
    "quantile",
    quantile,
    reference,
    cases=(
        Case("median", (Real("N", points=(0.5,)), Real("N", points=(0.5,))), never_empty=("N",)),
        Case(
            "several outputs",
            (Real("N d"), Real("N d")),
            {"tau": _TAU},
            never_empty=("N",),
            timed={"N": 4096, "d": 256},
        ),
        Case("three quantiles", (Real("N K"), Real("N")), {"tau": (0.1, 0.5, 0.9)}, ("N",), fixed={"K": 3}),
    ),
    cite="Koenker and Bassett, 'Regression Quantiles' (1978), Econometrica 46, equation 1.4",
    covers=("pinball",),
)
