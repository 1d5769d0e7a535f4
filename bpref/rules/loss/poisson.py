"""poisson: the negative log likelihood of counts, given their rates or the logs of them.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with the prediction z, a rate or the logarithm of one, and the counts t of one shape, i running over all M
elements. A Poisson variable of rate r is t with probability r^t exp(-r) / t!, so that

    log of a rate:   l_i = exp(z_i) - t_i z_i
    rate itself:     l_i = z_i - t_i log z_i
    J = 1/M sum_i (l_i + f(t_i))                                          J: ()

f is 0, or if `full` what is left of log t!, in Stirling's approximation, as PyTorch and optax have it:

    f(t) = t log t - t + 1/2 log(2 pi t)      for t > 1, else 0

The likelihood of all counts of an example is their product: its terms are summed by "batch_mean".

Differential, with f'(t) = log t + 1 / (2 t) for t > 1:

    log of a rate:   delta l = (exp(z) - t) delta z - z delta t
    rate itself:     delta l = (1 - t / z) delta z - log z delta t

The factor of each perturbation, one under the other for the two forms, with g_i = dJ / M, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dz_i = g_i (exp(z_i) - t_i)           dt_i = g_i (f'(t_i) - z_i)            z's shape
    dz_i = g_i (1 - t_i / z_i)            dt_i = g_i (f'(t_i) - log z_i)        z's shape

Kink: with `full`, J jumps by 0.08 at t = 1, where f begins; the slope there is that of f = 0. Counts are data.

Cached: what g multiplies in dz and, where the counts are real numbers, in dt: one array for each cotangent.
Neither z nor t is needed beside them, and for integer counts nothing is kept but dz's.

Numerical care: half precision is computed and summed in float32, and each slope rounded once. exp(z) overflows only
where the likelihood itself is 0 in the dtype. A count of 0 has no logarithm in it: l is z for any rate, 0 included,
and its slope 1, with nothing added to the rate (PyTorch's eps) that would move the others.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import SlopesCache, Target
from bpref.formulas.loss.signs import is_label
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Real, Rule, called_as


class PredictionAndCounts(NamedTuple):
    prediction: Float[Array, "*n"]
    target: Target


def poisson(
    log_input: bool = True, full: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, SlopesCache]:
    """J = mean of exp(z) - t z, or of z - t log z: the negative log likelihood of counts t.

    Args:
      log_input: whether the prediction is the logarithm of the rate, and not the rate.
      full: whether log t! is added, in Stirling's approximation, where t > 1.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, counts)` of one shape, and y the scalar J, or the terms, in at least
      float32. Counts are integers, whose cotangent is None, or of the prediction's dtype.

      Values cannot be seen while tracing: a rate below 0 makes J NaN, and a rate of 0 for a count of 1 or more makes
      it infinite.

    Raises:
      ValueError: the reduction is none of these; prediction and counts differ in shape; a mean is over no terms.
      TypeError: x is no pair; the prediction is not floating-point; floating counts have another dtype.
    """
    who = "poisson"
    require_flags(who, log_input=log_input, full=full)
    J_of = require_reduction(who, reduction)

    def forward(params, x: PredictionAndCounts):
        z, t = x
        has_cotangent = not is_label(t)
        dtype, z = z.dtype, widen(z)
        t = cast(t, z.dtype)
        if log_input:
            log_rate, rate = z, jnp.exp(z)
            slope = rate - t
        else:
            log_rate, rate = jnp.log(z), z
            slope = 1 - jnp.where(t == 0, 0, t / z)
        terms = rate - jnp.where(t == 0, 0, t * log_rate)
        target_slope = -log_rate
        if full:
            is_many = t > 1
            many = jnp.where(is_many, t, 1)
            log_t = jnp.log(many)
            terms += jnp.where(is_many, many * log_t - many + 0.5 * (math.log(2 * math.pi) + log_t), 0)
            target_slope += jnp.where(is_many, log_t + 0.5 / many, 0)
        kept = SlopesCache(cast(slope, dtype), cast(target_slope, dtype) if has_cotangent else None)
        return J_of.of(terms), kept

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache)

    return Layer(no_params, forward, backward, who)


@called_as(poisson)
def reference(params: tuple[()], x: tuple[Array, Array], log_input, full, reduction) -> Array:
    z, t = x[0], x[1].astype(x[0].dtype)
    terms = jnp.exp(z) - t * z if log_input else z - t * jnp.log(z)
    if full:
        stirling = t * jnp.log(t) - t + 0.5 * jnp.log(2 * jnp.pi * t)
        terms += jnp.where(t > 1, stirling, 0)
    return naive_reduction(terms, reduction)


_COUNTS = Integer("N d", 0, 20, points=(0, 1))

RULE = Rule(
    "poisson",
    poisson,
    reference,
    cases=(
        Case("log of a rate", (Real("N d"), _COUNTS), never_empty=("N", "d"), timed={"N": 4096, "d": 64}),
        Case("rate", (Real("N d", 0.125, 8.0), _COUNTS), {"log_input": False, "reduction": "batch_mean"}, ("N",)),
        Case("real counts", (Real("N d"), Real("N d", 0.125, 8.0)), {"full": True, "reduction": "none"}),
        Case(
            "rate, real counts",
            (Real("N d", 0.125, 8.0), Real("N d", 0.0, 8.0)),
            {"log_input": False, "reduction": "sum"},
        ),
    ),
    cite="Nelder and Wedderburn, 'Generalized Linear Models' (1972), section 3; Cameron and Trivedi, 'Regression "
    "Analysis of Count Data' (1998), section 3.2",
    covers=("poisson_nll",),
)
