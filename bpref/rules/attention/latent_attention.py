"""latent_attention: attention whose keys and values are made of one short vector for each position.

Forward, with r features of the latent c_s, r' of the queries' own, N heads of D features that know no position, R that
are turned by theirs (rho_t), and values of E; nu and nu' are RMS norms with scales gamma and gamma', where wanted:

    a_t = W_dq x_t            c_s = W_dkv x_s                                   (T, r'), (T, r)
    q_tn = [q^C_tn; rho_t(q^R_tn)]     of W_uq nu'(a_t)                         (T, N, D + R)
    k_sn = [(W_uk nu(c_s))_n; rho_s(W_kr x_s)]     the second part shared       (T, N, D + R)
    v_sn = (W_uv nu(c_s))_n                                                     (T, N, E)
    o = attention(q, k, v)             logits q_tn . k_sn / sqrt(D + R)         (T, N, E)
    y_t = W_o o_t                                                               (T, d)

A model that generates has nu(c_s) and rho_s(W_kr x_s) alone to remember of s: r + R numbers instead of N (D + R + E).
It makes no keys and values of them: q^C . W_uk nu(c) = (W_uk^T q^C) . nu(c), and the mean of W_uv nu(c) is W_uv times
nu(c)'s, so that one head of r + R features meets all queries. Without r' the queries are W_uq x_t.

Differential: attention's is derived in `dot_product_attention`, those of nu and rho in `rms_norm` and
`rotary_embedding`; all others are products. The adjoint, from the last equation to the first:

    dW_o = sum_t dy_t o_t^T             do_t = W_o^T dy_t                       (d, N E), (T, N E)
    (dq, dk, dv) of do by attention's adjoint, and q^R's part of dq turned back
    dk^R_s = rho_s^-1(sum_n dk^R_sn)    shared by all heads                     (T, R)
    dW_uq = sum_t dq_t nu'(a_t)^T       da of W_uq^T dq by nu's adjoint         (N (D + R), r'), (T, r')
    dW_uk = sum_s dk^C_s nu(c_s)^T      dW_uv = sum_s dv_s nu(c_s)^T            (N D, r), (N E, r)
    dc of W_uk^T dk^C + W_uv^T dv by nu's adjoint                               (T, r)
    dW_dq = sum_t da_t x_t^T            dW_dkv = sum_s dc_s x_s^T               dW_kr = sum_s dk^R_s x_s^T
    dx_t = W_dq^T da_t + W_dkv^T dc_t + W_kr^T dk^R_t                           (T, d)

Cached: x, a, c and o. Queries, keys and values are made again of the latents, as a model that generates makes them: one
product more beside the two of each adjoint, for a cache that has nothing of all heads but o.

What it costs, forward and backward on 2 CPU cores beside autodiff of the forward: the same time at T 512 with 4 heads
of D + R = 96, and 1.4 times it with 2 heads of 5, where the softmax of all pairs, made again backward, is most of it.

Numerical care: that of its parts. Products and the sum over heads accumulate in at least float32, and what meets in dc
or dx is added before it is rounded. A query that sees nothing has y = 0 and no gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_flags, require_positive, require_size, require_sizes
from bpref.dtypes import cast, widen
from bpref.formulas.affine import lecun_uniform, times, times_transposed, transposed_times
from bpref.formulas.attention.attention_grid import Extras, Pattern, Window
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.memory import Memory, attend_on, no_memory, reach
from bpref.formulas.attention.rotations import Stretch, require_rotation
from bpref.formulas.attention.sequences import Sequences, as_sequences
from bpref.formulas.attention.softmax_attention import AttentionParams, softmax_attention
from bpref.formulas.decoder import decoder, decoder_of
from bpref.layer import Layer, Reals, With
from bpref.naive.attention import naive_attention
from bpref.naive.dense import naive_affine, naive_norm
from bpref.naive.rotation import naive_rotation
from bpref.rule import Case, Integer, Interval, Real, Rule, Size, called_as, specs
from bpref.rules.attention.rotary_embedding import rotary_embedding
from bpref.rules.norm.rms_norm import RmsNormParams, rms_norm


class LatentAttentionParams(NamedTuple):
    W_dq: Float[Array, "r' d"] | None
    W_uq: Float[Array, "N*(D+R) r'"]
    W_dkv: Float[Array, "r d"]
    W_kr: Float[Array, "R d"]
    W_uk: Float[Array, "N*D r"]
    W_uv: Float[Array, "N*E r"]
    W_o: Float[Array, "d N*E"]
    q_scale: Float[Array, " r'"] | None
    kv_scale: Float[Array, " r"] | None


class LatentAttentionCache(NamedTuple):
    x: PyTree
    a: Float[Array, "*b T r'"] | None
    c: Float[Array, "*b T r"]
    o: Float[Array, "*b T N E"]


def latent_attention(
    heads: int,
    kv_rank: int,
    query_rank: int | None = None,
    *,
    head_dim: int = 128,
    rope_dim: int = 64,
    value_dim: int | None = None,
    norm: bool = True,
    eps: float = 1e-6,
    base: float = 10000.0,
    interleaved: bool = False,
    stretch: Stretch | None = None,
    causal: bool = True,
    window: Window | None = None,
    blockwise: bool = True,
    query_block: int = 256,
    key_block: int = 256,
) -> Layer[LatentAttentionParams, Array | Sequences, Reals, LatentAttentionCache]:
    """Multi-head latent attention of a sequence to itself, as in DeepSeek-V2.

    Args:
      heads: N.
      kv_rank: the features r of the latent that keys and values are made of.
      query_rank: the features r' of that which queries are made of; None: they are made of x.
      head_dim: the features D of a head's queries and keys that are not turned.
      rope_dim: the features R that are turned by their position, an even number; those of the keys shared by all heads.
      value_dim: the features E of a head's values; D where it is left out.
      norm: whether the latents are divided by their root mean square, and scaled.
      eps: what is added to that mean square.
      base, interleaved, stretch: as in `rotary_embedding`.
      causal, window, blockwise, query_block, key_block: as in `multi_head_attention`.

    Returns:
      A layer with params `LatentAttentionParams(W_dq: (r', d) or None, W_uq: (N (D + R), r'), W_dkv: (r, d), W_kr:
      (R, d), W_uk: (N D, r), W_uv: (N E, r), W_o: (d, N E), q_scale: (r',), kv_scale: (r,))`, x `(*b, T, d)` or
      `Sequences(x, mask=..., segments=..., bias=...)`, and y `(*b, T, d)`. Each W is drawn uniformly with variance 1
      over the number of its inputs, scales are ones. A query that sees nothing has y = 0.

    Raises:
      ValueError: an argument is out of its range; shapes do not fit; there is a memory.
      TypeError: x is not floating-point, or it or a parameter is not of W_dkv's dtype; a mask or segments have not
        their dtype.
    """
    who = "latent_attention"
    require_flags(who, norm=norm, interleaved=interleaved, causal=causal, blockwise=blockwise)
    E = head_dim if value_dim is None else value_dim
    heads, kv_rank, head_dim, rope_dim, E = require_sizes(
        who, heads=heads, kv_rank=kv_rank, head_dim=head_dim, rope_dim=rope_dim, value_dim=E
    )
    if query_rank is not None:
        query_rank = require_size(who, "query_rank", query_rank)
    if rope_dim % 2:
        raise ValueError(f"{who}: rope_dim is {rope_dim}, expected an even number")
    eps = require_positive(who, "eps", eps)
    base, stretch = require_rotation(who, base, stretch)
    pattern = Pattern(0.0, causal, window, None, 0.0, *((query_block, key_block) if blockwise else (None, None)))
    attention = softmax_attention(who, pattern, True, False, None, 128, False)
    rms, rotary = rms_norm(eps), rotary_embedding(interleaved, 1.0, base, stretch)

    def shapes(d):
        rank = d if query_rank is None else query_rank
        return {
            "W_dq": None if query_rank is None else (rank, d),
            "W_uq": (heads * (head_dim + rope_dim), rank),
            "W_dkv": (kv_rank, d),
            "W_kr": (rope_dim, d),
            "W_uk": (heads * head_dim, kv_rank),
            "W_uv": (heads * E, kv_rank),
            "W_o": (d, heads * E),
        }

    def given(x):
        x = as_sequences(who, x)
        if x.memory is not None or x.values is not None:
            raise ValueError(f"{who}: there is a memory, expected None: keys and values are made of x")
        return x

    def init(key, x):
        x = given(x).x
        dtype, of = x.dtype, shapes(x.shape[-1])
        keys = jax.random.split(key, len(of))
        W = [s and lecun_uniform(k, s, s[1], dtype) for k, s in zip(keys, of.values(), strict=True)]
        q_scale, kv_scale = (jnp.ones(n, dtype) if norm and n else None for n in (query_rank, kv_rank))
        return LatentAttentionParams(*W, q_scale=q_scale, kv_scale=kv_scale)

    def normed(scale, c):
        return (c, None) if scale is None else rms.forward(RmsNormParams(scale), c)

    def pull_normed(scale, cache, dn):
        if scale is None:
            return None, dn
        of_scale, dc = rms.backward(RmsNormParams(scale), cache, dn)
        return of_scale.scale, dc

    def by_head(A, W, n):
        z = cast(times_transposed(A, W), A.dtype)
        return z.reshape(*z.shape[:-1], n, z.shape[-1] // n)

    def made(params, x, of_q, of_kv):
        """q, k and v by heads, of the normed latents."""
        q = by_head(of_q, params.W_uq, heads)
        q = jnp.concatenate([q[..., :head_dim], rotary.forward((), q[..., head_dim:])[0]], -1)
        k = by_head(of_kv, params.W_uk, heads)
        shared = rotary.forward((), by_head(x.x, params.W_kr, 1))[0]
        k = jnp.concatenate([k, jnp.broadcast_to(shared, (*k.shape[:-1], rope_dim))], -1)
        return Heads(q, k, by_head(of_kv, params.W_uv, heads), x.mask, x.bias, x.segments)

    def forward(params, x: Float[Array, "*b T>0 d>0"] | Sequences):
        seqs = given(x)
        a = None if params.W_dq is None else cast(times_transposed(seqs.x, params.W_dq), seqs.x.dtype)
        c = cast(times_transposed(seqs.x, params.W_dkv), seqs.x.dtype)
        of_q = normed(params.q_scale, seqs.x if a is None else a)[0]
        o, _ = attention.forward(AttentionParams(), made(params, seqs, of_q, normed(params.kv_scale, c)[0]))
        y = cast(times_transposed(_joined(o), params.W_o), seqs.x.dtype)
        return y, LatentAttentionCache(x, a, c, o)

    def backward(params, cache, dy):
        x, a, c, o = cache
        seqs, dtype = given(x), dy.dtype
        A = seqs.x
        of_q, q_cache = normed(params.q_scale, A if a is None else a)
        of_kv, kv_cache = normed(params.kv_scale, c)
        do = cast(times(dy, params.W_o), dtype).reshape(o.shape)
        d = attention.backward(AttentionParams(), made(params, seqs, of_q, of_kv), do)[1]
        dq = jnp.concatenate([d.q[..., :head_dim], rotary.backward((), None, d.q[..., head_dim:])[1]], -1)
        shared = cast(jnp.sum(widen(d.k[..., head_dim:]), -2, keepdims=True), dtype)
        dq, dk, dv, dk_r = map(_joined, (dq, d.k[..., :head_dim], d.v, rotary.backward((), None, shared)[1]))

        dq_scale, da = pull_normed(params.q_scale, q_cache, cast(times(dq, params.W_uq), dtype))
        dn = cast(times(dk, params.W_uk) + times(dv, params.W_uv), dtype)
        dkv_scale, dc = pull_normed(params.kv_scale, kv_cache, dn)
        dx = times(dc, params.W_dkv) + times(dk_r, params.W_kr)
        dx = dx + (widen(da) if params.W_dq is None else times(da, params.W_dq))
        pairs = (da, A), (dq, of_q), (dc, A), (dk_r, A), (dk, of_kv), (dv, of_kv), (dy, _joined(o))
        dW_dq, *dW = (cast(transposed_times(d, u), dtype) for d, u in pairs)
        if params.W_dq is None:
            dW_dq = None
        dparams = LatentAttentionParams(dW_dq, *dW, q_scale=dq_scale, kv_scale=dkv_scale)
        dx = cast(dx, dtype)
        return dparams, Sequences(dx, bias=d.bias) if isinstance(x, Sequences) else dx

    def decoding(leaf, length):
        W, turning = reach(who, causal, pattern.window, length), decoder_of(rotary, length)

        def start(params, x):
            if isinstance(x, Sequences):
                raise TypeError(f"{who}: x is Sequences, expected an array: decoding is of one sequence to itself")
            k = jax.ShapeDtypeStruct((*x.shape[:-1], 1, kv_rank + rope_dim), x.dtype)
            return no_memory(W, k, k)[::2]

        def step(params, x, memory):
            before, n = memory
            a = x if params.W_dq is None else cast(times_transposed(x, params.W_dq), x.dtype)
            q = by_head(normed(params.q_scale, a)[0], params.W_uq, heads)
            W_uk, W_uv = (W.reshape(heads, -1, kv_rank) for W in (params.W_uk, params.W_uv))
            of_c = cast(jnp.einsum("...nf,nfr->...nr", widen(q[..., :head_dim]), widen(W_uk)), x.dtype)
            c = normed(params.kv_scale, cast(times_transposed(x, params.W_dkv), x.dtype))[0][..., None, :]
            at_n = (turning.forward((), With(z, n))[0][0] for z in (q[..., head_dim:], by_head(x, params.W_kr, 1)))
            q, k = (jnp.concatenate(pair, -1) for pair in zip((of_c, c), at_n, strict=True))
            known = Memory(before, before[..., :kv_rank], n)
            scaled = pattern._replace(scale=(head_dim + rope_dim) ** -0.5)
            o, after = attend_on(scaled, Heads(q, k, k[..., :kv_rank]), Extras(), known, length)
            o = cast(jnp.einsum("...nr,nfr->...nf", widen(o), widen(W_uv)), x.dtype)
            return cast(times_transposed(_joined(o), params.W_o), x.dtype), after[::2]

        return decoder(leaf, start, step)

    return Layer(init, forward, backward, who, decoding=decoding)


def _joined(a: Array) -> Array:
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


@called_as(latent_attention)
def reference(
    params: LatentAttentionParams, x: Array | Sequences, heads, head_dim, eps, base, interleaved, stretch, **of_logits
) -> Array:
    given = x if isinstance(x, Sequences) else Sequences(x)

    def down(W, scale):
        z = given.x if W is None else naive_affine(W, None, given.x)
        return z if scale is None else naive_norm(z, scale, None, eps)

    def up(W, z, n):
        return jnp.einsum("...r,nfr->...nf", z, W.reshape(n, W.shape[0] // n, W.shape[1]))

    def turned(z):
        return naive_rotation(z, base, interleaved, stretch=stretch)

    c = down(params.W_dkv, params.kv_scale)
    q = up(params.W_uq, down(params.W_dq, params.q_scale), heads)
    q = jnp.concatenate([q[..., :head_dim], turned(q[..., head_dim:])], -1)
    shared = jnp.repeat(turned(up(params.W_kr, given.x, 1)), heads, -2)
    k = jnp.concatenate([up(params.W_uk, c, heads), shared], -1)
    at = Heads(q, k, up(params.W_uv, c, heads), given.mask, given.bias, given.segments)
    o = naive_attention(AttentionParams(), at, **of_logits)
    return jnp.einsum("...nf,dnf->...d", o, params.W_o.reshape(params.W_o.shape[0], heads, o.shape[-1]))


_PACKED = (Real("B T d", -2.0, 2.0), None, None, Integer("B T", 0, 2))

RULE = Rule(
    "latent_attention",
    latent_attention,
    reference,
    cases=(
        Case(
            "low-rank queries, norm",
            Real("B T d", -2.0, 2.0),
            {
                "heads": Size("N"),
                "kv_rank": Size("R"),
                "query_rank": Size("Q"),
                "head_dim": Size("D"),
                "rope_dim": Size("E"),
                "base": 100.0,
                "eps": Interval(1e-3, 0.1, 1e-2),
            },
            never_empty=("T", "d"),
            fixed={"N": 2, "R": 5, "Q": 4, "D": 3, "E": 2},
            timed={"B": 1, "T": 512, "d": 256, "N": 4, "R": 64, "Q": 96, "D": 64, "E": 32},
        ),
        Case(
            "queries of x, segments, neighbours turned, other values",
            specs(Sequences, *_PACKED),
            {
                "heads": 2,
                "kv_rank": 3,
                "head_dim": 2,
                "rope_dim": 4,
                "value_dim": 3,
                "norm": False,
                "base": 100.0,
                "interleaved": True,
                "stretch": Stretch("linear", 2.0),
                "causal": False,
                "window": 4,
                "query_block": 3,
                "key_block": 5,
            },
            never_empty=("T", "d"),
            fixed={"B": 2, "d": 4},
        ),
    ),
    cite="arXiv:2405.04434, section 2.1, equations 9 to 19; the norms: section 3.1.2",
    covers=("mla", "multi-head latent attention"),
)
