"""sigmoid_cross_entropy: binary cross-entropy of logits.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with logits x and targets t of one shape, i running over all M elements, s(x) = 1 / (1 + exp(-x)), and w the
weight of a positive answer, one number or one for each class of the last axis (1 if nothing is said):

    J = -1/M sum_i (w t_i log s(x_i) + (1 - t_i) log s(-x_i))             J: ()

Every element is an answer of its own (yes or no). A term may have a weight v_i of its own besides, v_i l_i in the place
of l_i. The mean is divided by M and not by the sum of weights.
With L(x) = log(1 + exp(-|x|)), -log s(x) = max(-x, 0) + L(x), and each term is

    w t_i max(-x_i, 0) + (1 - t_i) max(x_i, 0) + (w t_i + 1 - t_i) L(x_i)

which for w = 1 has 1 before L.

Differential, with d/dx log s(x) = s(-x) and d/dx log s(-x) = -s(x):

    delta J = 1/M sum_i (((1 - t_i) s(x_i) - w t_i s(-x_i)) delta x_i - (w log s(x_i) - log s(-x_i)) delta t_i)

The sweep starts with dJ. The factor of each perturbation, with g_i = dJ / M, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dx_i = g_i ((1 - t_i) s(x_i) - w t_i s(-x_i))                         x's shape
    dt_i = g_i (log s(-x_i) - w log s(x_i))                               t's shape; None for labels

which for w = 1 are g_i (s(x_i) - t_i) and -g_i x_i. Both are multiplied by v_i where there is one, and dv_i = g_i l_i.

Cached: what g multiplies in dx, unless the targets are labels in dt, and with weights in dv: one array for each
cotangent, v in the first two already. x, t and v are not needed beside them, and no exponential is made twice.

Numerical care: exp is only taken of -|x|, and log(1 + .) is log1p, so that no logit overflows and a confident right
answer keeps its small loss. dx is computed in its first form: s(x) - 1 would cancel for a large x with t = 1, where
-s(-x) is exact to the last bit. All terms of J are positive: nothing cancels. Half precision is computed in float32
and each slope rounded once. An infinite logit makes J infinite or NaN. There is no kink: max and |.| meet at x = 0 in
a smooth sum.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import as_numbers, fails, is_traced
from bpref.dtypes import cast, widen
from bpref.formulas.logistic import binary_cross_entropy, falling, logistic_pair
from bpref.formulas.loss.pairs import LogitsAndTarget, Target
from bpref.formulas.loss.signs import is_label
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


class WeightedLogits(NamedTuple):
    logits: Float[Array, "*n"]
    target: Target
    weight: Float[Array, "*n"]


class SigmoidCrossEntropyCache(NamedTuple):
    slope: Float[Array, "..."]
    target_slope: Float[Array, "..."] | None
    weight_slope: Float[Array, "..."] | None


def sigmoid_cross_entropy(
    positive_weight: float | Sequence[float] = 1.0,
    reduction: str = "mean",
) -> Layer[tuple[()], tuple[Array, ...], Reals, SigmoidCrossEntropyCache]:
    """J = mean of -(w t log s(x) + (1 - t) log s(-x)), s the logistic function.

    Args:
      positive_weight: w, how much a positive answer counts beside a negative one; a number, or one for each class of
        the last axis. The number of negatives by the number of positives gives both the same influence. An array that
        is traced is taken as it is: its values cannot be seen.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(logits, target)` or `(logits, target, weight)`, all of one shape, and y the scalar
      J, or the terms, in at least float32. A weight multiplies its term, and has a cotangent. The target is a
      probability in [0, 1] of the logits' dtype, or an integer or boolean label 0 or 1, whose cotangent is None. Values
      outside are not looked for: the formula is applied to them.

    Raises:
      ValueError: a weight is not positive; there is not one for each class; the reduction is none of these; logits and
        target differ in shape; a mean is over no terms.
      TypeError: x is no pair; the logits are not floating-point; a floating target has another dtype.
    """
    who = "sigmoid_cross_entropy"
    weights = as_numbers(positive_weight)
    if weights is None or weights.ndim > 1 or weights.size == 0 or fails((weights > 0) & (weights < math.inf)):
        raise ValueError(
            f"{who}: positive_weight is {positive_weight!r}, expected a positive number, or one for each C"
        )
    is_weighted = is_traced(weights) or fails(weights == 1)
    J_of = require_reduction(who, reduction)

    def forward(params, given: LogitsAndTarget | WeightedLogits):
        x, t = given[:2]
        if weights.ndim and (x.ndim == 0 or x.shape[-1] != weights.size):
            raise ValueError(
                f"{who}: logits has shape {x.shape}, expected (..., {weights.size}): positive_weight has {weights.size}"
            )
        dtype, has_cotangent = x.dtype, not is_label(t)
        x = widen(x)
        t = t.astype(x.dtype)
        s, s_minus = logistic_pair(x)
        above, below, L = jnp.where(x >= 0, x, 0), jnp.where(x >= 0, 0, -x), jnp.log1p(falling(x))
        if is_weighted:
            w = jnp.broadcast_to(weights.astype(x.dtype), x.shape)
            wt = w * t
            terms = wt * below + (1 - t) * above + (wt + 1 - t) * L
            target_slope = w * (below + L) - (above + L)
        else:
            wt, terms, target_slope = t, binary_cross_entropy(x, t), -x
        slope = (1 - t) * s - wt * s_minus
        weight_slope = None
        if isinstance(given, WeightedLogits):
            v, weight_slope = widen(given.weight), cast(terms, dtype)
            terms, slope, target_slope = v * terms, v * slope, v * target_slope
        kept = cast(slope, dtype), cast(target_slope, dtype) if has_cotangent else None
        return J_of.of(terms), SigmoidCrossEntropyCache(*kept, weight_slope)

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache[:2] if cache.weight_slope is None else cache)

    return Layer(no_params, forward, backward, who)


@called_as(sigmoid_cross_entropy)
def reference(params: tuple[()], x: tuple[Array, ...], positive_weight, reduction) -> Array:
    logits, t = x[0], x[1].astype(x[0].dtype)
    w = jnp.broadcast_to(jnp.asarray(positive_weight, t.dtype), t.shape)
    terms = -w * t * jax.nn.log_sigmoid(logits) - (1 - t) * jax.nn.log_sigmoid(-logits)
    return naive_reduction(terms * x[2] if len(x) > 2 else terms, reduction)


_FAR = (100.0, -100.0, 1e4, -1e4)

RULE = Rule(
    "sigmoid_cross_entropy",
    sigmoid_cross_entropy,
    reference,
    cases=(
        Case("labels", (Real("N", points=_FAR), Integer("N", 0, 2)), never_empty=("N",), timed={"N": 131072}),
        Case("probabilities", (Real("N d", points=(0.0, *_FAR)), Real("N d", 0.0, 1.0)), never_empty=("N", "d")),
        Case("sequence", (Real("B T d"), Integer("B T d", 0, 2)), {"reduction": "none"}),
        Case(
            "labels, weight",
            (Real("N", points=_FAR), Integer("N", 0, 2)),
            {"positive_weight": Interval(0.125, 8.0, 3.0)},
            never_empty=("N",),
        ),
        Case(
            "probabilities, weights",
            (Real("N d"), Real("N d", 0.0, 1.0)),
            {"positive_weight": (0.5, 1.0, 4.0)},
            never_empty=("N",),
            fixed={"d": 3},
        ),
        Case(
            "probabilities, terms with weights",
            (Real("N d"), Real("N d", 0.0, 1.0), Real("N d", 0.125, 4.0)),
            {"reduction": "sum"},
        ),
    ),
    cite="Goodfellow, Bengio and Courville, 'Deep Learning' (2016), section 6.2.2.2",
    covers=("bce_with_logits", "multilabel_soft_margin"),
)
