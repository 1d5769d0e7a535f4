"""multi_head_attention: softmax attention between the four projections that make it a layer.

Forward, with x_t the sequence that asks, c_s the one that answers (x again, if there is only one), e_s that of the
values (c again, unless given), N heads of queries, K of keys and values, D features each, and the maps phi and psi of
one head, RMS norm with scales gamma and kappa, then the rotation by its position, each where it is asked for:

    q_t = W_q x_t + b_q      k_s = W_k c_s + b_k      v_s = W_v e_s + b_v       (T, N D), (S, K D), (S, K D)
    q'_tn = phi_t(q_tn)      k'_sn = psi_s(k_sn)                                (T, N, D), (S, K, D)
    o = attention(q', k', v)                                                    (T, N, D)
    y_t = W_o o_t + b_o                                                         (T, d)

A key and a value that are learned, and ones that are zeros, may stand behind all others, seen by every query; and the
weights w_nts = r_nts p_nts of attention, or their mean over the heads, may be put out beside y.

There is a b_k only where it does something: left as it is, it would add q_tn . b_k to all logits of a query, of which
the softmax takes no notice; after a norm, a rotation, within a soft cap, or beside a sink or such a key it does.

Differential: attention's is derived in `dot_product_attention`, that of phi and psi in `rms_norm` and
`rotary_embedding`; all others are products, delta y_t = W_o delta o_t + (delta W_o) o_t + delta b_o. The adjoint, read
from the last equation to the first, each d being what arrives:

    dW_o = sum_t dy_t o_t^T             db_o = sum_t dy_t             do_t = W_o^T dy_t      (d, N D), (d,), (T, N D)
    (dq', dk', dv) of do by attention's adjoint                                 (T, N, D), (S, K, D), (S, K, D)
    (dq, dgamma) of dq' by the adjoint of phi: the rotation back, then the norm's;  (dk, dkappa) of dk' by that of psi
    dW_q = sum_t dq_t x_t^T             dW_k = sum_s dk_s c_s^T       dW_v = sum_s dv_s e_s^T
    db_q = sum_t dq_t                   db_k = sum_s dk_s             db_v = sum_s dv_s
    dx_t = W_q^T dq_t                   dc_s = W_k^T dk_s             de_s = W_v^T dv_s     added, where they are one

Every sum over t or s runs over the batch as well, and is one product over all positions. A key that is learned has the
dk of its place, summed over the batch. In attention's adjoint dw_nts stands beside do_tn . v_sn, since both are what
w_nts is multiplied by: ds_nts = p_nts (r_nts (do_tn . v_sn + dw_nts) - c_tn), c_tn the mean of the same under p.

Cached: x, c, e, v, o, and q' and k'; with the norm q and k in place of these, which it makes again: o alone is not
enough for its adjoint, and both would be twice as much. No number for any pair of positions is kept: their exponentials
and the norm are made again, 1.05 times the time of autodiff of the forward for 0.14 of the bytes that it keeps.

Numerical care: that of its parts. Products accumulate in at least float32, biases are added before they are rounded,
and the two or three terms of dx are added before it is. A query that sees nothing has o_t = 0, hence y_t = b_o, and
gives a gradient to b_o alone. The weights are made with y's own m and Z, in one block: they are T x S themselves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_choice, require_flags, require_positive, require_share, require_size
from bpref.cotangents import with_zeros
from bpref.dtypes import cast
from bpref.formulas.affine import closed, lecun_uniform, plus, times, times_transposed, total, unmade
from bpref.formulas.attention.attention_grid import Pattern, Window
from bpref.formulas.attention.extra_keys import Extra, appended, pull_appended
from bpref.formulas.attention.heads import Heads, by_head, by_position, features_of_head, require_kv_heads
from bpref.formulas.attention.rotations import Stretch, require_rope
from bpref.formulas.attention.sequences import Sequences, as_sequences, heads_of, pull_sources, sources, with_key
from bpref.formulas.attention.softmax_attention import AttentionParams, Weighted, require_pattern, softmax_attention
from bpref.formulas.decoder import decoder, decoder_of
from bpref.formulas.random_draws import with_key_in_x
from bpref.kernels.attention import forms
from bpref.layer import Layer, Reals, With, begin
from bpref.naive.projected_attention import naive_projected_attention
from bpref.rule import Boolean, Case, Integer, Interval, Key, Real, Rule, called_as, specs
from bpref.rules.attention.rotary_embedding import rotary_embedding
from bpref.rules.norm.qk_norm import QkNormParams
from bpref.rules.norm.qk_norm import qk_norm as qk_norm_layer


class MultiHeadAttentionParams(NamedTuple):
    W_q: Float[Array, "N*D d"]
    W_k: Float[Array, "K*D f"]
    W_v: Float[Array, "K*D g"]
    W_o: Float[Array, "d N*D"]
    b_q: Float[Array, " N*D"] | None = None
    b_k: Float[Array, " K*D"] | None = None
    b_v: Float[Array, " K*D"] | None = None
    b_o: Float[Array, " d"] | None = None
    norm: QkNormParams | None = None
    attention: AttentionParams = AttentionParams()
    bias_k: Float[Array, " K*D"] | None = None
    bias_v: Float[Array, " K*D"] | None = None


class MultiHeadAttentionCache(NamedTuple):
    x: PyTree
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b S K D"]
    v: Float[Array, "*b S K D"]
    o: Float[Array, "*b T N D"]


def multi_head_attention(
    heads: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    *,
    bias: bool = True,
    qk_norm: bool = False,
    eps: float = 1e-6,
    rope: float | None = None,
    interleaved: bool = False,
    fraction: float = 1.0,
    stretch: Stretch | None = None,
    causal: bool = False,
    window: Window | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    alibi: bool = False,
    relative_buckets: int | None = None,
    max_distance: int = 128,
    sinks: bool = False,
    dropout: float = 0.0,
    blockwise: bool = True,
    query_block: int = 256,
    key_block: int = 256,
    weights: str | None = None,
    add_bias_kv: bool = False,
    add_zero_attn: bool = False,
    implementation: str = "auto",
) -> Layer[MultiHeadAttentionParams, Array | Sequences, Reals | Weighted, MultiHeadAttentionCache]:
    """y = W_o attention(W_q x, W_k c, W_v c), of a sequence to itself or to another.

    Args:
      heads: the number N of heads of queries.
      kv_heads: the number K of heads of keys and values, which divides N; N where left out (1: multi-query attention).
      head_dim: the features D of a head; d / N where it is left out.
      bias: whether there are b_q, b_v, b_o, and b_k where it does something.
      qk_norm: whether queries and keys are divided by the root mean square of their head, and scaled, as in `qk_norm`.
      eps: what is added to that mean square.
      rope: the base of `rotary_embedding`, by which queries and keys are turned; None: they are not.
      interleaved, fraction, stretch: as there.
      causal, window, soft_cap, scale, alibi, relative_buckets, max_distance, sinks, dropout: as in
        `dot_product_attention`.
      blockwise: whether attention works by blocks, as `blockwise_attention` does.
      query_block, key_block, implementation: as there; "pallas" works by blocks, adds no keys and puts no weights out.
      weights: what y has beside it: the attention's weights by "heads", `(*b, N, T, S)`, or their "mean", `(*b, T, S)`.
      add_bias_kv: whether a learned key and value stand behind all others, seen by every query.
      add_zero_attn: whether ones of zeros do. Either hides what else is hidden by a mask, T S booleans.

    Returns:
      A layer with params `MultiHeadAttentionParams(W_q: (N D, d), W_k: (K D, f), W_v: (K D, g), W_o: (d, N D), b_q,
      b_k, b_v, b_o, norm: QkNormParams, attention: AttentionParams, bias_k: (K D,), bias_v: (K D,))`, x `(*b, T, d)` or
      `Sequences(x, memory: (*b, S, f), mask, segments, memory_segments, key, values: (*b, S, g), bias)`, and y
      `(*b, T, d)`, or with weights `Weighted(y, weights)`. Each W is drawn uniformly with variance 1 over the number of
      its inputs; b are zeros, bias_k and bias_v normal. A query that sees nothing has y = b_o.

    Raises:
      ValueError: an argument is out of its range; heads divide neither each other nor the features; an odd number of
        features is to be turned; shapes do not fit; dropout without a key; a key that has no place is added where
        distances count.
      TypeError: a sequence is not floating-point, or it or a parameter is not of W_q's dtype; other dtypes are not what
        `Sequences` says.
    """
    who, undropped = "multi_head_attention", {**locals(), "dropout": 0.0}
    require_flags(who, bias=bias, qk_norm=qk_norm, interleaved=interleaved, blockwise=blockwise)
    require_flags(who, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn)
    if weights is not None:
        require_choice(who, "weights", weights, ("heads", "mean"))
    adds_keys = add_bias_kv or add_zero_attn
    if adds_keys and (alibi or relative_buckets is not None):
        raise ValueError(f"{who}: a key without a place is added, expected neither alibi nor relative_buckets")
    eps = require_positive(who, "eps", eps)
    fraction = require_share(who, "fraction", fraction)
    rope, stretch = require_rope(who, rope, stretch)
    heads, K = require_kv_heads(who, heads, kv_heads)
    head_dim = None if head_dim is None else require_size(who, "head_dim", head_dim)
    blocks = (query_block, key_block) if blockwise else (None, None)
    others = {"alibi": alibi, "relative_buckets": relative_buckets, "sinks": sinks, "dropout": dropout}
    others |= {"weights": weights, "add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn}
    form_of = forms(who, implementation, blocks, others)
    if implementation == "pallas" and not blockwise:
        raise ValueError(f'{who}: blockwise is False; implementation "pallas" works by blocks, "xla" need not')
    pattern = require_pattern(who, Pattern(0.0 if scale is None else scale, causal, window, soft_cap, dropout, *blocks))
    of_pairs = pattern._replace(causal=False, window=None) if adds_keys else pattern
    biases = alibi, relative_buckets, max_distance, sinks
    attention = softmax_attention(who, of_pairs, scale is None, *biases, form_of, weights)
    norm = qk_norm_layer(eps=eps) if qk_norm else None
    rotary = None if rope is None else rotary_embedding(interleaved, fraction, rope, stretch)
    moves_logits = qk_norm or sinks or rope is not None or soft_cap is not None or adds_keys

    def features(x):
        """D, of a head."""
        D = features_of_head(who, x, heads, head_dim)
        turned = round(fraction * D)
        if rotary is not None and (turned % 2 or not 2 <= turned <= D):
            raise ValueError(
                f"{who}: {turned} of a head's {D} features are turned, expected an even number from 2 to {D}"
            )
        return D

    def init(key, x):
        x, *answers = sources(as_sequences(who, x))
        D, dtype, d, (f, g) = features(x), x.dtype, x.shape[-1], (a.shape[-1] for a in answers)
        shapes = ((heads * D, d), (K * D, f), (K * D, g), (d, heads * D))
        W = [lecun_uniform(k, s, s[1], dtype) for k, s in zip(jax.random.split(key, 4), shapes, strict=True)]
        has = (bias, bias and moves_logits, bias, bias)
        b = [jnp.zeros(s[0], dtype) if is_there else None for is_there, s in zip(has, shapes, strict=True)]
        q, k = (jax.ShapeDtypeStruct((*a.shape[:-1], n, D), dtype) for a, n in ((x, heads), (answers[0], K)))
        of_norm, of_attention = norm and norm.init(key, (q, k)), attention.init(key, specs(Heads, q, k, k))
        of_extra = jax.random.normal(jax.random.fold_in(key, 4), (2, K * D), dtype) if add_bias_kv else (None, None)
        return MultiHeadAttentionParams._make((*W, *b, of_norm, of_attention, *of_extra))

    def normed(params, q, k):
        return ((q, k), None) if norm is None else norm.forward(params.norm, (q, k))

    def turned(q, k):
        return (q, k) if rotary is None else (rotary.forward((), q)[0], rotary.forward((), k)[0])

    def by_heads(params, asks, answers, values):
        """q, k and v, neither normed nor turned."""
        of = (asks, params.W_q, params.b_q, heads), (answers, params.W_k, params.b_k, K)
        return [
            by_head(cast(plus(times_transposed(A, W), b), A.dtype), n)
            for A, W, b, n in (*of, (values, params.W_v, params.b_v, K))
        ]

    def with_extra(params, met):
        extra = Extra(params.bias_k, params.bias_v, add_zero_attn)
        return (appended(met, extra, causal, window) if adds_keys else met), extra

    def put_out(params, o):
        return cast(plus(times_transposed(by_position(o), params.W_o), params.b_o), o.dtype)

    def forward(params, x: Float[Array, "*b T>0 d>0"] | Sequences):
        given = as_sequences(who, x)
        q, k, v = by_heads(params, *sources(given))
        compared = turned(*normed(params, q, k)[0])
        o, _ = attention.forward(params.attention, with_extra(params, heads_of(given, *compared, v))[0])
        o, w = (o, None) if weights is None else o
        y = put_out(params, o)
        cache = MultiHeadAttentionCache(x, *(compared if norm is None else (q, k)), v, o)
        return y if w is None else Weighted(y, w), cache

    def opened(params, cache, dy):
        x, q, k, v, o = cache
        given = as_sequences(who, x)
        asks, answers, values = sources(given)
        dy, dw = (dy, None) if weights is None else dy
        dy = with_zeros(dy, asks)
        do = cast(times(dy, params.W_o), dy.dtype).reshape(o.shape)
        of_norm: PyTree = None
        if norm is not None:
            (q, k), of_norm = normed(params, q, k)
            q, k = turned(q, k)
        alone = heads_of(given, q, k, v)
        met, extra = with_extra(params, alone)
        dattention, d = attention.backward(params.attention, met, do if weights is None else Weighted._make((do, dw)))
        if adds_keys:
            d, extra = pull_appended(alone, extra, d)
        dq, dk, dv = d.q, d.k, d.v
        if rotary is not None:
            dq, dk = (rotary.backward((), None, a)[1] for a in (dq, dk))
        dnorm = None
        if norm is not None:
            dnorm, (dq, dk) = norm.backward(params.norm, of_norm, (dq, dk))
        dq, dk, dv = (by_position(a) for a in (dq, dk, dv))
        pairs = (dq, asks), (dk, answers), (dv, values), (dy, by_position(o))
        dW = (unmade(d, A) for d, A in pairs)
        b = params.b_q, params.b_k, params.b_v, params.b_o
        db = (total(d, v) for (d, _), v in zip(pairs, b, strict=True))
        dparams = MultiHeadAttentionParams(*dW, *db, norm=dnorm, attention=dattention, bias_k=extra.k, bias_v=extra.v)
        of_sources = times(dq, params.W_q), times(dk, params.W_k), times(dv, params.W_v)
        dx = pull_sources(given, of_sources, dy.dtype)
        return dparams, dx._replace(bias=d.bias) if isinstance(x, Sequences) else dx.x

    def decoding(leaf, length):
        turning, onwards = rotary and decoder_of(rotary, length), decoder_of(attention, length)

        def start(params, x):
            if isinstance(x, Sequences):
                raise TypeError(f"{who}: x is Sequences, expected an array: decoding is of one sequence to itself")
            kv = jax.ShapeDtypeStruct((*x.shape[:-1], K, features(x)), x.dtype)
            return begin(onwards, jax.random.key(0), specs(Heads, kv, kv, kv))[1]

        def step(params, x, memory):
            q, k, v = by_heads(params, x, x, x)
            q, k = normed(params, q, k)[0]
            if turning is not None:
                q, k = (turning.forward((), With(u, memory.n))[0][0] for u in (q, k))
            (o, memory), _ = onwards.forward(params.attention, With(Heads(q, k, v), memory))
            return put_out(params, o), memory

        return decoder(leaf, start, step)

    decodes = weights is None and not adds_keys
    layer = Layer(init, forward, closed(opened), who, decoding=decoding if decodes else None, opened=opened)
    return with_key_in_x(layer, multi_head_attention(**undropped), with_key) if dropout else layer


@called_as(multi_head_attention)
def reference(params: MultiHeadAttentionParams, x: Array | Sequences, **hyper) -> Array | Weighted:
    return naive_projected_attention(params, x if isinstance(x, Sequences) else Sequences(x), **hyper)


_CROSS = (
    Real("B T d", -2.0, 2.0),
    Real("B S f", -2.0, 2.0),
    Boolean("B u T S"),
    Integer("B T", 0, 2),
    Integer("B S", 0, 2),
)

RULE = Rule(
    "multi_head_attention",
    multi_head_attention,
    reference,
    cases=(
        Case(
            "causal, grouped queries, norm, rotation",
            Real("B T d", -2.0, 2.0),
            {"heads": 4, "kv_heads": 2, "causal": True, "qk_norm": True, "rope": 100.0}
            | {"stretch": Stretch("yarn", 4.0, 16), "eps": Interval(1e-3, 0.1, 1e-2)},
            never_empty=("T",),
            fixed={"B": 3, "d": 16},
            timed={"B": 2, "T": 256, "d": 256},
        ),
        Case(
            "cross-attention, mask, segments, soft cap",
            specs(Sequences, *_CROSS),
            {"heads": 2, "head_dim": 3, "soft_cap": 4.0, "sinks": True, "query_block": 5, "key_block": 3},
            never_empty=("T", "S", "d", "f"),
            fixed={"B": 2, "d": 4, "u": 1},
        ),
        Case(
            "values of their own, a bias, a key more, and the weights",
            specs(Sequences, *_CROSS[:2], values=Real("B S g", -2.0, 2.0), bias=Real("B u T S", -2.0, 2.0)),
            {"heads": 2, "causal": True, "weights": "mean", "add_bias_kv": True, "add_zero_attn": True},
            never_empty=("T", "S", "d", "f", "g"),
            fixed={"B": 2, "d": 16, "u": 1},
        ),
        Case(
            "dropout, the weights of each head",
            specs(Sequences, _CROSS[0], key=Key()),
            {"heads": 2, "dropout": 0.25, "weights": "heads", "window": 3},
            never_empty=("T", "d"),
            fixed={"B": 2, "d": 4},
            least={"T": 3},
        ),
        Case(
            "causal, grouped queries, a kernel",
            Real("B T d", -2.0, 2.0),
            {"heads": 4, "kv_heads": 2, "causal": True, "query_block": 4, "key_block": 4, "implementation": "pallas"},
            never_empty=("T",),
            fixed={"B": 1, "d": 8},
        ),
    ),
    cite="arXiv:1706.03762, section 3.2.2; grouped queries: arXiv:2305.13245, section 2.2",
    covers=("mha", "self-attention", "cross-attention"),
)
