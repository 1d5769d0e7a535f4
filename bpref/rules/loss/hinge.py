"""hinge: 0 for a score on the right side by a margin, and linear (or a square) from there.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with scores x and targets t of one shape, i running over all M elements, and m the hyperparameter `margin`:

    h_i = max(0, m - t_i x_i)
    J   = 1/M sum_i h_i,         or with `squared`   1/M sum_i h_i^2      J: ()

t is -1 or +1. A label (integer or boolean) is read by its sign, so that 0 and False are -1; a real target is a number
like any other.

Differential, with a_i = [m - t_i x_i > 0] and k_i = a_i, or 2 h_i when squared:

    delta J = -1/M sum_i k_i (t_i delta x_i + x_i delta t_i)

The sweep starts with dJ. The factor of each perturbation, with g_i = dJ / M, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dx_i = -g_i k_i t_i                                                   x's shape
    dt_i = -g_i k_i x_i           None for labels                         t's shape

Kink: at t x = m the derivative jumps from -t to 0; 0 is taken, as `jax.nn.relu` does. The square has none.

Cached: of labels, k t alone, which is one byte (-1, 0 or +1) an element, or t h when squared. Of real targets x and t:
k is made of them again.

Numerical care: half precision is computed and summed in float32. m - t x cancels near the kink, where h is small in
truth too, and each term of the sum has the error of m's and x's rounding. A NaN score makes J NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int8

from bpref.checks.hyperparameters import require_flags, require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import ScoresAndTarget, of_no_size
from bpref.formulas.loss.signs import is_label, is_positive
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Integer, Interval, Real, Rule, called_as


class HingeCache(NamedTuple):
    """Of labels."""

    signed: Int8[Array, "..."] | Float[Array, "..."]
    like: Float[Array, "0"]


class HingeOfRealsCache(NamedTuple):
    """Of real targets."""

    scores: Float[Array, "..."]
    target: Float[Array, "..."]


def hinge(
    margin: float = 1.0, squared: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, HingeCache | HingeOfRealsCache]:
    """J = mean of max(0, margin - t x), or of its square.

    Args:
      margin: the score beyond which there is no loss; 0 makes it the perceptron's loss.
      squared: whether the terms are squared.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(scores, target)` of one shape and y the scalar J, or the terms, in at least float32.
      The target is a label, integer or boolean (positive is +1, anything else -1), whose cotangent is None, or a real
      number of the scores' dtype.

    Raises:
      ValueError: margin is negative; the reduction is none of these; scores and target differ in shape; a mean is over
        no terms.
      TypeError: x is no pair; the scores are not floating-point; a real target has another dtype.
    """
    who = "hinge"
    require_flags(who, squared=squared)
    margin = require_non_negative(who, "margin", margin)
    J_of = require_reduction(who, reduction)

    def forward(params, pair: ScoresAndTarget):
        x, t = pair
        tx = jnp.where(is_positive(t), widen(x), -widen(x)) if is_label(t) else widen(t) * widen(x)
        missing = margin - tx
        h = jnp.where(missing <= 0, 0, missing)
        return J_of.of(h * h if squared else h), _signed(t, h, x) if is_label(t) else HingeOfRealsCache(x, t)

    def _signed(label, h, x):
        k = cast(h, x.dtype) if squared else (h > 0).astype(jnp.int8)
        return HingeCache(jnp.where(is_positive(label), k, -k), of_no_size(x))

    def backward(params, cache, dJ):
        if isinstance(cache, HingeCache):
            g = (2 if squared else 1) * J_of.at_terms(dJ, cache.signed.shape)
            dx = jnp.where(cache.signed == 0, 0, -g * cache.signed.astype(g.dtype))
            return (), (cast(dx, cache.like.dtype), None)
        x, t = map(widen, cache)
        missing = margin - t * x
        g = jnp.where(missing > 0, J_of.at_terms(dJ, x.shape) * (2 * missing if squared else 1), 0)
        return (), (cast(-g * t, cache.scores.dtype), cast(-g * x, cache.scores.dtype))

    return Layer(no_params, forward, backward, who)


@called_as(hinge)
def reference(params: tuple[()], x: tuple[Array, Array], margin, squared, reduction) -> Array:
    scores, target = x
    if not jnp.issubdtype(target.dtype, jnp.floating):
        target = jnp.where(target.astype(int) > 0, 1, -1).astype(scores.dtype)
    terms = jax.nn.relu(margin - target * scores)
    return naive_reduction(terms**2 if squared else terms, reduction)


_MARGIN = Interval(0.5, 3.0, 1.0)

RULE = Rule(
    "hinge",
    hinge,
    reference,
    cases=(
        Case("labels", (Real("N", points=(100.0, -100.0)), Integer("N", -1, 2)), {"margin": _MARGIN}, ("N",)),
        Case(
            "labels, squared",
            (Real("N d"), Boolean("N d")),
            {"margin": _MARGIN, "squared": True},
            ("N", "d"),
            timed={"N": 4096, "d": 256},
        ),
        Case("real targets", (Real("N d"), Real("N d", -1.0, 1.0)), {"margin": _MARGIN, "reduction": "none"}),
        Case("real targets, squared", (Real("N"), Real("N", -1.0, 1.0)), {"squared": True, "reduction": "sum"}),
    ),
    cite="Cortes and Vapnik, 'Support-vector networks' (1995), Machine Learning 20; squared: arXiv:1306.0239",
    covers=("squared_hinge", "perceptron", "support_vector_machine"),
)
