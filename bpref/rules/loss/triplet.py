"""triplet: an anchor is nearer to its positive than to its negative by a margin, or pays for what is missing.

The mean is that of all terms, one for each triplet: what `reduction="none"` gives.

Forward, with anchors a, positives p and negatives m, N vectors of d numbers each, and M the hyperparameter `margin`:

    P_n = a_n - p_n,    Q_n = a_n - m_n                                   (..., d)
    h_n = max(0, |P_n| - |Q_n| + M),     or with `squared`   max(0, |P_n|^2 - |Q_n|^2 + M)
    J   = 1/N sum_n h_n                                                   J: ()

With `swap` the negative has to be that far from both: Q_n = p_n - m_n where that is shorter than a_n - m_n. s_n is 0
there and 1 elsewhere, without `swap` everywhere. With `eps` that is added to each number of P and Q.

Differential, with a step k_n = [h_n > 0], and U = P / |P|, V = Q / |Q|, or U = 2 P, V = 2 Q when squared:

    delta J = 1/N sum_n k_n (U_n . (delta a_n - delta p_n) - V_n . (s_n delta a_n + (1 - s_n) delta p_n - delta m_n))

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    da_n = g_n k_n (U_n - s_n V_n)                                        (..., d)
    dp_n = -g_n k_n (U_n + (1 - s_n) V_n)                                 (..., d)
    dm_n = g_n k_n V_n                                                    (..., d)

They sum to 0: the loss does not move when all three do.

Kinks: at h = 0 the derivative jumps; 0 is taken, as `jax.nn.relu` does. A length has no derivative at 0, where an
anchor meets its positive: the direction U is taken as 0 there, and nothing pulls on them. Autodiff of a square root
gives NaN instead, for the whole batch's weights. Of two negatives' distances that are equal the anchor's is taken,
s = 1; PyTorch takes half of each.

Cached: k U and k V, two arrays of the three inputs' size; none of the three is needed. With `swap` s besides.

Numerical care: lengths are of differences, and not made of a.a - 2 a.p + p.p, which cancels. Half precision is
subtracted, squared and summed in float32. A NaN makes J NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_flags, require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import inverse, length
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule, called_as


class Triplet(NamedTuple):
    anchor: Float[Array, "*n d>0"]
    positive: Float[Array, "*n d"]
    negative: Float[Array, "*n d"]


class TripletCache(NamedTuple):
    U: Float[Array, "... d"]
    V: Float[Array, "... d"]
    is_anchors: Bool[Array, "... 1"] | None


def triplet(
    margin: float = 1.0, squared: bool = False, reduction: str = "mean", swap: bool = False, eps: float = 0.0
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, TripletCache]:
    """J = mean of max(0, |a - p| - |a - m| + margin), or of the same with squared lengths, as in FaceNet.

    Args:
      margin: by how much the negative must be further away, in the units of the distance.
      squared: whether distances are squared.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.
      swap: whether the negative's distance is that to the anchor or to the positive, whichever is shorter.
      eps: what is added to each number of a difference before its length is taken; in PyTorch it is 1e-6.

    Returns:
      A layer with params `()`, x `(anchor, positive, negative)`, all `(..., d)`, and y the scalar J, or the terms, in
      at least float32.

    Raises:
      ValueError: margin or eps is negative; the reduction is none of these; the shapes differ; d is 0; a mean is over
        no triplets.
      TypeError: x is no triple; the anchor is not floating-point; the dtypes differ.
    """
    who = "triplet"
    require_flags(who, squared=squared, swap=swap)
    margin = require_non_negative(who, "margin", margin)
    eps = require_non_negative(who, "eps", eps)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Triplet):
        a, p, m = x
        P, Q = difference(a, p), difference(a, m)
        of_P, of_Q, s = distance(P), distance(Q), None
        if swap:
            other = difference(p, m)
            s = ~(distance(other) < of_Q)
            Q = jnp.where(s, Q, other)
            of_Q = distance(Q)
        h = of_P - of_Q + margin
        k = ~(h <= 0)
        J = J_of.of(jnp.where(k, h, 0)[..., 0])
        U, V = (cast(jnp.where(k, slope(of_D), 0) * D, a.dtype) for D, of_D in ((P, of_P), (Q, of_Q)))
        return J, TripletCache(U, V, s)

    def difference(one, other):
        D = widen(one) - widen(other)
        return D + eps if eps else D

    def distance(D):
        return jnp.sum(D * D, -1, keepdims=True) if squared else length(D)

    def slope(of_D):
        return jnp.full_like(of_D, 2) if squared else inverse(of_D)

    def backward(params, cache, dJ):
        U, V, s = widen(cache.U), widen(cache.V), cache.is_anchors
        g = J_of.at_terms(dJ, U.shape[:-1], below=1)
        of_a, of_p = (V, 0) if s is None else (jnp.where(s, V, 0), jnp.where(s, 0, V))
        return (), tuple(cast(jnp.where(v == 0, 0, g * v), cache.U.dtype) for v in (U - of_a, -U - of_p, V))

    return Layer(no_params, forward, backward, who)


@called_as(triplet)
def reference(params: tuple[()], x: tuple[Array, Array, Array], margin, squared, reduction, swap, eps) -> Array:
    anchor, positive, negative = x

    def distance(one, other):
        square = jnp.sum((one - other + eps) ** 2, axis=-1)
        return square if squared else jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))

    to_negative = distance(anchor, negative)
    if swap:
        of_positive = distance(positive, negative)
        to_negative = jnp.where(of_positive < to_negative, of_positive, to_negative)
    return naive_reduction(jax.nn.relu(distance(anchor, positive) - to_negative + margin), reduction)


_X = (Real("N d"), Real("N d"), Real("N d"))
_MARGIN = Interval(0.1, 4.0, 1.0)

RULE = Rule(
    "triplet",
    triplet,
    reference,
    cases=(
        Case("distance", _X, {"margin": _MARGIN}, ("N", "d"), timed={"N": 2048, "d": 256}),
        Case("squared", _X, {"margin": _MARGIN, "squared": True}, ("N", "d")),
        Case(
            "sequence, swapped",
            (Real("B T d"), Real("B T d"), Real("B T d")),
            {"reduction": "none", "swap": True, "eps": Interval(0.0, 0.1, 1e-6)},
            ("d",),
        ),
    ),
    cite="Schultz and Joachims, 'Learning a distance metric from relative comparisons' (2003); arXiv:1503.03832; swap: "
    "Balntas et al., 'Learning local feature descriptors with triplets and shallow convolutional networks' (2016)",
    covers=("facenet",),
)
