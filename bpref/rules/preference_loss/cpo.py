"""cpo: a policy is to prefer the chosen answer without a reference, and to stay likely to give it.

The mean is that of all terms, one for each pair: what `reduction="none"` gives; of another `reduction`
(`bpref.formulas.loss.terms`) dJ / N is that one's g.

Forward, with the policy's log-probabilities of whole answers, summed over their tokens, of shape (N,), of the chosen
answer c and the rejected one r:

    D_n = c_n - r_n                                                       (N,)
    J   = 1/N sum_n (f(D_n) - a c_n)                                      a: `likelihood`, J: ()

f is one of `dpo`'s forms, which this is with a reference that finds all answers equally likely; what the reference
did, to keep the policy near data, the second term does.

    sigmoid   f(D) = -(1 - s) log sigma(B D) - s log sigma(-B D)          B: `beta`, s: `smoothing`
    hinge     f(D) = max(0, 1 - B D)
    ipo       f(D) = (D - 1 / (2 B))^2

Differential: delta J = 1/N sum_n (f'(D_n) (delta c_n - delta r_n) - a delta c_n), with

    sigmoid   f'(D) = B (s - sigma(-B D))
    hinge     f'(D) = -B [B D < 1]
    ipo       f'(D) = 2 (D - 1 / (2 B))

The sweep starts with dJ. The factor of each perturbation:

    dc_n = dJ (f'(D_n) - a) / N                                           (N,)
    dr_n = -dJ f'(D_n) / N                                                (N,)

Cached: f'(D), of the hinge whether B D < 1, a byte.

Numerical care: that of `dpo`. f' and a have one sign where smoothing has not turned it, and their difference does not
cancel. Half precision is computed and summed in float32.

Kink: the hinge's at B D = 1, where the slope is 0, as `jax.nn.relu` takes it.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.preference import ChosenAndRejected, JudgedCache, judged, kept, require_judge, slope_of
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


def cpo(
    beta: float = 0.1, likelihood: float = 1.0, smoothing: float = 0.0, form: str = "sigmoid", reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, JudgedCache]:
    """J = mean over the pairs of f(c - r) - likelihood c.

    Args:
      beta: how fast a margin between both answers is enough.
      likelihood: a, the weight of the chosen answer's own log-probability. Trainers that divide that by the number of
        tokens have this weight divided by it.
      smoothing: s in [0, 1/2), the probability that a pair's labels are exchanged; for "sigmoid" alone.
      form: "sigmoid" (CPO), "hinge" or "ipo".
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(chosen, rejected)` of one shape, log-probabilities of whole answers (see
      `answer_log_probability`), and y the scalar J, or the terms. Both have a cotangent.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes differ; the mean is over no pairs.
      TypeError: x is no pair; they are not floating-point, or of several dtypes.
    """
    who = "cpo"
    judge = require_judge(who, beta, smoothing, form)
    likelihood = require_non_negative(who, "likelihood", likelihood)
    J_of = require_reduction(who, reduction)

    def forward(params, x: ChosenAndRejected):
        c, r = map(widen, x)
        f, slope = judged(judge, c - r)
        return J_of.of(f - likelihood * c), kept(judge, slope, x.chosen)

    def backward(params, cache, dJ):
        slope, g = widen(slope_of(judge, cache)), J_of.at_terms(dJ, cache.slope.shape)
        d = jnp.where(slope == 0, 0, g * slope)
        return (), (cast(d - g * likelihood if likelihood else d, cache.like.dtype), cast(-d, cache.like.dtype))

    return Layer(no_params, forward, backward, who)


@called_as(cpo)
def reference(params: tuple[()], x: tuple[Array, Array], beta, likelihood, smoothing, form, reduction) -> Array:
    chosen, rejected = x
    D = chosen - rejected
    if form == "ipo":
        f = (D - 1 / (2 * beta)) ** 2
    elif form == "hinge":
        f = jax.nn.relu(1 - beta * D)
    else:
        f = -(1 - smoothing) * jax.nn.log_sigmoid(beta * D) - smoothing * jax.nn.log_sigmoid(-beta * D)
    return naive_reduction(f - likelihood * chosen, reduction)


_PAIRS = (Real("N", -8.0, 0.0), Real("N", -8.0, 0.0))
_BETA = Interval(0.05, 1.0, 0.1)

RULE = Rule(
    "cpo",
    cpo,
    reference,
    cases=(
        Case("smoothed", _PAIRS, {"beta": _BETA, "smoothing": Interval(0.0, 0.4, 0.1)}, ("N",), timed={"N": 1 << 20}),
        Case("hinge", _PAIRS, {"form": "hinge", "likelihood": Interval(0.0, 2.0, 0.5)}, ("N",)),
        Case("each, ipo", _PAIRS, {"beta": _BETA, "form": "ipo", "reduction": "none"}, ("N",)),
    ),
    cite="arXiv:2401.08417, section 3 (equation number not checked); hinge: arXiv:2305.10425; ipo: arXiv:2310.12036, "
    "equation 17",
    covers=("contrastive preference optimization",),
)
