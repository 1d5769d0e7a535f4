"""attention_with_log_sum_exp: softmax attention to some of the keys, in a form that can be merged with that to others.

Forward: the y of `blockwise_attention` without params, and for each query and head the logarithm of what its
exponentials sum up to, over the keys s that query t sees, with the logits x_ts as there:

    L_t = log sum_s exp(x_ts)        p_ts = exp(x_ts - L_t)               (T,) and (T, S)
    y_t = sum_s p_ts v_s                                                  (T, E)

A query that sees nothing has y_t = 0 and L_t = -inf. For the same queries, of y', L' and y'', L'' for two sets of keys

    L = log(exp(L') + exp(L''))        y = exp(L' - L) y' + exp(L'' - L) y''

are those of both together: so attention is split over blocks of keys, devices or steps of decoding, and what a
merged y and L owe to either part comes back as dy' and dL'.

Differential, p being the softmax:

    delta L_t = sum_s p_ts delta x_ts
    delta y_t = sum_s (p_ts delta v_s + p_ts (delta x_ts - delta L_t) v_s)

Collect the factor of delta x_ts in sum_t (dy_t . delta y_t + dL_t delta L_t), with D_t = sum_s p_ts dy_t . v_s:

    dx_ts = p_ts (dy_t . v_s - D_t + dL_t)                                (T, S)
    dv_s  = sum_t p_ts dy_t                                               (S, E)

and from dx on as in `dot_product_attention`: all that dL does is to shift D_t.

Cached: x alone, as there.

Numerical care: that of `blockwise_attention`. L_t is m_t + log Z_t in at least float32, m_t the largest logit, and has
m_t's rounding; the p of the backward have not, being exp(x_ts - m_t) / Z_t. dL_t is added to the difference of
dy_t . v_s and D_t, and to neither: where p_ts is 1 they are equal, and may be as large as they like.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Inexact

from bpref.formulas.attention.attend import attend, log_sum_exp_of, pull_attend
from bpref.formulas.attention.attention_grid import Extras, Pattern, Window
from bpref.formulas.attention.heads import Heads, require_heads
from bpref.formulas.attention.heads_to_try import ACROSS, GROUPED, NEVER_EMPTY, TIMED
from bpref.formulas.attention.softmax_attention import AttentionParams, require_pattern
from bpref.layer import Layer, no_params
from bpref.naive.attention import naive_attention, naive_log_sum_exp
from bpref.rule import Case, Interval, Real, Rule, called_as


class Attended(NamedTuple):
    """What queries have seen of some keys, and how much there was to be seen: `log_sum_exp` in at least float32."""

    y: Float[Array, "*b T N E"]
    log_sum_exp: Inexact[Array, "*b T N"]


def attention_with_log_sum_exp(
    causal: bool = False,
    window: Window | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    query_block: int = 256,
    key_block: int = 256,
) -> Layer[tuple[()], Heads, Attended, Heads]:
    """y and L of each query: the mean of the values that it sees, and the logarithm of its softmax's denominator.

    Args:
      causal, window, soft_cap, scale, query_block, key_block: as in `blockwise_attention`.

    Returns:
      A layer with params `()`, x `Heads(q: (*b, T, N, D), k: (*b, S, K, D), v: (*b, S, K, E), ...)` without a key, and
      y `Attended(y: (*b, T, N, E), log_sum_exp: (*b, T, N))`. Either may be left unused, and has the cotangent `None`.

    Raises:
      ValueError, TypeError: as in `blockwise_attention`; x.key is given.
    """
    who = "attention_with_log_sum_exp"
    pattern = require_pattern(
        who, Pattern(0.0 if scale is None else scale, causal, window, soft_cap, 0.0, query_block, key_block)
    )

    def forward(params, x: Heads):
        require_heads(who, x)
        if x.key is not None:
            raise ValueError(f"{who}: x.key is given, expected None: there is no dropout")
        kept = attend(_of(x), x, Extras())
        return Attended(kept.y, log_sum_exp_of(kept)), x

    def backward(params, cache, dy):
        x = cache
        of_y, dL = dy
        if of_y is None:
            of_y = jnp.zeros((*x.q.shape[:-1], x.v.shape[-1]), x.q.dtype)
        d = pull_attend(_of(x), x, Extras(), of_y, dL=dL)
        return (), Heads(d.dq, d.dk, d.dv, bias=d.dbias)

    def _of(x):
        return pattern._replace(scale=x.q.shape[-1] ** -0.5) if scale is None else pattern

    return Layer(no_params, forward, backward, who)


@called_as(attention_with_log_sum_exp)
def reference(params: tuple[()], x: Heads, **hyper) -> Attended:
    return Attended(naive_attention(AttentionParams(), x, **hyper), naive_log_sum_exp(x, **hyper))


RULE = Rule(
    "attention_with_log_sum_exp",
    attention_with_log_sum_exp,
    reference,
    cases=(
        Case("causal", ACROSS, {"causal": True}, NEVER_EMPTY, fixed=GROUPED, timed=TIMED),
        Case(
            "bias, soft cap, blocks",
            ACROSS._replace(bias=Real("u N T S", -2, 2)),
            {"soft_cap": Interval(1.0, 8.0, 2.0), "scale": 0.4, "query_block": 5, "key_block": 2},
            NEVER_EMPTY,
            fixed=GROUPED | {"B": 2, "u": 1},
        ),
    ),
    cite="arXiv:2205.14135, section 3.1; merging: arXiv:2310.01889, section 3",
    covers=("flash decoding", "mergeable attention"),
)
