"""One among many: the cross-entropy of picking a partner by a softmax over similarities, and its adjoint.

Of each row (or column) of S, one element is the partner's, s_i. With the log-sum-exp l_i of all:

    nats_i = l_i - s_i
    delta nats_i = sum over all others j of p_ij delta S_ij + (p_i - 1) delta s_i
    p_ij   = exp(S_ij - l_i),    p_i = exp(s_i - l_i)

Once partners are found, l_i - s_i and p_i - 1 cancel. Neither is formed: with m_i the largest of S, a constant, and
1 + r_i the sum of all exponentials of S - m, of which one is 1,

    l_i    = m_i + log(1 + r_i)
    nats_i = log(1 + r_i) + (m_i - s_i), both at least 0,      p_i - 1 = expm1(-nats_i)
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float


class LogSumExp(NamedTuple):
    """l = m + log(1 + r), with 1 along the axis that is summed over."""

    m: Float[Array, "..."]
    r: Float[Array, "..."]


def log_sum_exp(S: Array, s: Array, partner: Array, axis: int) -> LogSumExp:
    """The log-sum-exp of S along an axis.

    Args:
      S: similarities; -inf for what takes no part.
      s: S at the partners, taken from it, of size 1 along the axis.
      partner: where they are in S, a mask of its shape.
      axis: which similarities are summed over.
    """
    m = lax.stop_gradient(jnp.max(S, axis, keepdims=True))
    return LogSumExp(m, jnp.sum(jnp.where(partner, jnp.expm1(s - m), jnp.exp(S - m)), axis, keepdims=True))


def nats(l: LogSumExp, s: Array) -> Array:
    """-log p of the partner."""
    return jnp.log1p(l.r) + (l.m - s)


def pull(S: Array, s: Array, partner: Array, l: LogSumExp) -> Array:
    """The derivative of the sum of all nats with respect to S, of its shape; arguments as above."""
    return jnp.where(partner, jnp.expm1(-nats(l, s)), jnp.exp(S - l.m) / (1 + l.r))
