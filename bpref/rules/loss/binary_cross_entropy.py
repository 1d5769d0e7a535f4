"""binary_cross_entropy: the cross-entropy of yes and no, where probabilities are given.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with probabilities p and targets t of one shape, i running over all M elements, and v_i the weight of a term,
1 where none is given:

    a_i = max(log p_i, -100),    b_i = max(log(1 - p_i), -100)
    l_i = -(t_i a_i + (1 - t_i) b_i)
    J   = 1/M sum_i v_i l_i                                               J: ()

A sure answer that is wrong costs 100 nats, and not infinitely many: p is 0 or 1 there, which the rounding of a logistic
function makes of many logits. Of logits `sigmoid_cross_entropy` needs no such bound. The mean is divided by M and not
by the sum of the weights, as PyTorch's.

Differential, with delta a = delta p / p where a > -100, else 0; delta b = -delta p / (1 - p) where b > -100, else 0:

    delta l = -t delta a - (1 - t) delta b - (a - b) delta t
            = (p - t) / (p (1 - p)) delta p + (b - a) delta t             where neither is bounded

The sweep starts with dJ. The factor of each perturbation, with g_i = dJ / M, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dp_i = g_i v_i (p_i - t_i) / (p_i (1 - p_i))                          p's shape
           g_i v_i (1 - t_i) where p_i = 0,  -g_i v_i t_i where p_i = 1
    dt_i = g_i v_i (b_i - a_i)             None for labels                p's shape
    dv_i = g_i l_i                                                        p's shape

Kink: where a or b is bounded its slope is 0, that of the bound. PyTorch's backward divides by 1e-12 there instead,
which is no derivative of its forward.

Cached: p, t and v as they came. Logarithms and quotients are made again, one pass over memory.

Numerical care: log(1 - p) is log1p(-p). (p - t) / (p (1 - p)) is one difference, exact where p is near t, and not
that of t / p and (1 - t) / (1 - p), which cancel there. Half precision is computed and summed in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import Target
from bpref.formulas.loss.signs import is_label
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Real, Rule

LOWEST = -100.0
"""The least logarithm."""


class ProbabilitiesAndTarget(NamedTuple):
    probabilities: Float[Array, "*n"]
    target: Target


class WeightedProbabilities(NamedTuple):
    probabilities: Float[Array, "*n"]
    target: Target
    weight: Float[Array, "*n"]


class BinaryCrossEntropyCache(NamedTuple):
    p: Float[Array, "..."]
    t: Target
    v: Float[Array, "..."] | None


def binary_cross_entropy(
    reduction: str = "mean",
) -> Layer[tuple[()], tuple[Array, ...], Reals, BinaryCrossEntropyCache]:
    """J = mean of -(t log p + (1 - t) log(1 - p)), with logarithms of at least -100.

    Args:
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(probabilities, target)` or `(probabilities, target, weight)`, all of one shape, and
      y the scalar J, or the terms, in at least float32. The target is a probability of the probabilities' dtype, or an
      integer or boolean label 0 or 1, whose cotangent is None; a weight multiplies its term, and has a cotangent.

      Values cannot be seen while tracing: a probability outside [0, 1] makes J NaN.

    Raises:
      ValueError: the reduction is none of these; the shapes differ; a mean is over no terms.
      TypeError: x is no such tuple; the probabilities are not floating-point; the dtypes differ.
    """
    who = "binary_cross_entropy"
    J_of = require_reduction(who, reduction)

    def forward(params, x: ProbabilitiesAndTarget | WeightedProbabilities):
        p, t = x[:2]
        v = x.weight if isinstance(x, WeightedProbabilities) else None
        terms = _terms(*_logarithms(p), t)
        return J_of.of(terms if v is None else widen(v) * terms), BinaryCrossEntropyCache(p, t, v)

    def backward(params, cache, dJ):
        p, t, v = cache
        a, b = _logarithms(p)
        g = J_of.at_terms(dJ, p.shape)
        gv = g if v is None else g * widen(v)
        q, t_ = widen(p), t.astype(a.dtype)
        inside = (a > LOWEST) & (b > LOWEST)
        at_end = jnp.where(a > LOWEST, -t_, 1 - t_)
        slope = jnp.where(inside, (q - t_) / jnp.where(inside, q * (1 - q), 1), at_end)
        dp = cast(gv * slope, p.dtype)
        dt = None if is_label(t) else cast(gv * (b - a), p.dtype)
        return (), (dp, dt) if v is None else (dp, dt, cast(g * _terms(a, b, t), p.dtype))

    return Layer(no_params, forward, backward, who)


def _logarithms(p: Array) -> tuple[Array, Array]:
    """a and b, in at least float32."""
    q = widen(p)
    return jnp.maximum(jnp.log(q), LOWEST), jnp.maximum(jnp.log1p(-q), LOWEST)


def _terms(a: Array, b: Array, t: Array) -> Array:
    t = t.astype(a.dtype)
    return -(t * a + (1 - t) * b)


def reference(params: tuple[()], x: tuple[Array, ...], reduction: str = "mean") -> Array:
    p, t = x[0], x[1].astype(x[0].dtype)

    def bounded(q):
        return jnp.where(q > 0, jnp.maximum(jnp.log(jnp.where(q > 0, q, 1)), -100.0), -100.0)

    terms = -(t * bounded(p) + (1 - t) * bounded(1 - p))
    return naive_reduction(terms * x[2] if len(x) > 2 else terms, reduction)


_P = Real("N d", 0.0, 1.0, points=(0.0, 1.0))

RULE = Rule(
    "binary_cross_entropy",
    binary_cross_entropy,
    reference,
    cases=(
        Case("labels", (_P, Integer("N d", 0, 2)), never_empty=("N", "d"), timed={"N": 4096, "d": 64}),
        Case("each of probabilities", (_P, Real("N d", 0.0, 1.0)), {"reduction": "none"}),
        Case("weights", (_P, Real("N d", 0.0, 1.0), Real("N d", 0.125, 4.0)), {}, ("N", "d")),
        Case("weights, labels", (_P, Integer("N d", 0, 2), Real("N d", 0.125, 4.0)), {"reduction": "sum"}),
    ),
    cite="Goodfellow, Bengio and Courville, 'Deep Learning' (2016), section 6.2.2.2; the bound: PyTorch, BCELoss",
    covers=("bce",),
)
