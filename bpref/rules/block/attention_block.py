"""attention_block: y = W_o attention(RoPE(norm(x) W_qkv)), the attention half of a pre-norm transformer block, unadded.

Forward, with x of shape (*b, T, d), N heads of queries and K of keys and values (N a multiple of K: head n meets head
floor(n K / N)), D = d / N features each, and positions i, j:

    n_i = gamma xhat_i + beta,   xhat_i = (x_i - mu_i) r_i                (*b, T, d)      mu = beta = 0: RMS norm
    (q', k', v)_i = W_qkv n_i + b_qkv                                     (*b, T, (N + 2 K) D)
    q_i = R_i q'_i,   k_i = R_i k'_i                                      (*b, T, N D), (*b, T, K D)
    u_ij = q_i . k_j / sqrt(D),   s_ij = t tanh(u_ij / t)                 (*b, N, T, T), never made       t: soft cap
    m_i = max_j s_ij,   S_i = sum_j exp(s_ij - m_i)                       s = u without a soft cap
    p_ij = exp(s_ij - m_i) / S_i                                          m, S: (*b, T, N)
    o_i = sum_j r_ij p_ij v_j                                             (*b, T, N D)    r = 1 without dropout
    y_i = W_o o_i + b_o                                                   (*b, T, d)

R_i turns the features c and c + D / 2 of every head, as the two coordinates of a plane, by the angle i base^(-2 c / D),
or as `stretch` has it (`bpref.Stretch`). j runs over what is visible from i: j <= i (causal), |i - j| < w or
i - left <= j <= i + right (window), what a mask leaves, and what is of i's own segment; a bias is added to s_ij. r_ij
is 0 with the probability of dropout, and else 1 / (1 - that).

Differential, in the same order; R_i is orthogonal, or by YaRN a multiple of that, so its adjoint is the rotation back:

    delta y_i = W_o delta o_i + (delta W_o) o_i + delta b_o
    delta o_i = sum_j r_ij (p_ij delta v_j + p_ij (delta s_ij - sum_m p_im delta s_im) v_j)
    delta q_i = R_i delta q'_i        delta (q', k', v)_i = W_qkv delta n_i + (delta W_qkv) n_i + delta b_qkv

The factor of each perturbation, with c_i = do_i . o_i, which is sum_j r_ij p_ij do_i . v_j, by head:

    do_i = W_o^T dy_i                 dW_o = sum_i dy_i o_i^T             (*b, T, N D), (d, N D)
    dv_j = sum_i r_ij p_ij do_i       ds_ij = p_ij (r_ij do_i . v_j - c_i)
    du_ij = ds_ij (1 - (s_ij / t)^2), or ds_ij
    dq_i = sum_j du_ij k_j / sqrt(D)  dk_j = sum_i du_ij q_i / sqrt(D)
    dz_i = (R_i^T dq_i, R_i^T dk_i, dv_i)                                 (*b, T, (N + 2 K) D)
    dW_qkv = sum_i dz_i n_i^T         dn_i = W_qkv^T dz_i                 ((N + 2 K) D, d), (*b, T, d)
    dx_i = r_i (g_i - mean g_i - xhat_i mean(g_i xhat_i)),   g = gamma dn (*b, T, d)      no mean g: RMS norm

Cached: x, two numbers for each of its rows (one for the RMS norm), q, k and v as they met, o, m and S: the least from
which no product of matrices is made a second time. What is cheap is made again: n is x shifted and scaled, p_ij an
exponential of a product that ds needs anyway. q' and k' are not needed: the cotangents are turned back.

Numerical care: s, p and the sums over j in float32 at least, block by block with a running maximum, so that no
exponential overflows. m and S are kept as two numbers: p made of m + log S, rounded, is off by |m| rounding errors from
the p that o is the sum of, which c relies on. With dropout all three are made again, since r v is rounded in o.

By kernels (`implementation`, as in `blockwise_attention`) o alone is kept of the softmax: m, S and c are made again.
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive, require_positive_or_none, require_size
from bpref.dtypes import cast
from bpref.formulas.affine import closed, lecun_uniform, plus, times, times_transposed, total, unmade
from bpref.formulas.attention.attend import Kept, attend, pull_attend
from bpref.formulas.attention.attention_grid import Extras, Pattern, Window, require_window
from bpref.formulas.attention.heads import Heads, by_position, features_of_head, require_kv_heads
from bpref.formulas.attention.memory import attend_on, no_memory, reach
from bpref.formulas.attention.rotations import After, Stretch, frequencies, magnitude, require_rope, rotate
from bpref.formulas.attention.sequences import MaskedSequence, alone, as_given, masked
from bpref.formulas.attention.softmax_attention import XLA, AttentionParams
from bpref.formulas.decoder import decoder
from bpref.formulas.norm.pre_norm import (
    NormParams,
    Statistics,
    init_norm,
    normalize,
    pull_normalize,
    require_norm,
    statistics,
)
from bpref.formulas.random_draws import KEY, require_key, require_rate
from bpref.kernels.attention import forms
from bpref.layer import Held, Layer, Reals
from bpref.naive.attention import naive_attention
from bpref.naive.dense import naive_affine, naive_norm
from bpref.naive.rotation import naive_rotation
from bpref.rule import Case, Interval, Key, Real, Rule, Size, called_as, specs


class AttentionBlockParams(NamedTuple):
    norm: NormParams | None
    W_qkv: Float[Array, "(N+2*K)*D d"]
    b_qkv: Float[Array, " (N+2*K)*D"] | None
    W_o: Float[Array, "d N*D"]
    b_o: Float[Array, " d"] | None
    key: Array | None = None


class AttentionBlockCache(NamedTuple):
    x: Float[Array, "*b T d"] | MaskedSequence
    of_x: Statistics | None
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b T K D"]
    v: Float[Array, "*b T K D"]
    o: Float[Array, "*b T N D"]
    m: Float[Array, "*b T N"] | None
    S: Float[Array, "*b T N"] | None
    key: Array | None = None


def attention_block(
    heads: int,
    kv_heads: int | None = None,
    norm: str = "rms",
    rope: float | None = 10000.0,
    causal: bool = True,
    window: Window | None = None,
    bias: bool | str = False,
    eps: float = 1e-6,
    block: int = 128,
    stretch: Stretch | None = None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
    head_dim: int | None = None,
    implementation: str = "auto",
) -> Layer[AttentionBlockParams, Array | MaskedSequence, Reals, AttentionBlockCache]:
    """y = W_o attention(RoPE(norm(x) W_qkv)) of a sequence to itself; `residual` of it is half a transformer block.

    Args:
      heads: the number N of heads of queries, which divides the number of features d.
      kv_heads: the number K of heads of keys and values, which divides N; N where left out (1: multi-query attention).
      norm: "rms" or "layer".
      rope: the base of the rotations' wavelengths, in positions; None for no rotation, where x knows its positions.
      causal: whether a position sees no later ones.
      window: how many positions back a position sees, itself among them (and as many ahead unless causal), or a pair
        (left, right): how many of each side beside itself; None: all.
      bias: whether there are a b_qkv and a b_o; "qkv": the former alone, as in Qwen 2.
      eps: what is added to the mean square or variance, in units of x squared.
      block: how many positions are worked on at once; no array has more than `block` squared of them.
      stretch: how the rotations are made to reach further, as in `rotary_embedding`.
      soft_cap: t, the size that no logit of the attention reaches (Gemma 2: 50).
      dropout: the share of the softmax's weights that are dropped, those that stay being divided by 1 - dropout.
      head_dim: the features D of a head; d / N where left out.
      implementation: "xla", "pallas" or "auto", as in `blockwise_attention`; without dropout there is "pallas".

    Returns:
      A layer with params `AttentionBlockParams(norm: (scale: (d,), shift: (d,) or None), W_qkv: ((N + 2 K) D, d),
      b_qkv, W_o: (d, N D), b_o, key: a PRNG key, with dropout)`, x `(*b, T, d)` or `MaskedSequence(x, mask, segments,
      bias)`, and y `(*b, T, d)`. Both W are drawn uniformly with variance 1 over the number of their inputs; scale is
      ones, and shift and b are zeros at first. A position that sees nothing has y = b_o.

    Raises:
      ValueError: an argument is out of its range; x has no sequence, no position or no features; heads do not divide
        the features, or leave an odd number for RoPE; x has other features than W_qkv.
      TypeError: x is not floating-point, or it or a parameter is not of W_qkv's dtype.
    """
    require_flags("attention_block", causal=causal)
    own = heads, kv_heads, norm, rope, causal, window, bias, eps, block, stretch, soft_cap, dropout
    return attention_layer("attention_block", *own, head_dim=head_dim, implementation=implementation)


def attention_layer(
    who: str,
    heads: int,
    kv_heads: int | None,
    norm: str | None,
    rope: float | None,
    causal: bool,
    window: Window | None,
    bias: bool | str,
    eps: float,
    block: int,
    stretch: Stretch | None,
    soft_cap: float | None = None,
    dropout: float = 0.0,
    keyed: bool = False,
    head_dim: int | None = None,
    implementation: str = "auto",
) -> Layer:
    """The layer that error messages call `who`; `keyed` where its params have a key though nothing is dropped.

    Without a `norm` its params have None in its place, and n is x.
    """
    heads, K = require_kv_heads(who, heads, kv_heads)
    block = require_size(who, "block", block)
    head_dim = None if head_dim is None else require_size(who, "head_dim", head_dim)
    if norm is not None:
        require_norm(who, norm)
    if not (isinstance(bias, str) and bias == "qkv") and not isinstance(bias, bool | np.bool_):
        raise ValueError(f"{who}: bias is {bias!r}, expected True, False or 'qkv'")
    eps = require_positive(who, "eps", eps)
    rope, stretch = require_rope(who, rope, stretch)
    soft_cap = require_positive_or_none(who, "soft_cap", soft_cap)
    window = require_window(who, window)
    dropout = require_rate(who, dropout, "dropout")
    form_of = forms(who, implementation, (block, block), {"dropout": dropout})

    def pattern(q):
        return Pattern(q.shape[-1] ** -0.5, causal, window, soft_cap, dropout, block, block)

    def features(x):
        """D, of a head."""
        D = features_of_head(who, x, heads, head_dim)
        if rope is not None and D % 2:
            raise ValueError(f"{who}: x has {x.shape[-1]} features, {D} for each of {heads} heads; RoPE turns pairs")
        return D

    def split(z):
        """q, k and v by heads, of what W_qkv makes."""
        D = z.shape[-1] // (heads + 2 * K)
        by_head = z.reshape(*z.shape[:-1], heads + 2 * K, D)
        bounds = (0, heads, heads + K, heads + 2 * K)
        return [lax.slice_in_dim(by_head, a, b, axis=-2) for a, b in pairwise(bounds)]

    def turned(x, way, after=None):
        if rope is None:
            return x
        return rotate(x, frequencies(x.shape[-1], rope, stretch), way, magnitude(stretch), after=after)

    def meeting(params, x, of_x, after=None):
        """q, k and v as they meet."""
        n = normalize(params.norm, x, of_x)
        q, k, v = split(cast(plus(times_transposed(n, params.W_qkv), params.b_qkv), x.dtype))
        return Heads(turned(q, 1, after), turned(k, 1, after), v)

    def put_out(params, o):
        return cast(plus(times_transposed(by_position(o), params.W_o), params.b_o), o.dtype)

    def init(key, x):
        x = alone(x)
        d, D = x.shape[-1], features(x)
        of_qkv, of_o = jax.random.split(key)
        rows = (heads + 2 * K) * D
        return AttentionBlockParams(
            None if norm is None else init_norm(norm, d, x.dtype),
            lecun_uniform(of_qkv, (rows, d), d, x.dtype),
            jnp.zeros(rows, x.dtype) if bias else None,
            lecun_uniform(of_o, (d, heads * D), heads * D, x.dtype),
            jnp.zeros(d, x.dtype) if bias and bias != "qkv" else None,
            jax.random.split(key, 3)[2] if dropout or keyed else None,
        )

    def forward(params, x: Float[Array, "*b T>0 d>0"] | MaskedSequence):
        if dropout:
            require_key(who, params.key)
        of_x = statistics(norm, alone(x), eps)
        met = masked(who, x, *meeting(params, alone(x), of_x)[:3], params.key)
        form, of = form_of(met), (pattern(met.q), met, Extras())
        o, m, S = attend(*of) if form is XLA else (form.attend(*of), None, None)
        return put_out(params, o), AttentionBlockCache(x, of_x, *met[:3], o, m, S, params.key)

    def opened(params, cache, dy):
        given, of_x, q, k, v, o, m, S, key = cache
        x = alone(given)
        do = cast(times(dy, params.W_o), dy.dtype).reshape(o.shape)
        of = pattern(q), masked(who, given, q, k, v, key), Extras(), do
        if m is None or S is None:
            dq, dk, dv, dbias, _ = form_of(of[1]).pull_attend(*of)
        else:
            dq, dk, dv, dbias, _ = pull_attend(*of, None if dropout else Kept(o, m, S))
        dz = by_position(jnp.concatenate([turned(dq, -1), turned(dk, -1), dv], -2))
        dW_qkv, dW_o = unmade(dz, normalize(params.norm, x, of_x)), unmade(dy, by_position(o))
        dnorm, dx = pull_normalize(params.norm, x, of_x, times(dz, params.W_qkv))
        db_qkv, db_o = total(dz, params.b_qkv), total(dy, params.b_o)
        return AttentionBlockParams(dnorm, dW_qkv, db_qkv, dW_o, db_o), as_given(given, cast(dx, x.dtype), dbias)

    def decoding(leaf, length):
        W = reach(who, causal, window, length)

        def start(params, x):
            if isinstance(x, MaskedSequence):
                raise TypeError(f"{who}: x is MaskedSequence, expected an array: decoding is of one sequence to itself")
            kv = jax.ShapeDtypeStruct((*x.shape[:-1], K, features(x)), x.dtype)
            return no_memory(W, kv, kv)

        def step(params, x, memory):
            new = meeting(params, x, statistics(norm, x, eps), After(memory.n, length))
            o, memory = attend_on(pattern(new.q), new, Extras(), memory, length)
            return put_out(params, o), memory

        return decoder(leaf, start, step)

    if dropout:
        own = heads, K, norm, rope, causal, window, bias, eps, block, stretch, soft_cap
        without = attention_layer(who, *own, keyed=True, head_dim=head_dim, implementation=implementation)
        return Layer(init, forward, closed(opened), who, held=KEY, evaluating=without, opened=opened)
    held = Held(("key",)) if keyed else None
    return Layer(init, forward, closed(opened), who, held=held, decoding=decoding, opened=opened)


@called_as(attention_block)
def reference(
    params: AttentionBlockParams, x: Array | MaskedSequence, heads, kv_heads, norm, rope, eps, stretch, head_dim, **of
) -> Array:
    x, mask, ids, bias = x if isinstance(x, MaskedSequence) else MaskedSequence(x)
    K = heads if kv_heads is None else kv_heads
    D = x.shape[-1] // heads if head_dim is None else head_dim

    n = x if params.norm is None else naive_norm(x, *params.norm, eps, norm)
    z = naive_affine(params.W_qkv, params.b_qkv, n).reshape(*x.shape[:-1], heads + 2 * K, D)
    q, k, v = jnp.split(z, (heads, heads + K), -2)
    if rope is not None:
        q, k = (naive_rotation(u, rope, False, 1.0, stretch) for u in (q, k))
    o = naive_attention(AttentionParams(), Heads(q, k, v, mask, bias, ids, key=params.key), **of)
    return naive_affine(params.W_o, params.b_o, o.reshape(*x.shape[:-1], heads * D))


_EPS = Interval(1e-6, 0.1, 1e-6)
_W = Real("m d", -1, 1), None, Real("d d", -1, 1), None
PARAMS = specs(AttentionBlockParams, specs(NormParams, Real("d"), None), *_W, Key())

RULE = Rule(
    "attention_block",
    attention_block,
    reference,
    cases=(
        Case(
            "grouped queries, a window",
            Real("T d"),
            {"heads": 4, "kv_heads": 2, "window": Size("w"), "eps": _EPS, "block": Size("P")}
            | {"stretch": Stretch("yarn", 4.0, 16)},
            never_empty=("T",),
            fixed={"d": 8, "w": 7, "P": 5},
            timed={"T": 512, "d": 256, "w": 256, "P": 128},
        ),
        Case(
            "layer norm, seen from both sides, a soft cap",
            Real("B T d"),
            {"heads": 2, "head_dim": 3, "norm": "layer", "rope": None, "causal": False, "bias": "qkv", "eps": _EPS}
            | {"block": 16, "soft_cap": Interval(1.0, 8.0, 2.0)},
            never_empty=("T",),
            fixed={"d": 8},
        ),
        Case(
            "dropout of the weights, a bias",
            specs(MaskedSequence, Real("B T d"), bias=Real("B u T T", -2.0, 2.0)),
            {"heads": 2, "kv_heads": 1, "dropout": 0.25, "eps": _EPS, "block": 4},
            params=PARAMS,
            fixed={"B": 2, "d": 8, "m": 16, "u": 1},
            least={"T": 2},
        ),
        Case(
            "a kernel",
            Real("T d"),
            {"heads": 2, "kv_heads": 1, "window": 4, "eps": _EPS, "block": 4, "implementation": "pallas"},
            never_empty=("T",),
            fixed={"d": 8},
        ),
    ),
    cite="arXiv:1706.03762, section 3.2; pre-norm: arXiv:2002.04745; grouped queries: arXiv:2305.13245; "
    "RoPE: arXiv:2104.09864; by blocks: arXiv:2205.14135; soft cap: arXiv:2408.00118",
    covers=("self_attention_block",),
)
