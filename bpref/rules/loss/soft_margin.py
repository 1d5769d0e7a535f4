"""soft_margin: the logistic loss of a score and a sign, log(1 + exp(-t x)).

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with scores x and targets t of one shape, i running over all M elements:

    l_i = log(1 + exp(-t_i x_i))
    J   = 1/M sum_i l_i                                                   J: ()

t is -1 or +1. A label (integer or boolean) is read by its sign, so that 0 and False are -1, and J is
`sigmoid_cross_entropy`; a real target is a number like any other.

Differential, with s(x) = 1 / (1 + exp(-x)) and d/dx log(1 + exp(-x)) = -s(-x):

    delta l = -s(-t x) (t delta x + x delta t)

The sweep starts with dJ. The factor of each perturbation, with g_i = dJ / M, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dx_i = -g_i s(-t_i x_i) t_i                                           x's shape
    dt_i = -g_i s(-t_i x_i) x_i           None for labels                 x's shape

Cached: what g multiplies in dx and, unless the targets are labels, in dt: one array for each cotangent.

Numerical care: log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)): no score overflows, and a confident right answer keeps
its small loss and its small slope. Half precision is computed in float32 and each slope rounded once. There is no kink.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.dtypes import cast, widen
from bpref.formulas.logistic import log1p_exp, logistic
from bpref.formulas.loss.pairs import ScoresAndTarget, SlopesCache
from bpref.formulas.loss.signs import is_label, is_positive
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Integer, Real, Rule


def soft_margin(reduction: str = "mean") -> Layer[tuple[()], tuple[Array, Array], Reals, SlopesCache]:
    """J = mean of log(1 + exp(-t x)).

    Args:
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(scores, target)` of one shape and y the scalar J, or the terms, in at least float32.
      The target is a label, integer or boolean (positive is +1, anything else -1), whose cotangent is None, or a real
      number of the scores' dtype.

    Raises:
      ValueError: the reduction is none of these; scores and target differ in shape; a mean is over no terms.
      TypeError: x is no pair; the scores are not floating-point; a real target has another dtype.
    """
    who = "soft_margin"
    J_of = require_reduction(who, reduction)

    def forward(params, pair: ScoresAndTarget):
        x, t = pair
        wide = widen(x)
        sign = jnp.where(is_positive(t), 1, -1).astype(wide.dtype) if is_label(t) else widen(t)
        tx = sign * wide
        s = logistic(-tx)
        target_slope = None if is_label(t) else cast(-s * wide, x.dtype)
        return J_of.of(log1p_exp(-tx)), SlopesCache(cast(-s * sign, x.dtype), target_slope)

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], reduction: str = "mean") -> Array:
    scores, target = x
    if not jnp.issubdtype(target.dtype, jnp.floating):
        target = jnp.where(target.astype(int) > 0, 1, -1).astype(scores.dtype)
    return naive_reduction(-jax.nn.log_sigmoid(target * scores), reduction)


_FAR = (100.0, -100.0, 1e4, -1e4)

RULE = Rule(
    "soft_margin",
    soft_margin,
    reference,
    cases=(
        Case(
            "labels",
            (Real("N d", points=_FAR), Integer("N d", -1, 2)),
            never_empty=("N", "d"),
            timed={"N": 4096, "d": 64},
        ),
        Case("each of real targets", (Real("N d"), Real("N d", -1.0, 1.0)), {"reduction": "none"}),
        Case("booleans", (Real("N"), Boolean("N")), {"reduction": "batch_mean"}, ("N",)),
    ),
    cite="Hastie, Tibshirani and Friedman, 'The Elements of Statistical Learning', 2nd edition, equation 10.18 "
    "(number not checked); PyTorch, SoftMarginLoss",
    covers=("logistic_loss",),
)
