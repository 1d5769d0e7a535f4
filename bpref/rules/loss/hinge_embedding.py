"""hinge_embedding: a distance of two things that belong together is to be small; of others, at least a margin.

The mean is that of all terms, one for each distance: what `reduction="none"` gives.

Forward, with distances x and labels t of one shape, i running over all M elements, and m the hyperparameter `margin`:

    l_i = x_i                 where the label is +1
          max(0, m - x_i)     where it is -1
    J   = 1/M sum_i l_i                                                   J: ()

A label (integer or boolean) is read by its sign, so that 0 and False are -1.

Differential: delta l = k delta x, with k = 1 where the label is +1 and k = -[x < m] where it is -1. The factor of each
perturbation, with g_i = dJ / M, or another `reduction`'s (`bpref.formulas.loss.terms`):

    dx_i = g_i k_i                                                        x's shape

Kink: at x = m of a label -1 the derivative jumps from -1 to 0; 0 is taken, as `jax.nn.relu` does.

Cached: k, in one byte. Neither x nor t is needed.

Numerical care: half precision is computed and summed in float32. m - x cancels near the kink, where l is small in truth
too. A NaN makes J NaN, and its own gradient is that of its label: 1, or 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, Int8

from bpref.checks.hyperparameters import require_finite
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import of_no_size
from bpref.formulas.loss.signs import is_positive
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Integer, Interval, Real, Rule


class DistancesAndLabel(NamedTuple):
    distances: Float[Array, "*n"]
    label: Int[Array, "*n"] | Bool[Array, "*n"]


class HingeEmbeddingCache(NamedTuple):
    k: Int8[Array, "..."]
    like: Float[Array, "0"]


def hinge_embedding(
    margin: float = 1.0, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, HingeEmbeddingCache]:
    """J = mean of x where the label is +1, and of max(0, margin - x) where it is -1.

    Args:
      margin: the distance from which on things that do not belong together cost nothing.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(distances, label)` of one shape, the labels integer or boolean (positive is +1,
      anything else -1; their cotangent is None), and y the scalar J, or the terms, in at least float32.

    Raises:
      ValueError: margin is not finite; the reduction is none of these; the shapes differ; a mean is over no terms.
      TypeError: x is no pair; the distances are not floating-point; the labels are real.
    """
    who = "hinge_embedding"
    margin = require_finite(who, "margin", margin)
    J_of = require_reduction(who, reduction)

    def forward(params, pair: DistancesAndLabel):
        x, label = pair
        wide, together = widen(x), is_positive(label)
        missing = margin - wide
        terms = jnp.where(together, wide, jnp.where(missing <= 0, 0, missing))
        k = jnp.where(together, 1, jnp.where(missing > 0, -1, 0)).astype(jnp.int8)
        return J_of.of(terms), HingeEmbeddingCache(k, of_no_size(x))

    def backward(params, cache, dJ):
        g = J_of.at_terms(dJ, cache.k.shape)
        return (), (cast(g * cache.k.astype(g.dtype), cache.like.dtype), None)

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array], margin: float = 1.0, reduction: str = "mean") -> Array:
    distances, label = x
    apart = jax.nn.relu(margin - distances)
    return naive_reduction(jnp.where(label.astype(int) > 0, distances, apart), reduction)


RULE = Rule(
    "hinge_embedding",
    hinge_embedding,
    reference,
    cases=(
        Case(
            "labels",
            (Real("N d", points=(100.0, -100.0)), Integer("N d", -1, 2)),
            {"margin": Interval(0.5, 3.0, 1.0)},
            ("N", "d"),
            timed={"N": 4096, "d": 256},
        ),
        Case("each of one output", (Real("N"), Boolean("N")), {"reduction": "none"}),
    ),
    cite="PyTorch, HingeEmbeddingLoss; of squared distances: Hadsell, Chopra and LeCun, 'Dimensionality reduction by "
    "learning an invariant mapping' (CVPR 2006), equation 4 (number not checked)",
)
