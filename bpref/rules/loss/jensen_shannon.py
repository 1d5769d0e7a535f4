"""jensen_shannon: how far two distributions are apart, from 0 to log 2, both given as logits.

The mean is that of all terms, one for each position: what `reduction="none"` gives.

Forward, with logits a and b of shape (..., C), n running over all leading axes (the positions, N in all), c over the
classes, and m half-way between the two distributions:

    p = softmax(a),   q = softmax(b),   m = (p + q) / 2                   (..., C)
    J = 1/N sum_n 1/2 sum_c (p log(p / m) + q log(q / m))                 J: ()

the mean of two Kullback-Leibler divergences, which is the same from either side. With d = log q - log p and
h = tanh(d / 2) = (q - p) / (q + p), p / m is 1 - h and q / m is 1 + h, and since log(1 + h) - log(1 - h) = d,

    J = 1/N sum_n 1/2 sum_c m_nc B(d_nc),     B(d) = d h + log(1 - h^2) = d tanh(d / 2) - 2 log cosh(d / 2)

Differential: J = 1/2 sum (p log p + q log q) - sum m log m, the 1s of d(p log p) cancel, and with
u = 1/2 log(p / m), v = 1/2 log(q / m):

    delta J = 1/N sum_nc (u_nc delta p_nc + v_nc delta q_nc),     delta p_c = p_c (delta a_c - sum_k p_k delta a_k)

The sweep starts with dJ. The factor of each perturbation, with g_n = dJ / N, or another `reduction`'s
(`bpref.formulas.loss.terms`):

    da_nc = g_n p_nc (u_nc - sum_k p_nk u_nk)                             (..., C)
    db_nc = g_n q_nc (v_nc - sum_k q_nk v_nk)                             (..., C)

Cached: what g multiplies in da and in db. The two softmaxes, their logarithms and m are not needed beside them.

Numerical care:
- p log(p / m) + q log(q / m) is of the second order in p - q, and its two halves of the first: their sum cancels
  where the distributions are close. d h and log(1 - h^2) are both of the second order, and 2 : -1.
- Where |d| > 1, 1 - h^2 cancels in turn. There log(1 - h^2) is T - |d| with T = 2 (log 2 - log(1 + exp(-|d|))), and
  d h - |d| is -2 |d| exp(-|d|) / (1 + exp(-|d|)); one log1p serves both sides of the 1.
- u and v come of the same logarithm, since 2 (u + v) = log(1 - h^2) and 2 (v - u) = d.
- Logarithms are held above -1000, where a probability is 0 in any dtype: a class that is masked by a logit of -inf on
  one side or on both has probability 0, and a cotangent of 0. A position that is masked throughout is NaN.
- Half precision is computed and summed in float32, and each slope rounded once. There is no kink.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from bpref.dtypes import cast, widen
from bpref.formulas.loss.divergence import softmax_and_logarithm
from bpref.formulas.loss.pairs import SlopesCache, TwoLogits
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.mixture.choices import through_softmax
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule

LOWEST = -1000.0


def jensen_shannon(reduction: str = "mean") -> Layer[tuple[()], tuple[Array, Array], Reals, SlopesCache]:
    """J = mean over the positions of (KL(p || m) + KL(q || m)) / 2, with m = (p + q) / 2.

    Args:
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(logits, target)`, both `(..., C)` and both logits, and y the scalar J, or the terms
      (...), in at least float32, in nats. Both have a cotangent.

    Raises:
      ValueError: the reduction is none of these; the two differ in shape; there are no classes; a mean is over no
        positions.
      TypeError: x is no pair; the logits are not floating-point; the target has another dtype.
    """
    who = "jensen_shannon"
    J_of = require_reduction(who, reduction)

    def forward(params, x: TwoLogits):
        a, b = x
        (p, log_p), (q, log_q) = _softmax(a), _softmax(b)
        d = log_q - log_p
        size = jnp.abs(d)
        is_near = size < 1
        h, e = jnp.tanh(0.5 * d), jnp.exp(-size)
        L = jnp.log1p(jnp.where(is_near, -h * h, e))
        T = jnp.where(is_near, L, 2 * (math.log(2) - L))
        B = T + jnp.where(is_near, d * h, -2 * size * e / (1 + e))
        J = J_of.of(0.25 * jnp.sum((p + q) * B, -1))
        apart = jnp.where(is_near, 0, size)
        u, v = 0.25 * (T - (d + apart)), 0.25 * (T + (d - apart))
        return J, SlopesCache(cast(through_softmax(p, u), a.dtype), cast(through_softmax(q, v), a.dtype))

    def backward(params, cache, dJ):
        return (), J_of.scaled_each(dJ, cache, below=1)

    return Layer(no_params, forward, backward, who)


def _softmax(a: Array) -> tuple[Array, Array]:
    """p and log p, in at least float32."""
    p, log_p = softmax_and_logarithm(widen(a))
    return p, jnp.maximum(log_p, LOWEST)


def reference(params: tuple[()], x: tuple[Array, Array], reduction: str = "mean") -> Array:
    log_p, log_q = (jax.nn.log_softmax(logits, axis=-1) for logits in x)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0).astype(p.dtype)
    return naive_reduction(0.5 * jnp.sum(p * (log_p - log_m) + q * (log_q - log_m), -1), reduction)


_FAR = (100.0, -100.0)

RULE = Rule(
    "jensen_shannon",
    jensen_shannon,
    reference,
    cases=(
        Case(
            "two classifiers",
            (Real("N C", points=_FAR), Real("N C")),
            never_empty=("N", "C"),
            timed={"N": 1024, "C": 100},
        ),
        Case("sequence", (Real("B T C"), Real("B T C")), {"reduction": "none"}, never_empty=("C",), fixed={"B": 2}),
    ),
    cite="Lin, 'Divergence measures based on the Shannon entropy' (1991), equation 4.1; AugMix, arXiv:1912.02781",
)
