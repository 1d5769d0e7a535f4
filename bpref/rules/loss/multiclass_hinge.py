"""multiclass_hinge: every other class scores less than the label's by a margin, or pays for what is missing.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with scores z of shape (..., C), N positions n, a label y for each, and m the hyperparameter `margin`:

    h_nc = max(0, m - z_ny + z_nc) for c != y,    h_ny = 0                (..., C)
    J    = 1/(N C) sum_nc h_nc,    or with `squared`   1/(N C) sum_nc h_nc^2        J: ()

The excess is summed over the classes (Weston and Watkins) and divided by their number C, as PyTorch does. With
`largest`, the class l_n that scores most beside the label pays alone (Crammer and Singer), undivided:

    J    = 1/N sum_n h_n,l_n,    or with `squared`   1/N sum_n h_n,l_n^2            l_n = argmax_c h_nc

With `class_weights` the term of n is multiplied by w_y, the weight of its label's class. The mean is that of these N
terms, as PyTorch has it of this loss: the sum is not divided by that of the weights, as it is of a cross-entropy.

Differential, with k_nc = [h_nc > 0], or 2 h_nc when squared:

    delta J = 1/(N C) sum_nc k_nc (delta z_nc - delta z_ny)

The sweep starts with dJ. The factor of each perturbation, where the label's own score is in every term, with
g_n = dJ / N, or another `reduction`'s (`bpref.formulas.loss.terms`):

    dz_nc = g_n k_nc / C                       for c != y                 (..., C)
    dz_ny = -g_n sum_c k_nc / C

The gradient of a position sums to 0: only differences of scores count.

With `largest`, h is 0 for all c but l_n, which a small perturbation does not change, and 1 stands for C. With
`class_weights` g_n is w_y dJ / N.

Kinks: at z_y - z_c = m the derivative jumps; 0 is taken, as `jax.nn.relu` does; the square has none there. Where
several classes score most, the first of them pays.

Cached: the label, and of the scores one byte each, whether h > 0; or h when squared. The scores are not needed.

Numerical care: half precision is computed and summed in float32. A count of classes is exact there. A NaN
score makes J NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_flags, require_non_negative
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.indexing.indices import add_along
from bpref.formulas.loss.counted_labels import require_counting
from bpref.formulas.loss.labels import is_own, nearest_class, own_score
from bpref.formulas.loss.pairs import of_no_size
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


class ScoresAndLabel(NamedTuple):
    scores: Float[Array, "*n C>0"]
    label: Int[Array, "*n"]


class MulticlassHingeCache(NamedTuple):
    excess: Bool[Array, "... C"] | Float[Array, "... C"]
    label: Int[Array, "..."]
    like: Float[Array, "0"]


def multiclass_hinge(
    margin: float = 1.0,
    squared: bool = False,
    largest: bool = False,
    reduction: str = "mean",
    class_weights: Sequence[float] | None = None,
) -> Layer[tuple[()], tuple[Array, Array], Reals, MulticlassHingeCache]:
    """J = mean over the positions of 1/C sum over c != y of max(0, margin - z_y + z_c), or of its square.

    Args:
      margin: by how much the label's score must exceed each other.
      squared: whether the terms are squared.
      largest: whether the largest term of a position is its loss, and not the sum of all, divided by C.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.
      class_weights: w, what the term of a position whose label is c is multiplied by, C numbers.

    Returns:
      A layer with params `()`, x `(scores, label)` of shapes `(..., C)` and `(...)`, the labels integers whose
      cotangent is None, and y the scalar J, or the terms (...), in at least float32.

      A label outside `[0, C)` cannot be seen while tracing. It is never silent: J is NaN, and so is the gradient of
      that position's scores (of no other), which tells where it stands.

    Raises:
      ValueError: margin is negative; the reduction is none of these; the shapes do not fit; there are no classes;
        class_weights are negative or all 0, or not C; a mean is over no positions.
      TypeError: x is no pair; the scores are not floating-point; the labels are no integers.
    """
    who = "multiclass_hinge"
    require_flags(who, squared=squared, largest=largest)
    margin = require_non_negative(who, "margin", margin)
    J_of = require_reduction(who, reduction)
    counting = require_counting(who, None, class_weights)

    def classes(scores):
        return 1 if largest else scores.shape[-1]

    def forward(params, x: ScoresAndLabel):
        scores, label = x
        counting.require_classes("scores", scores)
        z, own = widen(scores), is_own(label, scores)
        z_y = own_score(label, z)
        missing = z - (z_y - margin)
        counts = ~(missing <= 0) & ~own
        if largest:
            first = jnp.argmax(jnp.where(own, -jnp.inf, missing), -1)
            counts &= is_own(first, z)
        h = jnp.where(counts, missing, 0)
        # No term of a position that has but one class, and it NaN, would tell.
        w_y = jnp.where(jnp.isnan(z_y), jnp.nan, counting.positions(label, scores)[0])
        J = J_of.of(jnp.sum((h * h if squared else h) * w_y, -1) / classes(scores))
        return J, MulticlassHingeCache(cast(h, scores.dtype) if squared else counts, label, of_no_size(scores))

    def backward(params, cache, dJ):
        k = cache.excess.astype(wide_dtype(cache.like.dtype))
        g = J_of.at_terms(dJ, cache.label.shape, below=1) / classes(k)
        g = (2 if squared else 1) * g * counting.positions(cache.label, k)[0]
        dz = g * k
        own = nearest_class(cache.label, dz)[..., None]
        dz = add_along(dz, own, -jnp.sum(dz, -1, keepdims=True), dz.ndim - 1, unique=True)
        return (), (cast(dz, cache.like.dtype), None)

    return Layer(no_params, forward, backward, who)


@called_as(multiclass_hinge)
def reference(params: tuple[()], x: tuple[Array, Array], margin, squared, largest, reduction, class_weights) -> Array:
    scores, label = x
    own = jax.nn.one_hot(label, scores.shape[-1], dtype=scores.dtype)
    at_label = jnp.take_along_axis(scores, label[..., None], axis=-1)
    terms = jax.nn.relu(margin - at_label + scores) * (1 - own)
    if largest:
        terms = jnp.take_along_axis(terms, jnp.argmax(terms, -1, keepdims=True), -1)
    w_y = 1.0 if class_weights is None else jnp.asarray(class_weights, scores.dtype)[label]
    return naive_reduction(w_y * jnp.mean(terms**2 if squared else terms, -1), reduction)


_MARGIN = Interval(0.5, 3.0, 1.0)

RULE = Rule(
    "multiclass_hinge",
    multiclass_hinge,
    reference,
    cases=(
        Case(
            "sum",
            (Real("N C", points=(100.0, -100.0)), Integer("N", 0, "C")),
            {"margin": _MARGIN},
            ("N", "C"),
            timed={"N": 4096, "C": 256},
        ),
        Case("squared", (Real("N C"), Integer("N", 0, "C")), {"margin": _MARGIN, "squared": True}, ("N", "C")),
        Case(
            "sequence, largest, weighted classes",
            (Real("B T C"), Integer("B T", 0, "C")),
            {"largest": True, "reduction": "none", "class_weights": (0.5, 1.0, 2.5)},
            fixed={"C": 3},
        ),
    ),
    cite="Weston and Watkins, 'Support vector machines for multi-class pattern recognition' (1999), equation 4; "
    "Crammer and Singer, 'On the algorithmic implementation of multiclass kernel-based vector machines' (2001), JMLR 2",
    covers=("multi_margin", "weston_watkins", "crammer_singer"),
)
