"""gaussian: the negative log likelihood of a normal variable whose mean and variance are predicted, over the batch.

Forward, with the mean m, the log-variance s and the target y of one shape (N, ...), n the example and k whatever axes
follow the first (a scalar is one example):

    e_nk = m_nk - y_nk
    l_nk = 1/2 (s_nk + e_nk^2 exp(-s_nk))                                 v = exp(s)
    J    = 1/N sum_n sum_k l_nk                                           J: ()

or, with `log_variance=False` and the variance v > 0 in the place of s, l = 1/2 (log v + e^2 / v). `full` adds the
constant 1/2 log(2 pi) to every l. Terms of one example are summed: a likelihood is the product of its factors.

Differential, with delta e = delta m - delta y:

    delta l = e exp(-s) delta e + 1/2 (1 - e^2 exp(-s)) delta s           in v:  1/2 (1 - e^2 / v) / v delta v

The factor of each perturbation, with w = exp(-s) = 1 / v:

    dm_nk = dJ e_nk w_nk / N                                              (N, ...)
    ds_nk = dJ (1 - e_nk^2 w_nk) / (2 N)      dv_nk = w_nk ds_nk          (N, ...)
    dy_nk = -dm_nk                                                        (N, ...)

dm is the error of `square`, weighed by the inverse variance; ds is 0 where the variance is the square of the error.

Cached: what dJ / N multiplies in dm and in ds or dv. dy is -dm, so two arrays serve three cotangents.

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
from bpref.formulas.pairs import count_examples, require_batch, scaled
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


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
    log_variance: bool = True, full: bool = False
) -> Layer[tuple[()], tuple[tuple[Array, Array], Array], Reals, GaussianCache]:
    """J = 1/N sum of (log v + (m - y)^2 / v) / 2: the negative log likelihood of y under N(m, v).

    Args:
      log_variance: whether the second prediction is log v, and not v.
      full: whether the constant log(2 pi) / 2 of every term is added.

    Returns:
      A layer with params `()`, x `((mean, spread), target)`, all three `(N, ...)` or all scalar (N = 1), where the
      spread is log v or v, and y the scalar J in at least float32. All three have a cotangent.

      Values cannot be seen while tracing: a variance below 0 makes J NaN, one of 0 NaN or infinite. Add a small
      number to what predicts it, or predict log v.

    Raises:
      ValueError: mean, spread and target differ in shape; N is 0.
      TypeError: x is no pair of a pair and a target; the mean is not floating-point; the others have another dtype.
    """
    who = "gaussian"
    require_flags(who, log_variance=log_variance, full=full)

    def forward(params, x: PredictionAndTarget):
        (m, s), y = x
        N = require_batch(who, count_examples(m))
        dtype = m.dtype
        m, s, y = widen(m), widen(s), widen(y)
        e = m - y
        if log_variance:
            root = jnp.exp(-0.5 * s)
            z2, slope = (e * root) ** 2, e * root * root
        else:
            slope = e / s
            z2 = e * slope
        terms = (s if log_variance else jnp.log(s)) + z2
        J = 0.5 / N * jnp.sum(terms)
        if full:
            J += 0.5 * math.log(2 * math.pi) * (terms.size / N)
        ds = 0.5 * (1 - z2)
        if not log_variance:
            ds /= s
        return J, GaussianCache(cast(slope, dtype), cast(ds, dtype))

    def backward(params, cache, dJ):
        N = count_examples(cache.mean_slope)
        dm = scaled(dJ, N, cache.mean_slope)
        return (), ((dm, scaled(dJ, N, cache.spread_slope)), -dm)

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()], x: tuple[tuple[Array, Array], Array], log_variance: bool = True, full: bool = False
) -> Array:
    (m, s), y = x
    v = jnp.exp(s) if log_variance else s
    terms = 0.5 * jnp.log(2 * jnp.pi * v if full else v) + (m - y) ** 2 / (2 * v)
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


RULE = Rule(
    "gaussian",
    gaussian,
    reference,
    cases=(
        Case(
            "log-variance",
            ((Real("N d"), Real("N d")), Real("N d")),
            never_empty=("N",),
            timed={"N": 4096, "d": 64},
        ),
        Case(
            "variance",
            ((Real("N d"), Real("N d", 0.125, 4.0)), Real("N d")),
            {"log_variance": False},
            never_empty=("N",),
        ),
        Case("one output, full", ((Real("N"), Real("N")), Real("N")), {"full": True}, never_empty=("N",)),
    ),
    cite="Nix and Weigend, 'Estimating the mean and variance of the target probability distribution' (1994), ICNN",
    covers=("gaussian_nll", "heteroscedastic"),
)
