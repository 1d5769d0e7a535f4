"""forgetting_attention: softmax attention whose weights fade with what a gate of each step leaves of the past.

Forward, for each head, with q of shape (T, D), k (T, D), v (T, E) and the logarithms g (T,) of what remains, a = scale,
1 / sqrt(D) if it is not given:

    F_ts = sum of g_u over s < u <= t                                     (T, T)
    z_ts = a q_t . k_s + F_ts               s <= t
    p_t  = softmax of z_t over the keys s <= t that are seen              (T, T)
    y_t  = sum_s p_ts v_s                                                 (T, E)

exp(F_ts) multiplies the weight of key s at step t by the gates between. A g of 0 everywhere is `dot_product_attention`;
one that is the same at all steps is a bias by distance, as ALiBi's.

Differential. F is a bias, so that with the adjoint of `dot_product_attention`, whose dz is

    dp_ts = dy_t . v_s      dz_ts = p_ts (dp_ts - sum_j p_tj dp_tj)       (T, T)

dq, dk and dv are that one's, and from delta F_ts = sum of delta g_u over s < u <= t,

    dF = dz                 dg_u = sum of dF_ts over s < u <= t           (T,)

made of the sums of each row of dF before u, X_tu = sum_{s<u} dF_ts, as dg_u = sum_{t>=u} X_tu: T^2 additions.

Cached: x as it came. F, the logits and p are made again; they are (T, T).

Numerical care: F_ts is a sum over the steps between alone, see `bpref/formulas/recurrence/decays.py`. The usual form,
c_t - c_s of the sums c from the start, loses the gates of late steps to round-off, and is NaN where one is 0: there F
is -inf, which is a mask, and dg is 0. All is at least float32. A step sees itself, with F_tt = 0.
"""

from math import prod

import jax.numpy as jnp
from jax import Array, lax

from bpref.checks.hyperparameters import require_finite
from bpref.dtypes import cast, widen
from bpref.formulas.attention.heads import Heads, require_heads
from bpref.formulas.attention.heads_to_try import WITHIN, packed
from bpref.formulas.attention.plain_heads import ForgettingHeads
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.formulas.recurrence.decays import pull_sums_between, sums_between
from bpref.layer import Layer, Reals, no_params
from bpref.naive.attention import naive_attention
from bpref.rule import Boolean, Case, Real, Rule, called_as, specs
from bpref.rules.attention.dot_product_attention import dot_product_attention


def forgetting_attention(scale: float | None = None) -> Layer[tuple[()], ForgettingHeads, Reals, ForgettingHeads]:
    """Each query's mean of the values before it, weighted by exp(a q_t . k_s) times the gates between.

    Args:
      scale: a, what the dot products are multiplied by; 1 / sqrt(D) if it is not given.

    Returns:
      A layer with params `()`, x `ForgettingHeads(Heads(q: (*b, T, N, D), k: (*b, T, K, D), v: (*b, T, K, E), ...),
      log_gate: (*b, T, N))`, N a multiple of K, and as wanted a mask and segment ids, and y `(*b, T, N, E)`. The cache
      is x. A query whose keys are all masked has y = 0 and no gradient.

    Raises:
      ValueError: `scale` is not finite; shapes do not fit; x has a bias or a key.
      TypeError: x is no `ForgettingHeads`; its arrays are not floating-point numbers of one dtype.
    """
    who = "forgetting_attention"
    scale = None if scale is None else require_finite(who, "scale", scale)
    attention = dot_product_attention(causal=True, scale=scale)

    def biased(x):
        """The heads in at least float32, with F for their bias."""
        *b, T, N = x.log_gate.shape
        g = jnp.reshape(jnp.swapaxes(widen(x.log_gate), -1, -2), (prod(b) * N, T, 1))
        F = jnp.reshape(sums_between(g), (*b, N, T, T))
        q, k, v = map(widen, x.heads[:3])
        return x.heads._replace(q=q, k=k, v=v, bias=F)

    def forward(params, x: ForgettingHeads):
        for name in ("bias", "key"):
            if getattr(x.heads, name) is not None:
                why = "it is made of the gates" if name == "bias" else "nothing is dropped"
                raise ValueError(f"{who}: heads.{name} is given, expected None: {why}")
        T, S = x.heads.q.shape[-3], x.heads.k.shape[-3]
        if T != S:
            raise ValueError(f"{who}: k has {S} steps, q has {T}; expected as many (k: {x.heads.k.shape})")
        require_heads(who, x.heads)
        y = attention.forward(AttentionParams(), biased(x))[0]
        return cast(y, x.heads.q.dtype), x

    def backward(params, cache, dy):
        (q, k, v, *_), g = cache
        heads = biased(cache)
        kept = attention.forward(AttentionParams(), heads)[1]
        dx = attention.backward(AttentionParams(), kept, widen(dy))[1]
        *b, T, N = g.shape
        dg = jnp.reshape(pull_sums_between(jnp.reshape(dx.bias, (prod(b) * N, T, T))), (*b, N, T))
        dq, dk, dv = (cast(d, z.dtype) for d, z in ((dx.q, q), (dx.k, k), (dx.v, v)))
        return (), ForgettingHeads(Heads(dq, dk, dv), cast(jnp.swapaxes(dg, -1, -2), g.dtype))

    return Layer(no_params, forward, backward, who)


@called_as(forgetting_attention)
def reference(params: tuple[()], x: ForgettingHeads, scale) -> Array:
    g = jnp.moveaxis(x.log_gate, -2, 0)
    s = jnp.arange(len(g))

    def row(F, now):
        t, g_t = now
        F = jnp.where((s < t).reshape(*[1] * g_t.ndim, -1), F + g_t[..., None], 0)
        return F, F

    rows = lax.scan(row, jnp.zeros((*g.shape[1:], len(g)), g.dtype), (s, g))[1]
    return naive_attention(
        AttentionParams(), x.heads._replace(bias=jnp.moveaxis(rows, 0, -2)), causal=True, scale=scale
    )


_HIDDEN = packed(WITHIN._replace(mask=Boolean("B N T T")))
_GATE = Real("B T N", -2.0, 0.0, points=(0.0, -30.0, 0.0, -200.0))
_NEVER_EMPTY = ("T", "N", "K", "D", "E")

RULE = Rule(
    "forgetting_attention",
    forgetting_attention,
    reference,
    cases=(
        Case(
            "grouped",
            specs(ForgettingHeads, WITHIN, _GATE),
            never_empty=_NEVER_EMPTY,
            fixed={"N": 4, "K": 2},
            timed={"B": 1, "T": 512, "N": 8, "K": 8, "D": 64, "E": 64},
        ),
        Case(
            "mask, segments, scale",
            specs(ForgettingHeads, _HIDDEN, Real("B T N", -2.0, 0.0)),
            {"scale": 0.4},
            never_empty=_NEVER_EMPTY,
            fixed={"N": 2, "K": 2},
        ),
    ),
    cite="Lin et al., 'Forgetting Transformer: softmax attention with a forget gate' (2025), arXiv:2503.02130, "
    "section 3 (equation number not checked)",
    covers=("fox", "forgetting transformer"),
)
