"""orpo: supervised training on the chosen answer, which the odds of the rejected one add to; no reference.

The mean is that of all terms, one for each pair: what `reduction="none"` gives; of another `reduction`
(`bpref.formulas.loss.terms`) dJ / N is that one's g.

Forward, with the policy's log-probabilities per token of whole answers, the means over their tokens, of shape (N,), of
the chosen answer c and the rejected one r, each below 0:

    o(a) = log(e^a / (1 - e^a)) = a - log(1 - e^a)                        the log of the odds
    L_n  = o(c_n) - o(r_n)                                                (N,)
    J    = 1/N sum_n (-c_n - w log sigma(L_n))                            w: `weight`, J: ()

Differential, with t = 1 - e^a, o'(a) = 1 + e^a / t = 1 / t, and -(log sigma)'(L) = -sigma(-L):

    delta J = 1/N sum_n (-delta c_n - w sigma(-L_n) (delta c_n / t_cn - delta r_n / t_rn))

The sweep starts with dJ. Since e^-L is e^(r - c) t_c / t_r, sigma(-L) = t_c / (t_c + e^(c - r) t_r), and with
k = 1 / (t_c + e^(c - r) t_r) the factor of each perturbation is

    dc_n = -dJ (1 + w k_n) / N                                            (N,)
    dr_n = dJ w k_n t_cn / t_rn / N                                       (N,)

Cached: 1 + w k and w k t_c / t_r, what dJ / N multiplies.

Numerical care: t is -(e^a - 1), of expm1, where 1 - e^a cancels for an answer that is nearly certain; log t is
log1p(-e^a) where e^a is below 1/2. sigma(-L) / t_c is 0 / 0 as c goes to 0, and k is not. -log sigma(L) is
softplus(-L). Half precision is computed and summed in float32. There is no kink; where the rejected answer is certain,
r = 0, J is infinite, and where a mean is above 0, which no logarithm of a probability is, NaN.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.logistic import log1p_exp
from bpref.formulas.loss.preference import ChosenAndRejected
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule


class OrpoCache(NamedTuple):
    of_chosen: Float[Array, "..."]
    of_rejected: Float[Array, "..."]


def orpo(weight: float = 0.1, reduction: str = "mean") -> Layer[tuple[()], tuple[Array, Array], Reals, OrpoCache]:
    """J = mean over the pairs of -c - weight log sigma(o(c) - o(r)), with o(a) = a - log(1 - e^a).

    Args:
      weight: w, of the odds ratio beside the chosen answer's own log-probability (the paper's lambda, TRL's beta).
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(chosen, rejected)` of one shape, mean log-probabilities of the tokens of whole
      answers (`answer_log_probability(mean=True)`), and y the scalar J, or the terms. Both have a cotangent. The first
      term is a mean over answers of their means over tokens; trainers that take it over all tokens of a batch weigh
      long answers more.

    Raises:
      ValueError: the weight is negative; shapes differ; the mean is over no pairs.
      TypeError: x is no pair; they are not floating-point, or of several dtypes.
    """
    who = "orpo"
    weight = require_non_negative(who, "weight", weight)
    J_of = require_reduction(who, reduction)

    def forward(params, x: ChosenAndRejected):
        c, r = map(widen, x)
        (t_c, log_t_c), (t_r, log_t_r) = _rest(c), _rest(r)
        terms = weight * log1p_exp((r - c) + (log_t_c - log_t_r)) - c
        k = weight / (t_c + jnp.exp(c - r) * t_r)
        return J_of.of(terms), OrpoCache(*(cast(v, x.chosen.dtype) for v in (1 + k, k * (t_c / t_r))))

    def backward(params, cache, dJ):
        of_chosen, of_rejected = (J_of.scaled(dJ, slope) for slope in cache)
        return (), (-of_chosen, of_rejected)

    def _rest(a):
        """t = 1 - e^a and its logarithm."""
        t = -jnp.expm1(a)
        is_small = a < -math.log(2)
        return t, jnp.where(is_small, jnp.log1p(-jnp.exp(jnp.where(is_small, a, -1))), jnp.log(t))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], weight: float = 0.1, reduction: str = "mean") -> Array:
    chosen, rejected = x
    log_odds = (chosen - rejected) - (jnp.log1p(-jnp.exp(chosen)) - jnp.log1p(-jnp.exp(rejected)))
    return naive_reduction(-chosen - weight * jax.nn.log_sigmoid(log_odds), reduction)


RULE = Rule(
    "orpo",
    orpo,
    reference,
    cases=(
        Case(
            "pairs",
            (Real("N", -8.0, -0.05), Real("N", -8.0, -0.05)),
            {"weight": Interval(0.0, 1.0, 0.1)},
            ("N",),
            timed={"N": 1 << 20},
        ),
        Case("each", (Real("N", -8.0, -0.05), Real("N", -8.0, -0.05)), {"reduction": "none"}, ("N",)),
    ),
    cite="arXiv:2403.07691, equation 6; its terms in section 4 (their equation numbers not checked)",
    covers=("odds ratio preference optimization",),
)
