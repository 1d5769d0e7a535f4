"""poisson: the negative log likelihood of counts, given their rates or the logs of them, a mean over the batch.

Forward, with the prediction z and the counts t of one shape (N, ...), n the example and k whatever axes follow the
first (a scalar is one example). A Poisson variable of rate r is t with probability r^t exp(-r) / t!, so that

    log of a rate:   l_nk = exp(z_nk) - t_nk z_nk
    rate itself:     l_nk = z_nk - t_nk log z_nk
    J = 1/N sum_n sum_k (l_nk + f(t_nk))                                  J: ()

f is 0, or if `full` what is left of log t!, in Stirling's approximation, as PyTorch and optax have it:

    f(t) = t log t - t + 1/2 log(2 pi t)      for t > 1, else 0

Terms of one example are summed: the likelihood of all its counts is their product.

Differential, with f'(t) = log t + 1 / (2 t) for t > 1:

    log of a rate:   delta l = (exp(z) - t) delta z - z delta t
    rate itself:     delta l = (1 - t / z) delta z - log z delta t

The factor of each perturbation, one under the other for the two forms:

    dz_nk = dJ (exp(z_nk) - t_nk) / N         dt_nk = dJ (f'(t_nk) - z_nk) / N            (N, ...)
    dz_nk = dJ (1 - t_nk / z_nk) / N          dt_nk = dJ (f'(t_nk) - log z_nk) / N        (N, ...)

Kink: with `full`, J jumps by 0.08 at t = 1, where f begins; the slope there is that of f = 0. Counts are data.

Cached: what dJ / N multiplies in dz and, where the counts are real numbers, in dt: one array for each cotangent.
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
from bpref.formulas.pairs import Target, count_examples, require_batch, scaled
from bpref.formulas.signs import is_label
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Integer, Real, Rule


class PredictionAndCounts(NamedTuple):
    prediction: Float[Array, "*n"]
    target: Target


class PoissonCache(NamedTuple):
    slope: Float[Array, "..."]
    target_slope: Float[Array, "..."] | None


def poisson(log_input: bool = True, full: bool = False) -> Layer[tuple[()], tuple[Array, Array], Reals, PoissonCache]:
    """J = 1/N sum of exp(z) - t z, or of z - t log z: the negative log likelihood of counts t.

    Args:
      log_input: whether the prediction is the logarithm of the rate, and not the rate.
      full: whether log t! is added, in Stirling's approximation, where t > 1.

    Returns:
      A layer with params `()`, x `(prediction, counts)`, both `(N, ...)` or both scalar (N = 1), and y the scalar J
      in at least float32. Counts are integers, whose cotangent is None, or of the prediction's dtype.

      Values cannot be seen while tracing: a rate below 0 makes J NaN, and a rate of 0 for a count of 1 or more makes
      it infinite.

    Raises:
      ValueError: prediction and counts differ in shape; N is 0.
      TypeError: x is no pair; the prediction is not floating-point; floating counts have another dtype.
    """
    who = "poisson"
    require_flags(who, log_input=log_input, full=full)

    def forward(params, x: PredictionAndCounts):
        z, t = x
        has_cotangent = not is_label(t)
        N = require_batch(who, count_examples(z))
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
        kept = PoissonCache(cast(slope, dtype), cast(target_slope, dtype) if has_cotangent else None)
        return jnp.sum(terms) / N, kept

    def backward(params, cache, dJ):
        N = count_examples(cache.slope)
        dt = None if cache.target_slope is None else scaled(dJ, N, cache.target_slope)
        return (), (scaled(dJ, N, cache.slope), dt)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], log_input: bool = True, full: bool = False) -> Array:
    z, t = x[0], x[1].astype(x[0].dtype)
    terms = jnp.exp(z) - t * z if log_input else z - t * jnp.log(z)
    if full:
        stirling = t * jnp.log(t) - t + 0.5 * jnp.log(2 * jnp.pi * t)
        terms += jnp.where(t > 1, stirling, 0)
    return jnp.mean(jnp.sum(terms, axis=tuple(range(1, terms.ndim))))


_COUNTS = Integer("N d", 0, 20, points=(0, 1))

RULE = Rule(
    "poisson",
    poisson,
    reference,
    cases=(
        Case("log of a rate", (Real("N d"), _COUNTS), never_empty=("N",), timed={"N": 4096, "d": 64}),
        Case("rate", (Real("N d", 0.125, 8.0), _COUNTS), {"log_input": False}, never_empty=("N",)),
        Case("real counts", (Real("N d"), Real("N d", 0.125, 8.0)), {"full": True}, never_empty=("N",)),
        Case(
            "rate, real counts",
            (Real("N d", 0.125, 8.0), Real("N d", 0.0, 8.0)),
            {"log_input": False},
            never_empty=("N",),
        ),
    ),
    cite="Nelder and Wedderburn, 'Generalized Linear Models' (1972), section 3; Cameron and Trivedi, 'Regression "
    "Analysis of Count Data' (1998), section 3.2",
    covers=("poisson_nll",),
)
