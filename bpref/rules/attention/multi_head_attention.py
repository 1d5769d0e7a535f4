"""multi_head_attention: softmax attention between the four projections that make it a layer.

Forward, with x_t the sequence that asks and c_s the one that answers (x again, if there is only one), N heads of
queries, K of keys and values, D features each, and the maps phi and psi of one head: RMS norm with scales gamma and
kappa, then the rotation by its position, each where it is asked for:

    q_t = W_q x_t + b_q      k_s = W_k c_s + b_k      v_s = W_v c_s + b_v       (T, N D), (S, K D), (S, K D)
    q'_tn = phi_t(q_tn)      k'_sn = psi_s(k_sn)                                (T, N, D), (S, K, D)
    o = attention(q', k', v)                                                    (T, N, D)
    y_t = W_o o_t + b_o                                                         (T, d)

There is a b_k only where it does something: left as it is, it would add q_tn . b_k to all logits of a query, of which
the softmax takes no notice; after a norm, a rotation, within a soft cap, or beside a sink it does.

Differential: attention's is derived in `dot_product_attention`, that of phi and psi in `rms_norm` and
`rotary_embedding`; all others are products, delta y_t = W_o delta o_t + (delta W_o) o_t + delta b_o. The adjoint, read
from the last equation to the first, each d being what arrives:

    dW_o = sum_t dy_t o_t^T             db_o = sum_t dy_t             do_t = W_o^T dy_t      (d, N D), (d,), (T, N D)
    (dq', dk', dv) of do by attention's adjoint                                 (T, N, D), (S, K, D), (S, K, D)
    (dq, dgamma) of dq' by the adjoint of phi: the rotation back, then the norm's;  (dk, dkappa) of dk' by that of psi
    dW_q = sum_t dq_t x_t^T             dW_k = sum_s dk_s c_s^T       dW_v = sum_s dv_s c_s^T
    db_q = sum_t dq_t                   db_k = sum_s dk_s             db_v = sum_s dv_s
    dx_t = W_q^T dq_t                   dc_s = W_k^T dk_s + W_v^T dv_s          added, where x and c are one

Every sum over t or s runs over the batch as well, and is one product over all positions.

Cached: x, c, v, o, and q' and k'; with the norm q and k in place of these, which it makes again: o alone is not enough
for its adjoint, and both would be twice as much. No number for any pair of positions is kept: their exponentials and
the norm are made again, 1.05 times the time of autodiff of the forward for 0.14 of the bytes that it keeps.

Numerical care: that of its parts. Products accumulate in at least float32, biases are added before they are rounded,
and the two or three terms of dx are added before it is. A query that sees nothing has o_t = 0, hence y_t = b_o, and
gives a gradient to b_o alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_flags, require_positive, require_share, require_size, require_sizes
from bpref.dtypes import cast
from bpref.formulas.affine import closed, lecun_uniform, plus, times, times_transposed, total, unmade
from bpref.formulas.attention_grid import Pattern, Window
from bpref.formulas.decoder import decoder, decoder_of
from bpref.formulas.heads import Heads, by_head, by_position
from bpref.formulas.random_draws import with_key_in_x
from bpref.formulas.rotations import Stretch, require_rope
from bpref.formulas.sequences import Sequences, as_sequences, both, heads_of, with_key
from bpref.formulas.softmax_attention import AttentionCache, AttentionParams, softmax_attention
from bpref.layer import Layer, Reals, With, begin
from bpref.naive.attention import naive_attention
from bpref.naive.rotation import naive_rotation
from bpref.rule import Boolean, Case, Integer, Interval, Real, Rule, called_as, specs
from bpref.rules.attention.rotary_embedding import rotary_embedding
from bpref.rules.norm.qk_norm import QkNormParams
from bpref.rules.norm.qk_norm import qk_norm as qk_norm_layer
from bpref.rules.norm.qk_norm import reference as naive_qk_norm


class MultiHeadAttentionParams(NamedTuple):
    W_q: Float[Array, "N*D d"]
    W_k: Float[Array, "K*D f"]
    W_v: Float[Array, "K*D f"]
    W_o: Float[Array, "d N*D"]
    b_q: Float[Array, " N*D"] | None = None
    b_k: Float[Array, " K*D"] | None = None
    b_v: Float[Array, " K*D"] | None = None
    b_o: Float[Array, " d"] | None = None
    norm: QkNormParams | None = None
    attention: AttentionParams = AttentionParams()


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
) -> Layer[MultiHeadAttentionParams, Array | Sequences, Reals, MultiHeadAttentionCache]:
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
      query_block, key_block: as there.

    Returns:
      A layer with params `MultiHeadAttentionParams(W_q: (N D, d), W_k: (K D, f), W_v: (K D, f), W_o: (d, N D), b_q,
      b_k, b_v, b_o, norm: QkNormParams, attention: AttentionParams)`, x `(*b, T, d)` or `Sequences(x, memory:
      (*b, S, f), mask, segments, memory_segments, key)`, and y `(*b, T, d)`. Each W is drawn uniformly with variance 1
      over the number of its inputs; b are zeros. A query that sees nothing has y = b_o.

    Raises:
      ValueError: an argument is out of its range; heads divide neither each other nor the features; an odd number of
        features is to be turned; shapes do not fit; dropout without a key.
      TypeError: a sequence is not floating-point, or it or a parameter is not of W_q's dtype; other dtypes are not what
        `Sequences` says.
    """
    who, undropped = "multi_head_attention", {**locals(), "dropout": 0.0}
    require_flags(who, bias=bias, qk_norm=qk_norm, interleaved=interleaved, blockwise=blockwise)
    eps = require_positive(who, "eps", eps)
    fraction = require_share(who, "fraction", fraction)
    rope, stretch = require_rope(who, rope, stretch)
    heads, K = require_sizes(who, heads=heads, kv_heads=heads if kv_heads is None else kv_heads)
    if head_dim is not None:
        head_dim = require_size(who, "head_dim", head_dim)
    if heads % K:
        raise ValueError(f"{who}: kv_heads is {K}, expected a divisor of heads {heads}")
    blocks = (query_block, key_block) if blockwise else (None, None)
    pattern = Pattern(0.0 if scale is None else scale, causal, window, soft_cap, dropout, *blocks)
    attention = softmax_attention(who, pattern, scale is None, alibi, relative_buckets, max_distance, sinks)
    norm = qk_norm_layer(eps=eps) if qk_norm else None
    rotary = None if rope is None else rotary_embedding(interleaved, fraction, rope, stretch)
    moves_logits = qk_norm or sinks or rope is not None or soft_cap is not None

    def features(x):
        """D, of a head."""
        d = x.shape[-1]
        if head_dim is None and d % heads:
            raise ValueError(f"{who}: x has {d} features in its last axis, not a multiple of {heads} heads")
        D = d // heads if head_dim is None else head_dim
        turned = round(fraction * D)
        if rotary is not None and (turned % 2 or not 2 <= turned <= D):
            raise ValueError(
                f"{who}: {turned} of a head's {D} features are turned, expected an even number from 2 to {D}"
            )
        return D

    def init(key, x):
        x, memory = both(as_sequences(who, x))
        D, dtype, d, f = features(x), x.dtype, x.shape[-1], memory.shape[-1]
        shapes = ((heads * D, d), (K * D, f), (K * D, f), (d, heads * D))
        W = [lecun_uniform(k, s, s[1], dtype) for k, s in zip(jax.random.split(key, 4), shapes, strict=True)]
        has = (bias, bias and moves_logits, bias, bias)
        b = [jnp.zeros(s[0], dtype) if is_there else None for is_there, s in zip(has, shapes, strict=True)]
        return MultiHeadAttentionParams(
            *W,
            *b,
            norm=QkNormParams(jnp.ones(D, dtype), jnp.ones(D, dtype)) if qk_norm else None,
            attention=AttentionParams(
                jnp.zeros(heads, dtype) if sinks else None,
                None if relative_buckets is None else jnp.zeros((relative_buckets, heads), dtype),
            ),
        )

    def normed(params, q, k):
        return ((q, k), None) if norm is None else norm.forward(params.norm, (q, k))

    def turned(q, k):
        return (q, k) if rotary is None else (rotary.forward((), q)[0], rotary.forward((), k)[0])

    def by_heads(params, asks, answers):
        """q, k and v, neither normed nor turned."""
        of = (asks, params.W_q, params.b_q, heads), (answers, params.W_k, params.b_k, K)
        return [
            by_head(cast(plus(times_transposed(A, W), b), A.dtype), n)
            for A, W, b, n in (*of, (answers, params.W_v, params.b_v, K))
        ]

    def put_out(params, o):
        return cast(plus(times_transposed(by_position(o), params.W_o), params.b_o), o.dtype)

    def forward(params, x: Float[Array, "*b T>0 d>0"] | Sequences):
        given = as_sequences(who, x)
        asks, answers = both(given)
        q, k, v = by_heads(params, asks, answers)
        compared = turned(*normed(params, q, k)[0])
        o, _ = attention.forward(params.attention, heads_of(given, *compared, v))
        return put_out(params, o), MultiHeadAttentionCache(x, *(compared if norm is None else (q, k)), v, o)

    def opened(params, cache, dy):
        x, q, k, v, o = cache
        given = as_sequences(who, x)
        asks, answers = both(given)
        do = cast(times(dy, params.W_o), dy.dtype).reshape(o.shape)
        of_norm: PyTree = None
        if norm is not None:
            (q, k), of_norm = normed(params, q, k)
            q, k = turned(q, k)
        dattention, d = attention.backward(params.attention, AttentionCache(heads_of(given, q, k, v)), do)
        dq, dk, dv = d.q, d.k, d.v
        if rotary is not None:
            dq, dk = (rotary.backward((), None, a)[1] for a in (dq, dk))
        dnorm = None
        if norm is not None:
            dnorm, (dq, dk) = norm.backward(params.norm, of_norm, (dq, dk))
        dq, dk, dv = (by_position(a) for a in (dq, dk, dv))
        pairs = (dq, asks), (dk, answers), (dv, answers), (dy, by_position(o))
        dW = (unmade(d, A) for d, A in pairs)
        b = params.b_q, params.b_k, params.b_v, params.b_o
        db = (total(d, v) for (d, _), v in zip(pairs, b, strict=True))
        dparams = MultiHeadAttentionParams(*dW, *db, norm=dnorm, attention=dattention)
        dasks, danswers = times(dq, params.W_q), times(dk, params.W_k) + times(dv, params.W_v)
        if given.memory is not None:
            return dparams, Sequences(cast(dasks, dy.dtype), cast(danswers, dy.dtype))
        dx = cast(dasks + danswers, dy.dtype)
        return dparams, Sequences(dx) if isinstance(x, Sequences) else dx

    def decoding(leaf, length):
        turning, onwards = rotary and decoder_of(rotary, length), decoder_of(attention, length)

        def start(params, x):
            if isinstance(x, Sequences):
                raise TypeError(f"{who}: x is Sequences, expected an array: decoding is of one sequence to itself")
            kv = jax.ShapeDtypeStruct((*x.shape[:-1], K, features(x)), x.dtype)
            return begin(onwards, jax.random.key(0), specs(Heads, kv, kv, kv))[1]

        def step(params, x, memory):
            q, k, v = by_heads(params, x, x)
            q, k = normed(params, q, k)[0]
            if turning is not None:
                q, k = (turning.forward((), With(u, memory.n))[0][0] for u in (q, k))
            (o, memory), _ = onwards.forward(params.attention, With(Heads(q, k, v), memory))
            return put_out(params, o), memory

        return decoder(leaf, start, step)

    layer = Layer(init, forward, closed(opened), who, decoding=decoding, opened=opened)
    return with_key_in_x(layer, multi_head_attention(**undropped), with_key) if dropout else layer


