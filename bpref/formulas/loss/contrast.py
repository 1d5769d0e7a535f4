"""One among many: the cross-entropy of picking a partner by a softmax over similarities, and its adjoint.

Of each row (or column) of S, one element is the partner's, s_i. With the temperature T and the log-sum-exp l_i of all:

    nats_i = l_i - s_i / T
    T delta nats_i = sum over all others j of p_ij delta S_ij + (p_i - 1) delta s_i
    p_ij   = exp(S_ij / T - l_i),    p_i = exp(s_i / T - l_i)

Once partners are found, l_i - s_i / T and p_i - 1 cancel. Neither is formed: with m_i the largest of S, a constant, and
1 + r_i the sum of all exponentials of (S - m) / T, of which one is 1,

    l_i    = m_i / T + log(1 + r_i)
    nats_i = log(1 + r_i) + (m_i - s_i) / T, both at least 0,      p_i - 1 = expm1(-nats_i)

What m is subtracted from is S and not S / T: a quotient may be rounded in two ways where it is made twice, and of 2^31
the difference is no number to take the exponential of.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


class Views(NamedTuple):
    """Two of each of N things: a partner's row is the own one's number."""

    a: Float[Array, "N>0 d>0"]
    b: Float[Array, "N d"]


class LogSumExp(NamedTuple):
    """l = m / T + log(1 + r), with 1 along the axis that is summed over."""

    m: Float[Array, "..."]
    r: Float[Array, "..."]


def log_sum_exp(S: Array, s: Array, partner: Array, axis: int, temperature: float) -> LogSumExp:
    """The log-sum-exp of S / T along an axis.

    Args:
      S: similarities; -inf for what takes no part.
      s: S at the partners, taken from it, of size 1 along the axis.
      partner: where they are in S, a mask of its shape.
      axis: which similarities are summed over.
      temperature: T.
    """
    m = lax.stop_gradient(jnp.max(S, axis, keepdims=True))
    terms = jnp.where(partner, jnp.expm1((s - m) / temperature), jnp.exp((S - m) / temperature))
    return LogSumExp(m, jnp.sum(terms, axis, keepdims=True))


def nats(l: LogSumExp, s: Array, temperature: float) -> Array:
    """-log p of the partner."""
    return jnp.log1p(l.r) + (l.m - s) / temperature


def pull(S: Array, s: Array, partner: Array, l: LogSumExp, temperature: float) -> Array:
    """T times the derivative of the sum of all nats with respect to S, of its shape; arguments as above."""
    p = jnp.exp((S - l.m) / temperature) / (1 + l.r)
    return jnp.where(partner, jnp.expm1(-nats(l, s, temperature)), p)
