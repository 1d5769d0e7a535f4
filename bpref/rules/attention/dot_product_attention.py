"""dot_product_attention: softmax attention, all of a head's logits made at once.

Forward, for each batch and head n of N, with queries q (T, D), and the keys k (S, D) and values v (S, E) of head
floor(n K / N) of K; sums are over the keys s that query t sees:

    z_ts = scale q_t . k_s      a_ts = c tanh(z_ts / c), or z_ts         x_ts = a_ts + bias_ts + u_(s - t)      (T, S)
    m_t = max_s x_ts          Z_t = e^(sink - m_t) + sum_s exp(x_ts - m_t)                                      (T,)
    p_ts = exp(x_ts - m_t) / Z_t                                                                                (T, S)
    y_t = sum_s r_ts p_ts v_s                                                                                   (T, E)

u is T5's learned bias for buckets of distances, ALiBi's falling line, or both; r is 0 with probability `rate` and else
1 / (1 - rate). A query that sees nothing has y_t = 0.

Differential, with l_t = m_t + log Z_t, so that p_ts = exp(x_ts - l_t), the mask and r being constants:

    delta y_t = sum_s r_ts (p_ts delta v_s + delta p_ts v_s)        delta p_ts = p_ts (delta x_ts - delta l_t)
    delta l_t = sum_s p_ts delta x_ts + p_t,sink delta sink         p_t,sink = exp(sink - l_t)
    delta x_ts = (1 - (a_ts / c)^2) scale (delta q_t . k_s + q_t . delta k_s) + delta bias_ts + delta u_(s - t)

Into sum_t dy_t . delta y_t goes delta l_t with the factor -sum_s r_ts p_ts dy_t . v_s =: -D_t, the mean that softmax's
backward subtracts. So

    dv_s = sum_t r_ts p_ts dy_t                       (S, E)        summed over the heads that share v
    dx_ts = p_ts (r_ts dy_t . v_s - D_t)              (T, S)        dz_ts = dx_ts (1 - (a_ts / c)^2)
    dq_t = scale sum_s dz_ts k_s                      (T, D)        dk_s = scale sum_t dz_ts q_t, as dv
    dbias_ts = dx_ts                                  (T, S)        summed where bias has an axis of size 1
    du_d = sum_t dx_t,t+d                             (T + S - 1,)  and from there into the buckets
    dsink = - sum_t p_t,sink D_t                      ()

Cached: x alone. D_t needs all dy_t . v_s and p_ts before the first dx_ts; they are made again, one product more than
from a p that is kept, which is (T, S).

Numerical care: the largest logit is subtracted before any exp, the mask is applied before it as well, and m and Z are
at least float32. p is 1 to the last digit where a key outweighs all others, and D_t is summed from the very dy_t . v_s
that it is taken from, though it is dy_t . y_t as well: where p is 1 nothing must be left of dx. A query that sees
nothing has p = 0 by the mask, hence no cotangent, and no NaN.

What a query does not see is not read, whatever hides it: a NaN or an infinity in such a key or value does nothing to y
and dq, and one in a query nothing to dk and dv of the keys that it does not see. A query that sees one has NaN for the
whole of y and dq, and spoils dk and dv of all keys that it sees. A NaN in dy is not hidden: dv is NaN for every key.
"""

from jax import Array

from bpref.formulas.attention.attention_grid import Pattern, Window
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.heads_to_try import ACROSS, GROUPED, NEVER_EMPTY, TIMED
from bpref.formulas.attention.softmax_attention import AttentionParams, softmax_attention
from bpref.layer import Layer, Reals
from bpref.naive.attention import naive_attention
from bpref.rule import Boolean, Case, Integer, Interval, Key, Real, Rule, called_as


