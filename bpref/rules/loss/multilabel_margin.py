"""multilabel_margin: each class of an example scores more than each other class by a margin, or pays.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with scores z of shape (..., C), n running over all leading axes (the positions), the classes Y that
a position has, c_nj how often each counts (1 for those of a mask), and m the hyperparameter `margin`:

    h_nji = max(0, m - z_nj + z_ni)      for j in Y_n and i not in Y_n    (..., C, C), never held
    l_n   = 1/C sum_ji c_nj h_nji
    J     = 1/N sum_n l_n                                                 J: ()

A position with all classes, or with none, has no pair, and a loss of 0. With one class each it is `multiclass_hinge`.

Differential, with k_nji = c_nj [h_nji > 0]:

    delta l_n = 1/C sum_ji k_nji (delta z_ni - delta z_nj)

A class is on one side or the other. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dz_nj = -g_n / C sum_i k_nji              for j in Y_n                (..., C)
    dz_ni = g_n / C sum_j k_nji               for i not in Y_n

The gradient of a position sums to 0: only differences of scores count.

Kink: at z_j - z_i = m the derivative jumps; 0 is taken, as `jax.nn.relu` does.

Cached: what g multiplies, one number for each class; neither scores nor mask are needed. The C^2 differences of a
position are summed as they are made.

Numerical care: half precision is computed and summed in float32, where a count of classes is exact, and the slope is
rounded once. A NaN score makes J NaN where it is in a pair.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.signs import is_positive
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Integer, Interval, Real, Rule


class ScoresAndClasses(NamedTuple):
    scores: Float[Array, "*n C>0"]
    classes: Bool[Array, "*n C"] | Int[Array, "*n C"]


class MultilabelMarginCache(NamedTuple):
    slope: Float[Array, "... C"]


def multilabel_margin(
    margin: float = 1.0, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, MultilabelMarginCache]:
    """J = mean over the positions of 1/C sum over j in Y and i not in Y of max(0, margin - z_j + z_i).

    Args:
      margin: by how much the score of each class of an example must exceed each other.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(scores, classes)`, both `(..., C)`, the latter booleans, which classes a position
      has, or integers, how often each counts (not at all: 0 and below), whose cotangent is None; and y the scalar J, or
      the terms (...), in at least float32.

    Raises:
      ValueError: margin is negative; the reduction is none of these; the shapes differ; there are no classes; a mean is
        over no positions.
      TypeError: x is no pair; the scores are not floating-point; the classes are real.
    """
    who = "multilabel_margin"
    margin = require_non_negative(who, "margin", margin)
    J_of = require_reduction(who, reduction)

    def forward(params, x: ScoresAndClasses):
        scores, classes = x
        z, C, own = widen(scores), scores.shape[-1], is_positive(classes)
        c = classes.astype(z.dtype)[..., :, None]
        missing = margin - (z[..., :, None] - z[..., None, :])
        pays = own[..., :, None] & ~own[..., None, :] & ~(missing <= 0)
        k = jnp.where(pays, c, 0)
        slope = jnp.where(own, -jnp.sum(k, -1), jnp.sum(k, -2)) / C
        terms = jnp.sum(jnp.where(pays, c * missing, 0), (-2, -1)) / C
        return J_of.of(terms), MultilabelMarginCache(cast(slope, scores.dtype))

    def backward(params, cache, dJ):
        return (), (J_of.scaled(dJ, cache.slope, below=1), None)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], margin: float = 1.0, reduction: str = "mean") -> Array:
    scores, times = x[0], jnp.maximum(x[1].astype(x[0].dtype), 0)
    own = times > 0
    C, total = scores.shape[-1], jnp.zeros(scores.shape[:-1], scores.dtype)
    for j in range(C):
        for i in range(C):
            h = jax.nn.relu(margin - scores[..., j] + scores[..., i])
            total += jnp.where(own[..., j] & ~own[..., i], times[..., j] * h, 0)
    return naive_reduction(total / C, reduction)


RULE = Rule(
    "multilabel_margin",
    multilabel_margin,
    reference,
    cases=(
        Case(
            "classes",
            (Real("N C", points=(100.0, -100.0)), Boolean("N C")),
            {"margin": Interval(0.5, 3.0, 1.0)},
            ("N", "C"),
            fixed={"C": 5},
            timed={"N": 4096, "C": 8},
        ),
        Case("each, how often", (Real("B T C"), Integer("B T C", -1, 3)), {"reduction": "none"}, fixed={"C": 4}),
    ),
    cite="Crammer and Singer, 'A family of additive online algorithms for category ranking' (2003), JMLR 3; PyTorch, "
    "MultiLabelMarginLoss",
)
