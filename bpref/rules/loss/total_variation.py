"""total_variation: how much probability two distributions place differently, from 0 to 1, both given as logits.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with logits a and b of shape (..., C), n running over all leading axes (the positions, N in all), c over the
classes, and t the temperature:

    q = softmax(a / t),   p = softmax(b / t)                              (..., C)
    J = 1/N sum_n 1/2 sum_c |q_nc - p_nc|                                 J: ()

the same from either side: the largest difference of the probabilities of any set of classes.

Differential, with s = sign(q - p) and the softmax's delta q_c = q_c / t (delta a_c - sum_k q_k delta a_k):

    delta J = 1/N sum_nc 1/2 s_nc (delta q_nc - delta p_nc)

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    da_nc = g_n / (2 t) q_nc (s_nc - sum_k q_nk s_nk)                     (..., C)
    db_nc = -g_n / (2 t) p_nc (s_nc - sum_k p_nk s_nk)                    (..., C)

Where q is 0 and p is not, da is 0: the student hears nothing of what it never tries.

Cached: what g multiplies in da and in db.

Numerical care: the largest logit, held constant, is subtracted before the division by t. With D the difference of the
logits and S the sums of exponentials e, r = log q - log p = D / t - log(S_a / S_b) is exactly 0 where both sides are
alike, as q - p, of quotients compiled in two ways, is not: s is its sign, and q - p = (q + p) tanh(r / 2), in which
nothing cancels. Nor does anything in e_a - e_b, by the same formula, and near each other S_a / S_b is 1 and the sum of
these by S_b: precise however small D is, as the difference of two logarithms near log C is not. A logit of -inf is a
class of probability 0. Half precision is computed and summed in float32, and each slope rounded once. Of a class that
is all but certain s - sum q s cancels, as it does for autodiff: minus the sum of all others' slopes would not, and
takes a quarter of the time more.

Kink: where q_c = p_c, s is 0.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.loss.pairs import SlopesCache, TwoLogits
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.mixture.choices import through_softmax
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Interval, Real, Rule

LOWEST = -1000.0


def total_variation(
    temperature: float = 1.0, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, SlopesCache]:
    """J = mean over the positions of 1/2 sum_c |softmax(a / t)_c - softmax(b / t)_c|.

    Args:
      temperature: t, what both logits are divided by.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(logits, target)`, both `(..., C)` and both logits, and y the scalar J, or the terms
      (...), in at least float32. Both have a cotangent.

    Raises:
      ValueError: the temperature is not positive; the two differ in shape; there are no classes; a mean is over no
        positions.
      TypeError: x is no pair; the logits are not floating-point; the target has another dtype.
    """
    who = "total_variation"
    temperature = require_positive(who, "temperature", temperature)
    J_of = require_reduction(who, reduction)

    def forward(params, x: TwoLogits):
        a, b = x
        (d_a, e_a, S_a), (d_b, e_b, S_b) = _exponentials(widen(a)), _exponentials(widen(b))
        q, p, D = e_a / S_a, e_b / S_b, (d_a - d_b) / temperature
        apart = jnp.sum(_difference(e_a, e_b, D), -1, keepdims=True)
        is_near = jnp.abs(apart) < 0.5 * S_b
        of_sums = jnp.where(is_near, jnp.log1p(jnp.where(is_near, apart / S_b, 0)), jnp.log(S_a) - jnp.log(S_b))
        r = D - of_sums
        s = jnp.sign(r)
        # halved between two sums, which XLA would make one long one of
        J = J_of.of(0.5 * jnp.sum(s * _difference(q, p, r), -1))
        slopes = through_softmax(q, s), through_softmax(p, -s)
        return J, SlopesCache(*(cast(slope * (0.5 / temperature), a.dtype) for slope in slopes))

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache, below=1)

    def _exponentials(a):
        """a less its largest, the exponentials of that divided by t, and their sum."""
        d = jnp.maximum(a - lax.stop_gradient(jnp.max(a, -1, keepdims=True)), LOWEST * temperature)
        e = jnp.exp(d / temperature)
        return d, e, jnp.sum(e, -1, keepdims=True)

    return Layer(no_params, forward, backward, who)


def _difference(u: Array, v: Array, r: Array) -> Array:
    """u - v, given r = log u - log v."""
    return (u + v) * jnp.tanh(0.5 * r)


def reference(params: tuple[()], x: tuple[Array, Array], temperature: float = 1.0, reduction: str = "mean") -> Array:
    q, p = (jax.nn.softmax(logits / temperature, axis=-1) for logits in x)
    return naive_reduction(0.5 * jnp.sum(jnp.abs(q - p), -1), reduction)


RULE = Rule(
    "total_variation",
    total_variation,
    reference,
    cases=(
        Case(
            "two classifiers",
            (Real("N C"), Real("N C")),
            {"temperature": Interval(0.5, 4.0, 1.0)},
            ("N", "C"),
            timed={"N": 1024, "C": 100},
        ),
        Case("sequence", (Real("B T C"), Real("B T C")), {"reduction": "none"}, ("C",), fixed={"B": 2}),
    ),
    cite="Levin, Peres and Wilmer, 'Markov Chains and Mixing Times' (2009), proposition 4.2; in distillation: "
    "arXiv:2307.15190",
    covers=("tvd", "total variation distance"),
)