def dot_product_attention(
    causal: bool = False,
    window: Window | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    alibi: bool = False,
    relative_buckets: int | None = None,
    max_distance: int = 128,
    sinks: bool = False,
    dropout: float = 0.0,
) -> Layer[AttentionParams, Heads, Reals, Heads]:
    """Each query's mean of the values it sees, weighted by the softmax of its dot products with their keys.

    Args:
      causal: whether query t sees the keys s <= t alone, whatever the lengths T and S, as
        `jax.nn.dot_product_attention` has it.
      window: how near a key is that query t sees: w for |s - t| < w, or (left, right) for t - left <= s <= t + right.
        That pair is `local_window_size` of `jax.nn.dot_product_attention`, whose integer w is w + 1 here.
      soft_cap: c, what the logits stay within, before any bias.
      scale: what the dot products are multiplied by, 0 for the mean of what is seen; 1 / sqrt(D) if it is not given.
      alibi: whether -2^(-8 n / N) |s - t| is added to the logits of head n = 1 ... N.
      relative_buckets: how many buckets of distances have a learned bias for each head, as in T5; half of them for each
        direction if it is not causal.
      max_distance: beyond it all distances are in one bucket.
      sinks: whether each head has a learned logit that takes a share of the softmax, and gives nothing.
      dropout: the share of the weights that are dropped, those that stay being divided by 1 - dropout.

    Returns:
      A layer with x `Heads(q, k, v, ...)`: q `(*b, T, N, D)`, k `(*b, S, K, D)`, v `(*b, S, K, E)`, N a multiple of K,
      and as wanted a mask, a bias, segment ids, a PRNG key; and y `(*b, T, N, E)`. The params are
      `AttentionParams(sinks: (N,), relative_bias: (relative_buckets, N))`, zeros at first, `None` where not used. A
      query that sees no key has y = 0 and no gradient, and a key whose bias is below -1e30 is not seen. What is not
      seen is not read: it may be NaN.

    Raises:
      ValueError: a window or a number of buckets that is none; shapes that do not fit; dropout without a key.
      TypeError: x is no `Heads`; dtypes that differ or are not what `Heads` says; a parameter is not of q's dtype.
    """
    pattern = Pattern(0.0 if scale is None else scale, causal, window, soft_cap, dropout)
    is_scaled = scale is None
    return softmax_attention("dot_product_attention", pattern, is_scaled, alibi, relative_buckets, max_distance, sinks)


@called_as(dot_product_attention)
def reference(params: AttentionParams, x: Heads, **hyper) -> Array:
    return naive_attention(params, x, **hyper)


_FIXED = GROUPED | {"u": 1}

CASES = (
    Case("causal", ACROSS, {"causal": True}, never_empty=NEVER_EMPTY, fixed=_FIXED, timed=TIMED),
    Case(
        "mask, bias, soft cap, sinks",
        ACROSS._replace(mask=Boolean("B N T S"), bias=Real("u N T S", -2, 2)),
        {"soft_cap": Interval(1.0, 8.0, 2.0), "sinks": True, "scale": 0.4},
        never_empty=NEVER_EMPTY,
        fixed=_FIXED | {"B": 2},
    ),
    Case(
        "window, segments, distances, dropout",
        ACROSS._replace(q_segments=Integer("B T", 0, 2), kv_segments=Integer("B S", 0, 2), key=Key()),
        {"window": (4, 2), "alibi": True, "relative_buckets": 4, "max_distance": 6, "dropout": 0.25},
        never_empty=NEVER_EMPTY,
        fixed=_FIXED | {"B": 2},
        least={"S": 6},  # a query that sees one key has no gradient but dv
    ),
)
"""The calls that the laws are tried on, here and with blocks."""

RULE = Rule(
    "dot_product_attention",
    dot_product_attention,
    reference,
    cases=CASES,
    cite="arXiv:1706.03762, equation 1; biases: arXiv:1910.10683, arXiv:2108.12409; learned sinks: arXiv:2508.10925",
    covers=("scaled dot-product attention", "softmax attention", "grouped-query attention", "multi-query attention"),
)
