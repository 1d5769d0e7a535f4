"""focal: binary cross-entropy of logits that counts an answer the less the surer it is.

The mean is that of all terms, one for each element: what `reduction="none"` gives.

Forward, with logits x and targets t of one shape, i running over all M elements, s(x) = 1 / (1 + exp(-x)), g for
`gamma` and a for `alpha`:

    c_i = -(t_i log s(x_i) + (1 - t_i) log s(-x_i))       cross-entropy
    r_i = t_i s(-x_i) + (1 - t_i) s(x_i)                  how far the answer is from the target
    w_i = a t_i + (1 - a) (1 - t_i)                       1 if there is no `alpha`
    J   = 1/M sum_i w_i r_i^g c_i                                         J: ()

For a label t = 1 this is the paper's -a (1 - p)^g log p with p = s(x), and g = 0 is `sigmoid_cross_entropy`. A
real target in [0, 1] is taken as optax does.

Differential, with s' = s(x) s(-x):

    delta c = ((1 - t) s(x) - t s(-x)) delta x - x delta t
    delta r = (1 - 2 t) s' delta x + (s(-x) - s(x)) delta t
    delta w = (2 a - 1) delta t
    delta (w r^g c) = r^g (w delta c + c delta w) + w c g r^g (delta r / r)

The sweep starts with dJ. The factor of each perturbation, with u_i = dJ / M, or the g of another `reduction`
(`bpref.formulas.loss.terms`):

    dx_i = u_i w r^g ((1 - t) s(x) - t s(-x) + g c (1 - 2 t) s' / r)                      x's shape
    dt_i = u_i r^g (w (g c (s(-x) - s(x)) / r - x) + (2 a - 1) c)                         t's shape; None for labels

Cached: what u multiplies in dx and, unless the targets are labels, in dt: one array for each cotangent. Neither
x nor t is needed beside them.

Numerical care: exp is only taken of -|x|, and log(1 + .) is log1p, so no logit overflows. 1 - p of a sure answer
cancels to nothing; r is a sum of positive terms, and s(-x) is exact to the last bit. r^(g - 1), infinite for g < 1
as r becomes 0, is not computed: of s' / r each factor is finite, and where r has underflowed to 0, c has as well and
the whole is 0. Half precision is computed in float32 and each slope rounded once. There is no kink for logits of any
size and t in [0, 1].
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import is_number, plain, require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.logistic import binary_cross_entropy, logistic_pair
from bpref.formulas.loss.pairs import LogitsAndTarget, SlopesCache
from bpref.formulas.loss.signs import is_label
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as


def focal(
    gamma: float = 2.0, alpha: float | None = None, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, SlopesCache]:
    """J = mean of w r^gamma c: c the binary cross-entropy, r = |s(x) - t| for a label, w the class's weight.

    Args:
      gamma: how fast an answer stops to count as it becomes sure; 0 is the plain cross-entropy.
      alpha: the weight of a positive answer, from 0 to 1; a negative one has 1 - alpha. None weighs neither; the
        paper's detector has 0.25.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(logits, target)` of one shape, and y the scalar J, or the terms, in at least
      float32. The target is a probability in [0, 1] of the logits' dtype, or an integer or boolean label 0 or 1, whose
      cotangent is None. Values outside are not looked for.

    Raises:
      ValueError: gamma is negative; alpha is not from 0 to 1; the reduction is none of these; logits and target differ
        in shape; a mean is over no terms.
      TypeError: x is no pair; the logits are not floating-point; a floating target has another dtype.
    """
    who = "focal"
    gamma = require_non_negative(who, "gamma", gamma)
    if alpha is not None and not (is_number(alpha) and 0 <= alpha <= 1):
        raise ValueError(f"{who}: alpha is {alpha!r}, expected a number from 0 to 1, or None")
    alpha = plain(alpha)
    J_of = require_reduction(who, reduction)

    def forward(params, pair: LogitsAndTarget):
        x, t = pair
        has_cotangent = not is_label(t)
        dtype, x = x.dtype, widen(x)
        t = t.astype(x.dtype)
        p, q = logistic_pair(x)
        c = binary_cross_entropy(x, t)
        r = t * q + (1 - t) * p
        w = jnp.ones_like(t) if alpha is None else alpha * t + (1 - alpha) * (1 - t)
        r_g = r**gamma
        pull = gamma * c / jnp.where(r == 0, 1, r)
        slope = w * r_g * ((1 - t) * p - t * q + pull * (1 - 2 * t) * p * q)
        target_slope = r_g * (w * (pull * (q - p) - x) + (0 if alpha is None else 2 * alpha - 1) * c)
        return J_of.of(w * r_g * c), SlopesCache(
            cast(slope, dtype), cast(target_slope, dtype) if has_cotangent else None
        )

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache)

    return Layer(no_params, forward, backward, who)


@called_as(focal)
def reference(params: tuple[()], x: tuple[Array, Array], gamma, alpha, reduction) -> Array:
    # Not optax's: the logsumexp in it drops a weight of 0, and with it what t = 0 and t = 1 give to dt.
    logits, t = x[0], x[1].astype(x[0].dtype)
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    cross_entropy = -t * yes - (1 - t) * no
    miss = t * jnp.exp(no) + (1 - t) * jnp.exp(yes)
    weight = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return naive_reduction(weight * miss**gamma * cross_entropy, reduction)


_FAR = (0.0, 30.0, -30.0, 100.0, -100.0, 1e4, -1e4)
_GAMMA = Interval(0.0, 5.0, 1.5)

RULE = Rule(
    "focal",
    focal,
    reference,
    cases=(
        Case("labels", (Real("N", points=_FAR), Integer("N", 0, 2)), never_empty=("N",)),
        Case(
            "labels, alpha",
            (Real("N C"), Integer("N C", 0, 2)),
            {"gamma": _GAMMA, "alpha": 0.25},
            never_empty=("N", "C"),
            timed={"N": 2048, "C": 80},
        ),
        Case(
            "probabilities", (Real("N C"), Real("N C", 0.0, 1.0)), {"gamma": _GAMMA, "alpha": 0.25, "reduction": "none"}
        ),
    ),
    cite="Lin et al., arXiv:1708.02002, equations 4 and 5",
    covers=("sigmoid_focal",),
)
