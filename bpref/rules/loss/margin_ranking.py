"""margin_ranking: the one of two scores that should be the larger is larger by a margin, or pays for what is missing.

The mean is that of all terms, one for each pair of scores: what `reduction="none"` gives.

Forward, with scores x1 and x2 and a sign t of one shape, i running over all M elements, and m the hyperparameter
`margin`; t = +1 says that x1 should be the larger, -1 that x2 should:

    J = 1/M sum_i max(0, m - t_i (x1_i - x2_i))                           J: ()

which is `hinge` of the difference D = x1 - x2.

Differential: delta D = delta x1 - delta x2, and hinge's adjoint gives dD and dt, with g_i = dJ / M, or another
`reduction`'s (`bpref.formulas.loss.terms`):

    dx1_i = dD_i = -g_i t_i [t_i D_i < m]                                 x1's shape
    dx2_i = -dD_i                                                         x2's shape
    dt_i  = -g_i D_i [t_i D_i < m]                None for labels         t's shape

Kink: at t D = m, as in `hinge`.

Cached: what hinge caches: one byte an element for labels; D and t for real signs. Neither x1 nor x2 is needed.

Numerical care: D is not rounded to half precision: hinge is given it in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import Target, of_no_size
from bpref.formulas.loss.signs import is_label
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule
from bpref.rules.loss.hinge import HingeCache, HingeOfRealsCache, hinge


class Ranking(NamedTuple):
    x1: Float[Array, "*n"]
    x2: Float[Array, "*n"]
    sign: Target


class MarginRankingCache(NamedTuple):
    of_hinge: HingeCache | HingeOfRealsCache
    like: Float[Array, "0"]


def margin_ranking(
    margin: float = 0.0, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, MarginRankingCache]:
    """J = mean of max(0, margin - t (x1 - x2)).

    Args:
      margin: by how much the right score must be the larger.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(x1, x2, sign)` of one shape and y the scalar J, or the terms, in at least float32.
      The sign is a label, integer or boolean (positive is +1, anything else -1), whose cotangent is None, or a real
      number of x1's dtype.

    Raises:
      ValueError: margin is negative; the reduction is none of these; the shapes differ; a mean is over no terms.
      TypeError: x is no triple; x1 is not floating-point; x2 or a real sign has another dtype.
    """
    who = "margin_ranking"
    margin = require_non_negative(who, "margin", margin)
    J_of = require_reduction(who, reduction)
    of_difference = hinge(margin, reduction=reduction)

    def forward(params, x: Ranking):
        x1, x2, sign = x
        J_of.divisor(x1.shape)
        J, cache = of_difference.forward((), (widen(x1) - widen(x2), sign if is_label(sign) else widen(sign)))
        return J, MarginRankingCache(cache, of_no_size(x1))

    def backward(params, cache, dJ):
        _, (dD, dsign) = of_difference.backward((), cache.of_hinge, widen(dJ))
        dx1 = cast(dD, cache.like.dtype)
        return (), (dx1, -dx1, None if dsign is None else cast(dsign, cache.like.dtype))

    return Layer(no_params, forward, backward, who)


def reference(params: tuple[()], x: tuple[Array, Array, Array], margin: float = 0.0, reduction: str = "mean") -> Array:
    x1, x2, sign = x
    if not jnp.issubdtype(sign.dtype, jnp.floating):
        sign = jnp.where(sign.astype(int) > 0, 1, -1).astype(x1.dtype)
    return naive_reduction(jax.nn.relu(-sign * (x1 - x2) + margin), reduction)


RULE = Rule(
    "margin_ranking",
    margin_ranking,
    reference,
    cases=(
        Case(
            "labels",
            (Real("N d", points=(100.0, -100.0)), Real("N d"), Integer("N d", -1, 2)),
            {"margin": Interval(0.0, 3.0, 1.0)},
            ("N", "d"),
            timed={"N": 4096, "d": 256},
        ),
        Case(
            "real signs",
            (Real("N"), Real("N"), Real("N", -1.0, 1.0)),
            {"margin": Interval(0.5, 3.0, 0.5), "reduction": "none"},
        ),
    ),
    cite="Herbrich, Graepel and Obermayer, 'Support vector learning for ordinal regression' (1999), equation 9",
    covers=("ranking_hinge", "pairwise_hinge"),
)