@called_as(multi_head_attention)
def reference(
    params: MultiHeadAttentionParams,
    x: Array | Sequences,
    heads,
    kv_heads,
    eps,
    rope,
    interleaved,
    fraction,
    stretch,
    **of_logits,
) -> Array:
    given = x if isinstance(x, Sequences) else Sequences(x)
    memory = given.x if given.memory is None else given.memory

    def affine(W, b, A):
        Z = jnp.einsum("...j,kj->...k", A, W)
        return Z if b is None else Z + jnp.broadcast_to(b, Z.shape)

    K = heads if kv_heads is None else kv_heads
    q = affine(params.W_q, params.b_q, given.x)
    k, v = affine(params.W_k, params.b_k, memory), affine(params.W_v, params.b_v, memory)
    q, k, v = (a.reshape(*a.shape[:-1], n, a.shape[-1] // n) for a, n in ((q, heads), (k, K), (v, K)))
    if params.norm is not None:
        q, k = naive_qk_norm(params.norm, (q, k), eps=eps)
    if rope is not None:
        q, k = (naive_rotation(a, rope, interleaved, fraction, stretch) for a in (q, k))
    at = Heads(q, k, v, given.mask, None, given.segments, given.memory_segments, given.key)
    o = naive_attention(params.attention, at, **of_logits)
    return affine(params.W_o, params.b_o, o.reshape(*o.shape[:-2], o.shape[-2] * o.shape[-1]))


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
            {
                "heads": 4,
                "kv_heads": 2,
                "causal": True,
                "qk_norm": True,
                "rope": 100.0,
                "stretch": Stretch("yarn", 4.0, 16),
                "eps": Interval(1e-3, 0.1, 1e-2),
            },
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
    ),
    cite="arXiv:1706.03762, section 3.2.2; grouped queries: arXiv:2305.13245, section 2.2",
    covers=("mha", "self-attention", "cross-attention"),
)
