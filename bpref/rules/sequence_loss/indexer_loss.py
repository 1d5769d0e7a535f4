"""indexer_loss: how many nats the softmax of an indexer's scores is from where attention looked, all heads together.

Forward, for each query t, with the scores I (T, S), the weights P (N, T, S) that the heads of an attention gave to the
keys s, and sums over the keys that t sees:

    p_ts = sum_n P_nts / sum_s sum_n P_nts                                (T, S)
    q_ts = exp(I_ts) / sum_s exp(I_ts)                                    (T, S)
    J    = 1/M sum_t sum_s p_ts (log p_ts - log q_ts)                     M queries in all        J: ()

A query that sees nothing, or whose weights are all 0, has no part in the sum. DeepSeek's J is the sum over t.

Differential, P being a constant: the indexer learns where attention looks, and attention nothing from the indexer.

    delta J = 1/M sum_ts (q_ts - p_ts) delta I_ts                         since sum_s p_ts = 1

The sweep starts with dJ. With g_t = dJ / M, or another `reduction`'s (`bpref.formulas.loss.terms`):

    dI_ts = g_t (q_ts - p_ts)                                             (T, S)

Cached: q - p, and that alone: P, which is N times as large, is summed over its heads on the way in.

Numerical care: the largest score that is seen is subtracted before any exp. Each term is p x - p + q with x = log p -
log q, and at least 0, so that what is left of a small divergence is not what rounding left of a large sum. Of a key
beyond 1/2 in both p and q, q - p is the sum of all others' p - q. All is at least float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.log_space import LOG_ZERO
from bpref.formulas.loss.divergence import difference, relative_entropy, softmax_and_logarithm, where_any
from bpref.formulas.loss.terms import require_reduction
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Boolean, Case, Real, Rule, called_as, specs


class Looked(NamedTuple):
    """What an indexer and an attention say of the same queries and keys.

    Attributes:
      scores: I, of the indexer.
      attention: P, of the attention's heads, 0 or more.
      mask: which query sees which key; all, where it is left out.
    """

    scores: Float[Array, "*b T S>0"]
    attention: Float[Array, "*b N T S"]
    mask: Bool[Array, "*#b #T #S"] | None = None

    by_name = True


class IndexerLossCache(NamedTuple):
    slope: Float[Array, "*b T S"]


def indexer_loss(causal: bool = False, reduction: str = "mean") -> Layer[tuple[()], Looked, Reals, IndexerLossCache]:
    """J = mean over the queries of sum_s p_ts (log p_ts - log q_ts), p where attention looked, q the indexer's softmax.

    Args:
      causal: whether query t sees the keys s <= t alone.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis.

    Returns:
      A layer with params `()`, x `Looked(scores: (*b, T, S), attention: (*b, N, T, S), mask: (*b, T, S) or None)`, and
      y the scalar J, or the terms (*b, T), in at least float32. The scores alone have a cotangent. Of what a query does
      not see, neither scores nor weights are read.

    Raises:
      ValueError: the reduction is none of these; shapes do not fit; there are no keys; a mean is over no queries.
      TypeError: x is no `Looked`; dtypes do not fit.
    """
    who = "indexer_loss"
    require_flags(who, causal=causal)
    J_of = require_reduction(who, reduction)

    def forward(params, x: Looked):
        seen = _seen(x, causal)
        total = jnp.where(seen, jnp.sum(widen(x.attention), -3), 0)
        of_all = lax.stop_gradient(jnp.sum(total, -1, keepdims=True))
        p = lax.stop_gradient(total) / jnp.where(of_all > 0, of_all, 1)
        q, log_q = softmax_and_logarithm(jnp.where(seen, widen(x.scores), LOG_ZERO))
        q = jnp.where(seen, q, 0)
        terms = relative_entropy(p, q, where_any(p, jnp.log(jnp.where(p > 0, p, 1)) - log_q))
        J = J_of.of(jnp.where(of_all[..., 0] > 0, terms, 0))
        return J, IndexerLossCache(cast(jnp.where(of_all > 0, difference(q, p), 0), x.scores.dtype))

    def backward(params, cache, dJ):
        return (), Looked._make((J_of.scaled(dJ, cache.slope, below=1), None, None))

    return Layer(no_params, forward, backward, who)


def _seen(x: Looked, causal: bool) -> Array:
    """Which query sees which key, (*b, T, S)."""
    shape = x.scores.shape
    seen = jnp.ones(shape, bool) if x.mask is None else jnp.broadcast_to(x.mask, shape)
    if not causal:
        return seen
    t, s = (lax.broadcasted_iota(jnp.int32, shape, len(shape) - axis) for axis in (2, 1))
    return seen & (s <= t)


@called_as(indexer_loss)
def reference(params: tuple[()], x: Looked, causal, reduction) -> Array:
    """Of each query by itself, with logits that are -inf where nothing is seen."""
    scores, attention, mask = x
    attention = lax.stop_gradient(attention)
    seen = np.tri(*scores.shape[-2:], dtype=bool) if causal else np.ones(scores.shape[-2:], bool)
    seen = jnp.broadcast_to(jnp.asarray(seen), scores.shape)
    if mask is not None:
        seen = seen & mask
    P = jnp.where(seen, attention.sum(-3), 0)
    looks = P.sum(-1, keepdims=True) > 0
    p = jnp.where(looks, P / jnp.where(looks, P.sum(-1, keepdims=True), 1), 0)
    log_q = jax.nn.log_softmax(jnp.where(seen, scores, -1e30), axis=-1)
    terms = jnp.sum(jnp.where(p > 0, p * (jnp.log(jnp.where(p > 0, p, 1)) - log_q), 0), -1)
    return naive_reduction(terms, reduction)


RULE = Rule(
    "indexer_loss",
    indexer_loss,
    reference,
    cases=(
        Case(
            "causal",
            specs(Looked, Real("T S"), Real("N T S", 0.0, 1.0, points=(0.0,))),
            {"causal": True},
            ("T", "S"),
            timed={"N": 8, "T": 1024, "S": 1024},
        ),
        Case(
            "mask, of each query",
            specs(Looked, Real("B T S"), Real("B N T S", 0.0, 1.0), Boolean("B T S")),
            {"reduction": "none"},
            ("S",),
        ),
    ),
    cite="DeepSeek-AI, 'DeepSeek-V3.2: pushing the frontier of open large language models' (2025), arXiv:2512.02556, "
    "section 2.1, equations 3 and 4 (numbers not checked)",
    covers=("lightning indexer", "dsa", "deepseek sparse attention", "indexer"),
)
