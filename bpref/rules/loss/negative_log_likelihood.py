"""negative_log_likelihood: minus the log-probability of a label, where log-probabilities are given.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with log-probabilities z of shape (..., C), n running over all leading axes (the positions), a label y for
each, and for each class a weight w_c (1 if nothing is said):

    J = -1/N sum_n v_n z_n,y_n                                            J: ()

v_n is w_y, and 0 where the label is `ignored`; N = sum_n v_n, 1 where that is 0: the mean is weighted, as PyTorch's
(`bpref.formulas.loss.counted_labels`). Nothing is assumed to sum to 1. Of logits `softmax_cross_entropy` is the same,
in one step: a log-softmax by itself keeps all its log-probabilities, of which one is used here.

Differential: delta J = -1/N sum_n v_n delta z_n,y_n. The factor of each perturbation, with g_n = dJ / N, or another
`reduction`'s (`bpref.formulas.loss.terms`):

    dz_nc = -g_n v_n [c = y_n]                                            (..., C)

Cached: the labels. J is linear in z, and none of it is needed; C and the dtype are kept in an array without elements.

Numerical care: half precision is summed in float32. A log-probability of -inf is a loss of +inf, and has the slope of
any other; a weight of 0 takes it out, 0 times infinity being 0. There is no kink.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.loss.counted_labels import require_counting
from bpref.formulas.loss.labels import is_class, own_score
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Real, Rule, called_as


class LogProbabilitiesAndLabel(NamedTuple):
    log_probabilities: Float[Array, "*n C>0"]
    label: Int[Array, "*n"]


class NegativeLogLikelihoodCache(NamedTuple):
    label: Int[Array, "..."]
    like: Float[Array, "0 C"]


def negative_log_likelihood(
    ignored: int | None = None, class_weights: Sequence[float] | None = None, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, NegativeLogLikelihoodCache]:
    """J = mean over the positions of -z_y, z being log-probabilities.

    Args:
      ignored: a label, such as -100, whose positions give no loss and no gradient, and do not count in the mean.
      class_weights: w, how much each class counts, C numbers; the mean is weighted by them as well. An array that is
        traced is taken as it is: its values cannot be seen.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(log_probabilities, label)` of shapes `(..., C)` and `(...)`, the labels integers
      whose cotangent is None, and y the scalar J, or the terms (...), in at least float32.

      A label outside `[0, C)` cannot be seen while tracing. It is never silent: J is NaN, and so is the gradient of
      that position (of no other), which tells where it stands.

    Raises:
      ValueError: a hyperparameter is out of its range; the shapes do not fit; there are no classes; a mean is over no
        positions.
      TypeError: x is no pair; the log-probabilities are not floating-point; the labels are no integers.
    """
    who = "negative_log_likelihood"
    counting = require_counting(who, ignored, class_weights)
    J_of = require_reduction(who, reduction)

    def forward(params, x: LogProbabilitiesAndLabel):
        z, label = x
        counting.require_classes("log_probabilities", z)
        v, N = counting.positions(label, z)
        terms = jnp.where(v == 0, 0, -v * widen(own_score(label, z)))
        like = jnp.zeros((0, z.shape[-1]), z.dtype)
        return J_of.of(terms[..., 0], N), NegativeLogLikelihoodCache(label, like)

    def backward(params, cache, dJ):
        label, like = cache
        y = widen_integers(label)
        v, N = counting.positions(label, like)
        g = -J_of.at_terms(dJ, label.shape, N, below=1) * v
        shape = (*label.shape, like.shape[-1])
        is_hit = (lax.broadcasted_iota(y.dtype, shape, y.ndim) == y[..., None]) | ~is_class(y, like)[..., None]
        return (), (cast(counting.unless_ignored(y, jnp.where(is_hit, g, 0)), like.dtype), None)

    return Layer(no_params, forward, backward, who)


@called_as(negative_log_likelihood)
def reference(params: tuple[()], x: tuple[Array, Array], ignored, class_weights, reduction) -> Array:
    z, label = x
    C = z.shape[-1]
    w = jnp.ones(C, z.dtype) if class_weights is None else jnp.asarray(class_weights, z.dtype)
    kept = jnp.ones(label.shape, bool) if ignored is None else label != ignored
    label = jnp.where(kept, label, 0)
    v = jnp.where(kept, w[label], 0)
    return naive_reduction(-v * jnp.sum(jax.nn.one_hot(label, C, dtype=z.dtype) * z, -1), reduction, v)


_WEIGHTS = (0.5, 1.0, 2.5)

RULE = Rule(
    "negative_log_likelihood",
    negative_log_likelihood,
    reference,
    cases=(
        Case(
            "labels",
            (Real("N C", -8.0, 0.0), Integer("N", 0, "C")),
            never_empty=("N", "C"),
            timed={"N": 4096, "C": 256},
        ),
        Case(
            "ignored, class weights",
            (Real("N C", -8.0, 0.0), Integer("N", 0, "C", points=(-1,))),
            {"ignored": -1, "class_weights": _WEIGHTS},
            never_empty=("N",),
            fixed={"C": len(_WEIGHTS)},
        ),
        Case(
            "each of a sequence, class weights",
            (Real("B T C", -8.0, 0.0), Integer("B T", 0, "C")),
            {"class_weights": _WEIGHTS, "reduction": "none"},
            fixed={"C": len(_WEIGHTS)},
        ),
    ),
    cite="Goodfellow, Bengio and Courville, 'Deep Learning' (2016), section 6.2.1.1; PyTorch, NLLLoss",
    covers=("nll",),
)
