"""simpo: the chosen answer is to be likelier per token than the rejected one, by a margin, without a reference.

The mean is that of all terms, one for each pair: what `reduction="none"` gives; of another `reduction`
(`bpref.formulas.loss.terms`) dJ / N is that one's g.

Forward, with the policy's log-probabilities per token of whole answers, the means over their tokens, of shape (N,), of
the chosen answer c and the rejected one r:

    D_n = c_n - r_n - g / B                                               (N,)
    J   = 1/N sum_n f(D_n)                                                g: `margin`, B: `beta`, J: ()

    sigmoid   f(D) = -(1 - s) log sigma(B D) - s log sigma(-B D)          s: `smoothing`
    hinge     f(D) = max(0, 1 - B D)

B (c - r) - g is B D: the rewards, B times the means, are to be g apart.

Differential: delta J = 1/N sum_n f'(D_n) (delta c_n - delta r_n), with

    sigmoid   f'(D) = B (s - sigma(-B D))
    hinge     f'(D) = -B [B D < 1]

The sweep starts with dJ. The factor of each perturbation:

    dc_n = -dr_n = dJ f'(D_n) / N                                         (N,)

Cached: f'(D), of the hinge whether B D < 1, a byte.

Numerical care: that of `dpo`. Half precision is computed and summed in float32.

Kink: the hinge's at B D = 1, where the slope is 0, as `jax.nn.relu` takes it.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_finite
from bpref.dtypes import widen
from bpref.formulas.loss.preference import ChosenAndRejected, JudgedCache, judged, kept, require_judge, slope_of
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


def simpo(
    beta: float = 2.0, margin: float = 0.5, smoothing: float = 0.0, form: str = "sigmoid", reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, JudgedCache]:
    """J = mean over the pairs of f(c - r - margin / beta).

    Args:
      beta: B, what makes a reward of a log-probability per token.
      margin: g, how far apart the rewards are to be.
      smoothing: s in [0, 1/2), the probability that a pair's labels are exchanged; for "sigmoid" alone.
      form: "sigmoid" or "hinge".
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(chosen, rejected)` of one shape, mean log-probabilities of the tokens of whole
      answers (`answer_log_probability(mean=True)`), and y the scalar J, or the terms. Both have a cotangent.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes differ; the mean is over no pairs.
      TypeError: x is no pair; they are not floating-point, or of several dtypes.
    """
    who = "simpo"
    judge = require_judge(who, beta, smoothing, form, ("sigmoid", "hinge"))
    least = require_finite(who, "margin", margin) / judge.beta
    J_of = require_reduction(who, reduction)

    def forward(params, x: ChosenAndRejected):
        c, r = map(widen, x)
        f, slope = judged(judge, (c - r) - least)
        return J_of.of(f), kept(judge, slope, x.chosen)

    def backward(params, cache, dJ):
        slope = slope_of(judge, cache)
        d = jnp.where(slope == 0, 0, J_of.scaled(dJ, slope))
        return (), (d, -d)

    return Layer(no_params, forward, backward, who)


@called_as(simpo)
def reference(params: tuple[()], x: tuple[Array, Array], beta, margin, smoothing, form, reduction) -> Array:
    chosen, rejected = x
    u = beta * (chosen - rejected) - margin
    if form == "hinge":
        return naive_reduction(jax.nn.relu(1 - u), reduction)
    terms = -(1 - smoothing) * jax.nn.log_sigmoid(u) - smoothing * jax.nn.log_sigmoid(-u)
    return naive_reduction(terms, reduction)


_PAIRS = (Real("N", -3.0, 0.0), Real("N", -3.0, 0.0))

RULE = Rule(
    "simpo",
    simpo,
    reference,
    cases=(
        Case(
            "smoothed",
            _PAIRS,
            {"beta": Interval(0.5, 3.0, 2.0), "margin": Interval(0.0, 2.0, 0.5), "smoothing": Interval(0.0, 0.4, 0.1)},
            ("N",),
            timed={"N": 1 << 20},
        ),
        Case("each, hinge", _PAIRS, {"form": "hinge", "reduction": "none"}, ("N",)),
    ),
    cite="arXiv:2405.14734, equation 6",
    covers=("simple preference optimization",),
)
