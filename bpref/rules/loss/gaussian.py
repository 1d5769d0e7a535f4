"""gaussian: the negative log likelihood of a normal variable whose mean and variance are predicted.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with the mean m, the log-variance s and the target y of one shape, i running over all M elements:

    e_i = m_i - y_i
    l_i = 1/2 (s_i + e_i^2 exp(-s_i))                                     v = exp(s)
    J   = 1/M sum_i l_i                                                   J: ()

or, with `log_variance=False` and the variance v > 0 in the place of s, l = 1/2 (log v + e^2 / v). `full` adds the
constant 1/2 log(2 pi) to every l. The likelihood of an example is the product of its factors: its terms are summed by
"batch_mean".

Differential, with delta e = delta m - delta y:

    delta l = e exp(-s) delta e + 1/2 (1 - e^2 exp(-s)) delta s           in v:  1/2 (1 - e^2 / v) / v delta v

The factor of each perturbation, with w = exp(-s) = 1 / v and g_i = dJ / M, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dm_i = g_i e_i w_i                                                    m's shape
    ds_i = g_i (1 - e_i^2 w_i) / 2        dv_i = w_i ds_i                 m's shape
    dy_i = -dm_i                                                          m's shape

dm is the error of `square`, weighed by the inverse variance; ds is 0 where the variance is the square of the error.

Cached: what g multiplies in dm and in ds or dv. dy is -dm, so two arrays serve three cotangents.

Numerical care: z = e exp(-s / 2), the error in standard deviations, is squared, and not e, whose square may overflow
where z^2 does not; in v, z^2 is e (e / v), since a root, squared again, doubles its rounding. Half precision is
computed and summed in float32, and each slope rounded once. 1 - z^2 cancels near its root, as the function itself does.
There is no kink.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule, called_as


class MeanAndSpread(NamedTuple):
    mean: Float[Array, "*n"]
    spread: Float[Array, "*n"]


class PredictionAndTarget(NamedTuple):
    prediction: MeanAndSpread
    target: Float[Array, "*n"]


class GaussianCache(NamedTuple):
    mean_slope: Float[Array, "..."]
    spread_slope: Float[Array, "..."]


def gaussian(
    log_variance: bool = True, full: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[tuple[Array, Array], Array], Reals, GaussianCache]:
    """J = mean of (log v + (m - y)^2 / v) / 2: the negative log likelihood of y under N(m, v).

    Args:
      log_variance: whether the second prediction is log v, and not v.
      full: whether the constant log(2 pi) / 2 of every term is added.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `((mean, spread), target)`, all three of one shape, where the spread is log v or v,
      and y the scalar J, or the terms, in at least float32. All three have a cotangent.

      Values cannot be seen while tracing: a variance below 0 makes J NaN, one of 0 NaN or infinite. Add a small
      number to what predicts it, or predict log v.

    Raises:
      ValueError: the reduction is none of these; mean, spread and target differ in shape; a mean is over no terms.
      TypeError: x is no pair of a pair and a target; the mean is not floating-point; the others have another dtype.
    """
    who = "gaussian"
    require_flags(who, log_variance=log_variance, full=full)
    J_of = require_reduction(who, reduction)

    def forward(params, x: PredictionAndTarget):
        (m, s), y = x
        dtype = m.dtype
        m, s, y = widen(m), widen(s), widen(y)
        e = m - y
        if log_variance:
            root = jnp.exp(-0.5 * s)
            z2, slope = (e * root) ** 2, e * root * root
        else:
            slope = e / s
            z2 = e * slope
        terms = 0.5 * ((s if log_variance else jnp.log(s)) + z2)
        if full:
            terms += 0.5 * math.log(2 * math.pi)
        ds = 0.5 * (1 - z2)
        if not log_variance:
            ds /= s
        return J_of.of(terms), GaussianCache(cast(slope, dtype), cast(ds, dtype))

    def backward(params, cache, dJ):
        dm, dspread = (J_of.scaled(dJ, slope) for slope in cache)
        return (), ((dm, dspread), -dm)

    return Layer(no_params, forward, backward, who)


@called_as(gaussian)
def reference(params: tuple[()], x: tuple[tuple[Array, Array], Array], log_variance, full, reduction) -> Array:
    (m, s), y = x
    v = jnp.exp(s) if log_variance else s
    terms = 0.5 * jnp.log(2 * jnp.pi * v if full else v) + (m - y) ** 2 / (2 * v)
    return naive_reduction(terms, reduction)


RULE = Rule(
    "gaussian",
    gaussian,
    reference,
    cases=(
        Case(
            "log-variance",
            ((Real("N d"), Real("N d")), Real("N d")),
            never_empty=("N", "d"),
            timed={"N": 4096, "d": 64},
        ),
        Case(
            "variance",
            ((Real("N d"), Real("N d", 0.125, 4.0)), Real("N d")),
            {"log_variance": False, "reduction": "none"},
        ),
        Case("one output, full", ((Real("N"), Real("N")), Real("N")), {"full": True}, never_empty=("N",)),
    ),
    cite="Nix and Weigend, 'Estimating the mean and variance of the target probability distribution' (1994), ICNN",
    covers=("gaussian_nll", "heteroscedastic"),
)
