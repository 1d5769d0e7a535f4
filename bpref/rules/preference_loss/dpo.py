"""dpo: a policy is to prefer the chosen answer to the rejected one by more than its reference does.

The mean is that of all terms, one for each pair: what `reduction="none"` gives; of another `reduction`
(`bpref.formulas.loss.terms`) dJ / N is that one's g.

Forward, with the log-probabilities of whole answers, summed over their tokens, of shape (N,): pi of the policy, rho of
the reference, of the chosen answer c and the rejected one r:

    D_n = (pi_cn - pi_rn) - (rho_cn - rho_rn)                             (N,)
    J   = 1/N sum_n f(D_n)                                                J: ()

    sigmoid   f(D) = -(1 - s) log sigma(B D) - s log sigma(-B D)          B: `beta`, s: `smoothing`
    hinge     f(D) = max(0, 1 - B D)
    ipo       f(D) = (D - 1 / (2 B))^2

Differential: delta J = 1/N sum_n f'(D_n) delta D_n, with

    sigmoid   f'(D) = B (s - sigma(-B D))
    hinge     f'(D) = -B [B D < 1]
    ipo       f'(D) = 2 (D - 1 / (2 B))

The sweep starts with dJ. The factor of each perturbation:

    dpi_cn = drho_rn = dJ f'(D_n) / N                                     (N,)
    dpi_rn = drho_cn = -dJ f'(D_n) / N                                    (N,)

Whoever trains holds the reference, and does not use its cotangent.

Cached: f'(D), of the hinge whether B D < 1, a byte. The implicit rewards B (pi - rho) are differences of inputs, and
need no second output.

Numerical care: -log sigma(u) is softplus(-u), which does not overflow, and sigma(-u) is not written 1 - sigma(u): a
pair that is well apart keeps its small slope. With both, f is
-log sigma(B D) + s B D: one logarithm, not two. Half precision is computed and summed in float32.

Kink: the hinge's at B D = 1, where the slope is 0, as `jax.nn.relu` takes it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import widen
from bpref.formulas.loss.preference import JudgedCache, judged, kept, require_judge, slope_of
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


class Pairs(NamedTuple):
    policy_chosen: Float[Array, "some=*n"]
    policy_rejected: Float[Array, "*n"]
    reference_chosen: Float[Array, "*n"]
    reference_rejected: Float[Array, "*n"]


def dpo(
    beta: float = 0.1, smoothing: float = 0.0, form: str = "sigmoid", reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array, Array, Array], Reals, JudgedCache]:
    """J = mean over the pairs of f((pi_c - pi_r) - (rho_c - rho_r)).

    Args:
      beta: how strongly the policy is held to the reference.
      smoothing: s in [0, 1/2), the probability that a pair's labels are exchanged (cDPO); for "sigmoid" alone.
      form: "sigmoid" (DPO), "hinge" (SLiC) or "ipo".
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(policy_chosen, policy_rejected, reference_chosen, reference_rejected)`, all of one
      shape, log-probabilities of whole answers, and y the scalar J, or the terms. All four have a cotangent.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes differ; the mean is over no pairs.
      TypeError: x is no tuple of four; they are not floating-point, or of several dtypes.
    """
    who = "dpo"
    judge = require_judge(who, beta, smoothing, form)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Pairs):
        pi_c, pi_r, rho_c, rho_r = map(widen, x)
        f, slope = judged(judge, (pi_c - pi_r) - (rho_c - rho_r))
        return J_of.of(f), kept(judge, slope, x.policy_chosen)

    def backward(params, cache, dJ):
        slope = slope_of(judge, cache)
        d = jnp.where(slope == 0, 0, J_of.scaled(dJ, slope))
        return (), (d, -d, -d, d)

    return Layer(no_params, forward, backward, who)


@called_as(dpo)
def reference(params: tuple[()], x: tuple[Array, ...], beta, smoothing, form, reduction) -> Array:
    chosen, rejected, reference_chosen, reference_rejected = x
    D = (chosen - rejected) - (reference_chosen - reference_rejected)
    if form == "ipo":
        return naive_reduction((D - 1 / (2 * beta)) ** 2, reduction)
    if form == "hinge":
        return naive_reduction(jax.nn.relu(1 - beta * D), reduction)
    terms = -(1 - smoothing) * jax.nn.log_sigmoid(beta * D) - smoothing * jax.nn.log_sigmoid(-beta * D)
    return naive_reduction(terms, reduction)


_PAIRS = tuple(Real("N", -8.0, 0.0) for _ in Pairs._fields)
_BETA = Interval(0.05, 1.0, 0.1)

RULE = Rule(
    "dpo",
    dpo,
    reference,
    cases=(
        Case("smoothed", _PAIRS, {"beta": _BETA, "smoothing": Interval(0.0, 0.4, 0.1)}, ("N",), timed={"N": 1 << 20}),
        Case("each, hinge", _PAIRS, {"form": "hinge", "reduction": "none"}, ("N",)),
        Case("ipo", _PAIRS, {"beta": _BETA, "form": "ipo"}, ("N",)),
    ),
    cite="arXiv:2305.18290, equation 7; hinge: arXiv:2305.10425; ipo: arXiv:2310.12036, equation 17",
    covers=("direct preference optimization", "ipo", "cdpo", "slic"),
)
