"""distillation: a student learns from a teacher's softened distribution, and from the labels.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with logits a of the student and b of the teacher of shape (..., C), labels y of shape (...), n running over
the positions, N in all, c over the classes, and t the temperature:

    q = softmax(a / t),   p = softmax(b / t)                              (..., C)
    D_n = sum_c p_nc (log p_nc - log q_nc)    or, reversed, sum_c q_nc (log q_nc - log p_nc)
          or, by their mixture m = B p + (1 - B) q, sum_c (B p_nc U_nc + (1 - B) q_nc V_nc)           B: `mixture`
          with U = log p - log m and V = log q - log m
    H_n = log sum_c exp(a_nc) - a_(n, y_n)                                (...,)
    J   = 1/N sum_n (w t^2 D_n + (1 - w) H_n)                             w: `soft_weight`, J: ()

It is built of `softmax_cross_entropy`, which gives H. The last divergence is the generalised Jensen-Shannon's; D / B is
the first for B near 0, D / (1 - B) the second for B near 1. t^2 keeps the soft gradient, of size 1 / t^2, in proportion
to the hard one when t is changed.

Differential, with L = log q - log p and the softmax's delta q_c = q_c / t (delta a_c - sum_k q_k delta a_k):

    delta D = 1/t sum_c (q_c - p_c) delta a_c - p_c (L_c - sum_k p_k L_k) delta b_c                       forward
    delta D = 1/t sum_c q_c (L_c - sum_k q_k L_k) delta a_c - (q_c - p_c) delta b_c                      reversed
    delta D = (1 - B)/t sum_c q_c (V_c - sum_k q_k V_k) delta a_c
              + B/t sum_c p_c (U_c - sum_k p_k U_k) delta b_c                                          by the mixture
    delta H = sum_c (softmax(a)_c - [c = y]) delta a_c

In the last, as in the others, what stands beside a logarithm is 1, and the sum of each delta p, delta q, delta m is 0.

The sweep starts with dJ. The factor of each perturbation, here of the forward divergence, with g_n = dJ / N, or another
`reduction`'s (`bpref.formulas.loss.terms`):

    da_nc = g_n (w t (q_nc - p_nc) + (1 - w) (softmax(a)_nc - [c = y_n]))                             (..., C)
    db_nc = -g_n w t p_nc (L_nc - sum_k p_nk L_nk)                                                    (..., C)

Whoever holds the teacher does not use db, and under one jit it is not computed. Labels have the cotangent None.

Cached: the logits and the labels as they came. The softmaxes are made again; kept, they would be three arrays more.

Numerical care:
- The largest logit, held constant, is subtracted before the division by t: a quotient may be rounded in two ways where
  it is made twice. Logarithms are logits less one number, and no probability is divided by another.
- p log(p / q) has either sign, and the sum D cancels where the distributions are close. Summed is
  p log(p / q) - p + q, which is 0 or more and adds the same, as both sum to 1. With x = log p - log q and
  u = exp(-|x|) - 1 it is p (|x| + u) for x >= 0 and -q (|x| (1 + u) + u) for x < 0. By the mixture likewise, with m for
  q, U or V for x.
- With s the share in m of the smaller of both, U = T + min(x, 0) and V = T - max(x, 0), where
  T = -log(1 + s (exp(-|x|) - 1)): no exponential overflows.
- A class of probability 0, as one masked by a logit of -inf, has no part in what it weighs: on both sides it adds
  nothing. One that the teacher has and the student excludes makes D infinite, and the teacher's gradient NaN (reversed:
  the other way round).
- Of a class that is all but certain q - p, and p (L - sum p L), cancel; each sums to 0 over the classes, and that one
  is minus the sum of all others.
- Half precision is computed and summed in float32. There is no kink.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import is_number, plain, require_flags, require_positive, require_share
from bpref.dtypes import cast, widen
from bpref.formulas.log_space import centred
from bpref.formulas.loss.divergence import difference, relative_entropy, softmax_and_logarithm, where_any
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as
from bpref.rules.loss.softmax_cross_entropy import Classification, softmax_cross_entropy


class StudentAndTeacher(NamedTuple):
    student: Float[Array, "*n C>0"]
    teacher: Float[Array, "*n C"]
    labels: Int[Array, "*n"]


def distillation(
    temperature: float = 2.0,
    soft_weight: float = 0.5,
    reverse: bool = False,
    mixture: float | None = None,
    reduction: str = "mean",
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, StudentAndTeacher]:
    """J = mean over the positions of w t^2 KL(teacher || student) + (1 - w) cross-entropy with the labels.

    Args:
      temperature: t, what both logits are divided by in the divergence.
      soft_weight: w in [0, 1], the weight of the teacher beside the labels.
      reverse: whether the divergence is KL(student || teacher), which seeks one mode of the teacher's.
      mixture: B, the teacher's share of the distribution that both are measured from, in the divergence
        B KL(teacher || m) + (1 - B) KL(student || m); `None` for a divergence from one to the other.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(student, teacher, labels)` and y the scalar J, or the terms (...): logits `(...,
      C)`, integers `(...)`. Both logits have a cotangent. A label outside `[0, C)` makes J and its position of the
      student's gradient NaN, unless labels have no weight.

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; there are no classes; a mean is over no
        positions.
      TypeError: x is no tuple of three; dtypes do not fit.
    """
    who = "distillation"
    require_flags(who, reverse=reverse)
    temperature = require_positive(who, "temperature", temperature)
    soft_weight = require_share(who, "soft_weight", soft_weight)
    if mixture is not None and not (is_number(mixture) and 0 < mixture < 1):
        raise ValueError(f"{who}: mixture is {mixture!r}, expected a number between 0 and 1 or None")
    mixture = plain(mixture)
    if mixture is not None and reverse:
        raise ValueError(f"{who}: mixture is {mixture!r}, which has no reverse")
    soft, hard = soft_weight * temperature, 1 - soft_weight
    J_of = require_reduction(who, reduction)
    of_labels = softmax_cross_entropy(reduction="none")

    def forward(params, x: StudentAndTeacher):
        a, b, label = x
        terms = jnp.zeros(label.shape, widen(a).dtype)
        if soft:
            terms += soft * temperature * divergence(widen(a), widen(b))[0]
        if hard:
            terms += hard * of_labels.forward((), (widen(a), label))[0]
        return J_of.of(terms), x

    def backward(params, cache, dJ):
        a, b, label = cache
        g = J_of.at_terms(dJ, label.shape, below=1)
        da = db = jnp.zeros(a.shape, g.dtype)
        if soft:
            _, to_student, to_teacher = divergence(widen(a), widen(b))
            da, db = g * soft * to_student, g * soft * to_teacher
        if hard:
            of_each = jnp.broadcast_to(hard * g, (*label.shape, 1))[..., 0]
            da += of_labels.backward((), Classification(widen(a), label), of_each)[1][0]
        return (), (cast(da, a.dtype), cast(db, b.dtype), None)

    def divergence(a, b):
        """D, and of either's logits the factor of delta a / t and of delta b / t in delta D."""
        (q, log_q), (p, log_p) = softmax_and_logarithm(a, temperature), softmax_and_logarithm(b, temperature)
        if mixture is not None:
            U, V = _from_mixture(where_any(p + q, log_p - log_q), mixture)
            U, V = where_any(p, U), where_any(q, V)
            m = mixture * p + (1 - mixture) * q
            D = mixture * relative_entropy(p, m, U) + (1 - mixture) * relative_entropy(q, m, V)
            return D, (1 - mixture) * centred(q, V), mixture * centred(p, U)
        if reverse:
            L = where_any(q, log_q - log_p)
            return relative_entropy(q, p, L), centred(q, L), difference(p, q)
        L = where_any(p, log_p - log_q)
        return relative_entropy(p, q, L), difference(q, p), centred(p, L)

    return Layer(no_params, forward, backward, who)


def _from_mixture(x: Array, share: float) -> tuple[Array, Array]:
    """log p - log m and log q - log m of m = share p + (1 - share) q, given x = log p - log q."""
    smaller = jnp.where(x < 0, share, 1 - share)
    T = -jnp.log1p(smaller * jnp.expm1(-jnp.abs(x)))
    return T + jnp.minimum(x, 0), T - jnp.maximum(x, 0)


@called_as(distillation)
def reference(
    params: tuple[()], x: tuple[Array, Array, Array], temperature, soft_weight, reverse, mixture, reduction
) -> Array:
    a, b, label = x
    log_q, log_p = (jax.nn.log_softmax(v / temperature, axis=-1) for v in (a, b))
    if mixture is not None:
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        log_m = jnp.log(mixture * p + (1 - mixture) * q)
        D = mixture * p * (log_p - log_m) + (1 - mixture) * q * (log_q - log_m)
    else:
        D = jnp.exp(log_q) * (log_q - log_p) if reverse else jnp.exp(log_p) * (log_p - log_q)
    H = -jnp.take_along_axis(jax.nn.log_softmax(a, axis=-1), label[..., None], -1)[..., 0]
    return naive_reduction(soft_weight * temperature**2 * jnp.sum(D, -1) + (1 - soft_weight) * H, reduction)


_CLASSES = (Real("N C"), Real("N C"), Integer("N", 0, "C"))
_HYPER = {"temperature": Interval(0.5, 4.0, 2.0), "soft_weight": Interval(0.0, 1.0, 0.7)}

RULE = Rule(
    "distillation",
    distillation,
    reference,
    cases=(
        Case("forward", _CLASSES, _HYPER, ("N", "C"), timed={"N": 1024, "C": 1000}),
        Case("reverse", _CLASSES, _HYPER | {"reverse": True}, ("N", "C")),
        Case("mixture", _CLASSES, _HYPER | {"mixture": Interval(0.1, 0.9, 0.3)}, ("N", "C")),
    ),
    cite="arXiv:1503.02531, section 2; reversed: arXiv:2306.08543, equation 2; by the mixture: "
    "arXiv:2306.13649, section 2",
    covers=("knowledge distillation", "gkd", "generalized jensen-shannon"),
)
