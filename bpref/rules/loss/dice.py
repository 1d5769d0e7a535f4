"""dice: how little two masks overlap, for soft masks.

The mean is that of all terms, one for each example: what `reduction="none"` gives.

Forward, with predictions p and targets t of one shape (N, ...), n the example, k whatever axes follow, s the
hyperparameter `smoothing`, and p = 1 / (1 + exp(-x)) when x are `logits`:

    1 - D_n = 1 - (2 sum_k p_nk t_nk + s) / (sum_k (p_nk + t_nk) + s) = M_n / V_n
    M_n = sum_k (p_nk + t_nk - 2 p_nk t_nk),    V_n = sum_k (p_nk + t_nk) + s
    or, with `squared`   M_n = sum_k (p_nk - t_nk)^2,   V_n = sum_k (p_nk^2 + t_nk^2) + s
    J   = 1/N sum_n M_n / V_n                                             J: ()

Differential, with the ratio r_n = M_n / V_n:

    delta J = 1/N sum_n (delta M_n - r_n delta V_n) / V_n

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    dp_nk = g_n (1 - 2 t_nk - r_n) / V_n                                  (N, ...)
    or, squared      2 g_n (p_nk - t_nk - r_n p_nk) / V_n
    dt_nk likewise, with p and t exchanged       None for labels          (N, ...)
    dx_nk = dp_nk p_nk (1 - p_nk)                when x are logits        (N, ...)

Cached: the predictions (or logits) and targets as they came, and r_n and 1 / V_n, two numbers an example.

Numerical care: M, as the sum in V less 2 sum p t, cancels for a good prediction, so that J is exact to a rounding of 1
and not of J; the cotangents, which have r beside 1, do not notice. Sums of terms that do not cancel take twice the
time. Half precision is computed and summed in float32. Where V is 0, both masks being empty with no smoothing, J has
0 / 0: they agree, and r and the cotangents are 0. There is no other kink.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.checks.hyperparameters import require_flags, require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.loss.signs import is_label
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import inverse
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


class Masks(NamedTuple):
    prediction: Float[Array, " N *n"]
    target: Float[Array, " N *n"] | Int[Array, " N *n"] | Bool[Array, " N *n"]


class DiceCache(NamedTuple):
    prediction: Float[Array, "N ..."]
    target: Float[Array, "N ..."] | Int[Array, "N ..."] | Bool[Array, "N ..."]
    r: Float[Array, "N ..."]
    per_V: Float[Array, "N ..."]


def dice(
    smoothing: float = 1.0, logits: bool = False, squared: bool = False, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, DiceCache]:
    """J = mean over the examples of 1 - (2 sum p t + s) / (sum (p + t) + s), or with squares in the denominator.

    Args:
      smoothing: s, which is added above and below.
      logits: whether predictions are logits, or probabilities.
      squared: whether the denominator is sum (p^2 + t^2), as in V-Net.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)`, both `(N, ...)`, each example one score over all its other
      axes, and y the scalar J, or the terms (N,), in at least float32. The target is a probability of the prediction's
      dtype, or a label 0 or 1, integer or boolean, whose cotangent is None. Values outside [0, 1] are not looked for.

    Raises:
      ValueError: smoothing is negative; the reduction is none of these; prediction and target differ in shape; there is
        no axis N; a mean is over no examples.
      TypeError: x is no pair; the prediction is not floating-point; a real target has another dtype.
    """
    who = "dice"
    require_flags(who, logits=logits, squared=squared)
    smoothing = require_non_negative(who, "smoothing", smoothing)
    J_of = require_reduction(who, reduction)

    def forward(params, pair: Masks):
        x, t = pair
        p, t_ = masks(x, t)
        A = total(p * p + t_ * t_ if squared else p + t_)
        M, V = A - 2 * total(p * t_), A + smoothing
        per_V = inverse(V)
        r = M * per_V
        return J_of.of(r.reshape(len(r))), DiceCache(x, t, r, per_V)

    def backward(params, cache, dJ):
        p, t = masks(cache.prediction, cache.target)
        r = cache.r
        g = J_of.at_terms(dJ, (len(r),), below=r.ndim - 1) * cache.per_V
        dp = 2 * g * (p - t - r * p) if squared else g * (1 - 2 * t - r)
        if logits:
            dp = dp * (p * (1 - p))
        if is_label(cache.target):
            return (), (cast(dp, cache.prediction.dtype), None)
        dt = 2 * g * (t - p - r * t) if squared else g * (1 - 2 * p - r)
        return (), (cast(dp, cache.prediction.dtype), cast(dt, cache.target.dtype))

    def masks(x, t):
        """p and t, in at least float32."""
        x = widen(x)
        return jax.nn.sigmoid(x) if logits else x, t.astype(x.dtype)

    def total(terms):
        return jnp.sum(terms, axis=tuple(range(1, terms.ndim)), keepdims=True)

    return Layer(no_params, forward, backward, who)


@called_as(dice)
def reference(params: tuple[()], x: tuple[Array, Array], smoothing, logits, squared, reduction) -> Array:
    prediction, target = x
    p = jax.nn.sigmoid(prediction) if logits else prediction
    t = target.astype(p.dtype)
    axes = tuple(range(1, p.ndim))
    below = jnp.sum(p**2 + t**2 if squared else p + t, axis=axes) + smoothing
    D = (2 * jnp.sum(p * t, axis=axes) + smoothing) / jnp.where(below == 0, 1, below)
    return naive_reduction(jnp.where(below == 0, 0, 1 - D), reduction)


_SMOOTHING = Interval(0.125, 2.0, 1.0)

RULE = Rule(
    "dice",
    dice,
    reference,
    cases=(
        Case("probabilities", (Real("N d", 0.0, 1.0), Real("N d", 0.0, 1.0)), {"smoothing": _SMOOTHING}, ("N",)),
        Case(
            "logits, labels",
            (Real("N H W", points=(100.0, -100.0)), Integer("N H W", 0, 2)),
            {"smoothing": _SMOOTHING, "logits": True},
            ("N",),
            timed={"N": 16, "H": 256, "W": 256},
        ),
        Case(
            "logits, squared, no smoothing",
            (Real("N d"), Real("N d", 0.0, 1.0)),
            {"smoothing": 0.0, "logits": True, "squared": True, "reduction": "none"},
        ),
    ),
    cite="V-Net, arXiv:1606.04797, section 3 (squared); without squares: arXiv:1707.03237, equation 3",
    covers=("soft_dice", "f1_loss", "v_net"),
)
