"""quantile: the pinball loss, whose least value is at the tau-th quantile of the target, as a mean over the batch.

Forward, with the prediction y_hat and the target y of one shape (N, ...), n the example, k whatever axes follow
the first (a scalar is one example), and tau from 0 to 1:

    e_nk = y_hat_nk - y_nk
    l_nk = (1 - tau) e_nk    where e_nk >= 0, the prediction is too large
           -tau e_nk         where e_nk < 0, it is too small
    J    = 1/N sum_n sum_k l_nk                                           J: ()

At the least J the examples below the prediction, weighed by 1 - tau, balance those above it, weighed by tau: a share
tau lies below. tau = 1/2 is half of `absolute`, whose best prediction is the median. Terms of one example are summed.

Differential: delta l = s(e) delta e, with the slope s of the line that e lies on. The factor of each perturbation:

    s_nk      = 1 - tau,  -tau,  or 1/2 - tau, where e_nk is > 0, < 0 or = 0
    dy_hat_nk = dJ s_nk / N                                               (N, ...)
    dy_nk     = -dJ s_nk / N                                              (N, ...)

Kink: at e = 0 every slope from -tau to 1 - tau is a subgradient; the middle, 1/2 - tau, is taken, as `jnp.maximum`
does and as |e| / 2 + (1/2 - tau) e has with the 0 of |e|.

Cached: the sign of e, in one byte. How large an error was has no effect on the gradient.

Numerical care: 1 - tau and tau are taken as they are, and not as differences from 1/2, which would lose the digits
of a small tau. Half precision is subtracted and summed in float32. A NaN makes J NaN, and its own gradient that of
e = 0, since a byte has no NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int8

from bpref.dtypes import cast, widen
from bpref.formulas.hyperparameters import require_share
from bpref.formulas.pairs import as_matching_pair, count_examples, require_batch, scaled
from bpref.layer import Layer, no_params
from bpref.rule import Case, Interval, Real, Rule


class QuantileCache(NamedTuple):
    sign: Int8[Array, "..."]


def quantile(tau: float = 0.5) -> Layer:
    """J = 1/N sum of (1 - tau) e where e = y_hat - y is positive, and -tau e where it is negative.

    Args:
      tau: the quantile that is predicted, from 0 to 1.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)` or both scalar (N = 1), and y the
      scalar J in the prediction's dtype.

    Raises:
      ValueError: tau is not from 0 to 1; prediction and target differ in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; the target has another dtype.
    """
    who = "quantile"
    require_share(who, "tau", tau)

    def forward(params, x):
        y_hat, y = as_matching_pair(who, "prediction", x)
        N = require_batch(who, count_examples(y_hat))
        e = widen(y_hat) - widen(y)
        J = jnp.sum(jnp.maximum((1 - tau) * e, -tau * e)) / N
        sign = (e > 0).astype(jnp.int8) - (e < 0).astype(jnp.int8)
        return cast(J, y_hat.dtype), QuantileCache(sign)

    def backward(params, cache, dJ):
        sign = cache.sign
        slope = jnp.where(sign > 0, 1 - tau, jnp.where(sign < 0, -tau, 0.5 - tau))
        dy_hat = cast(scaled(widen(dJ), count_examples(sign), cast(slope, widen(dJ).dtype)), dJ.dtype)
        return (), (dy_hat, -dy_hat)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], tau: float = 0.5) -> Array:
    y_hat, y = x
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
    ),
    cite="Koenker and Bassett, 'Regression Quantiles' (1978), Econometrica 46, equation 1.4",
    covers=("pinball",),
)
