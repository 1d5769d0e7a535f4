"""transformer_block: h = x + W_o attention(RoPE(norm(x) W_qkv)), y = h + W_out act(norm(h) W_in), pre- or post-norm.

Forward, with f the attention half (see `attention_block`) and m the half that mixes no positions (see `mlp_block`),
x of shape (*b, T, d), N heads of queries and K of keys and values with D features each, F hidden features:

    n = norm(x)        q, k, v = RoPE(n W_qkv)      o = softmax(q k^T / sqrt(D)) v       n, o: (*b, T, d)
    h = x + o W_o                                                         (*b, T, d)
    n' = norm'(h)      z = n' W_in                  a = act(z)            z: (*b, T, 2 F or F)
    y = h + a W_out                                                       (*b, T, d)

Differential:

    delta y = delta h + m's delta of (its params, h)        delta h = delta x + f's delta of (its params, x)

h and x each act twice, so their cotangents are sums of two, one of which is the cotangent of the sum itself:

    dh = dy + m's backward of dy                                          (*b, T, d)
    dx = dh + f's backward of dh                                          (*b, T, d)

and the params' cotangents are what those two backwards give beside.

With `post_norm` the halves read x and h as they are, n = x and n' = h, and the norms stand behind the sums:

    u = x + o W_o           h = norm(u)           w = h + a W_out         y = norm'(w)
    dh = dw + m's backward of dw,   dx = du + f's backward of du;   dw, du: of dy, dh as the norms have it

Cached: of everything above, the least from which no product of matrices is made a second time. A product needs its
two operands for its adjoints, and one of them is a parameter; so it is asked of each product what its other operand is
made of without a product:

    product            needs      made again of                   kept
    n W_qkv            n          x and its rows' statistics      x, r (and mu)
    q k^T and p v      q, k, v    themselves                      q, k, v as they met, rotated
                       p          q, k and the softmax's m and S  m, S, two numbers for each position and head
    o W_o              o          itself                          o
    n' W_in            n'         h and its rows' statistics      h, r' (and mu')
    a W_out            a          z                               z

Features kept for each position where D = d / N: x, o and h are 3 d, q, k and v (1 + 2 K / N) d, z 2 F or F. y is no
part of it: in a stack of blocks it is the next one's x. The halves alone would keep exactly this as well, h as the
second one's x. With `post_norm` u, w and x are kept, and h is made again of u: d more. With `mlp_tile` z is not.

Numerical care: that of the two halves. h is rounded to x's dtype, as the sum that it is.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
from jax import Array, lax
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast
from bpref.formulas.affine import closed
from bpref.formulas.attention.attention_grid import Window
from bpref.formulas.attention.rotations import Stretch
from bpref.formulas.attention.sequences import MaskedSequence, added, alone
from bpref.formulas.decoder import decoder, decoder_of
from bpref.formulas.norm.pre_norm import Statistics, init_norm, normalize, pull_normalize, require_norm, statistics
from bpref.formulas.random_draws import KEY, require_rate
from bpref.layer import Held, Layer, Reals, With, begin
from bpref.naive.dense import naive_norm
from bpref.rule import Boolean, Case, Integer, Interval, Key, Real, Rule, Size, called_as, specs
from bpref.rules.block import attention_block, mlp_block
from bpref.rules.block.attention_block import AttentionBlockCache, AttentionBlockParams, attention_layer
from bpref.rules.block.mlp_block import MlpBlockCache, MlpBlockParams, mlp_layer


class TransformerBlockParams(NamedTuple):
    attention: AttentionBlockParams
    mlp: MlpBlockParams
    key: Array | None = None


class TransformerBlockCache(NamedTuple):
    x: Float[Array, "*b T d"] | MaskedSequence
    of_x: Statistics
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b T K D"]
    v: Float[Array, "*b T K D"]
    o: Float[Array, "*b T N D"]
    m: Float[Array, "*b T N"] | None
    S: Float[Array, "*b T N"] | None
    key: Array
    h: Float[Array, "*b T d"]
    of_h: Statistics | None
    z: Float[Array, "*b T m"] | None


class PostNormBlockCache(NamedTuple):
    x: Float[Array, "*b T d"] | MaskedSequence
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b T K D"]
    v: Float[Array, "*b T K D"]
    o: Float[Array, "*b T N D"]
    m: Float[Array, "*b T N"] | None
    S: Float[Array, "*b T N"] | None
    key: Array
    u: Float[Array, "*b T d"]
    of_u: Statistics
    z: Float[Array, "*b T m"] | None
    w: Float[Array, "*b T d"]
    of_w: Statistics


def transformer_block(
    heads: int,
    hidden: int,
    kv_heads: int | None = None,
    activation: str = "silu",
    gated: bool = True,
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
    post_norm: bool = False,
    implementation: str = "auto",
    mlp_dropout: float = 0.0,
    mlp_tile: int | None = None,
) -> Layer[TransformerBlockParams, Array | MaskedSequence, Reals, TransformerBlockCache | PostNormBlockCache]:
    """A transformer block; as it is called, a block of LLaMA or Mistral.

    Args:
      heads: the number N of heads of queries, which divides the number of features d.
      hidden: the number F of hidden features of the MLP.
      kv_heads: the number K of heads of keys and values, which divides N; N where left out (1: multi-query attention).
      activation: the MLP's: "silu", "gelu" (tanh form), "gelu_erf", "relu", "sigmoid", "tanh" or "identity".
      gated: whether the activation gates the other half of 2 F features, as in SwiGLU.
      norm: "rms" or "layer".
      rope: the base of the rotations' wavelengths, in positions; None for no rotation, where x knows its positions.
      causal: whether a position sees no later ones.
      window: how many positions back a position sees, itself among them (and as many ahead unless causal), or a pair
        (left, right): how many of each side beside itself; None: all.
      bias: whether every product of matrices has a bias; "qkv": that of queries, keys and values alone, as in Qwen 2.
      eps: what is added to the mean squares or variances, in units of x squared.
      block: how many positions of the attention are worked on at once.
      stretch: how the rotations are made to reach further, as in `rotary_embedding`.
      soft_cap, dropout, head_dim, implementation: of the attention, as in `attention_block`.
      post_norm: whether the norms stand behind the sums, as in the first transformer and in BERT.
      mlp_dropout, mlp_tile: of the MLP, as `dropout` and `tile` of `mlp_block`; one key draws for both halves.

    Returns:
      A layer with params `TransformerBlockParams(attention: AttentionBlockParams, mlp: MlpBlockParams, key: a PRNG key
      with either dropout)`, x `(*b, T, d)` or `MaskedSequence(x, mask, segments, bias)`, and y `(*b, T, d)`. It is
      `serial(residual(attention_block(...)), residual(mlp_block(...)))`, its cache flat. With `post_norm` the norm of
      a half's params is that behind it.

    Raises:
      ValueError: an argument is out of its range; x has no sequence, no position or no features; heads do not divide
        the features, or leave an odd number for RoPE; x has other features than W_qkv.
      TypeError: x is not floating-point, or it or a parameter is not of W_qkv's dtype.
    """
    who = "transformer_block"
    require_flags(who, gated=gated, causal=causal, post_norm=post_norm)
    require_norm(who, norm)
    in_front = None if post_norm else norm
    own = heads, kv_heads, in_front, rope, causal, window, bias, eps, block, stretch, soft_cap
    attending = partial(attention_layer, who, *own, head_dim=head_dim, implementation=implementation)
    mlp_of = partial(mlp_layer, who, hidden, activation, gated, in_front, bool(bias) and bias != "qkv", eps)
    keyed = any([require_rate(who, dropout, "dropout"), require_rate(who, mlp_dropout, "mlp_dropout")])
    plain = attending(), mlp_of(tile=mlp_tile)
    made = partial(_post_norm_block, norm=norm, eps=float(eps)) if post_norm else _block
    layer = made(who, attending(dropout, keyed), mlp_of(mlp_dropout, keyed, mlp_tile), plain)
    if not keyed:
        return layer
    without = made(who, attending(keyed=True), mlp_of(keyed=True), plain)
    return layer._replace(held=KEY, evaluating=without._replace(held=Held(("key",))), decoding=None)


def _block(who: str, attention: Layer, mlp: Layer, plain: tuple) -> Layer:
    """The two halves, a key of the first's as the block's own; `plain` are both without a key."""

    def init(key, x):
        of_attention, of_mlp = jax.random.split(key)
        drawn = attention.init(of_attention, x)
        own = mlp.init(of_mlp, alone(x))._replace(key=None)
        return TransformerBlockParams(drawn._replace(key=None), own, drawn.key)

    def halves(params):
        return params.attention._replace(key=params.key), params.mlp._replace(key=params.key)

    def forward(params, x):
        to_attention, to_mlp = halves(params)
        f, of_attention = attention.forward(to_attention, x)
        h = lax.add(alone(x), f)
        m, of_mlp = mlp.forward(to_mlp, h)
        return lax.add(h, m), TransformerBlockCache(*of_attention, *of_mlp[:3])

    def opened(params, cache, dy, pull=mlp.opened):
        of_attention, of_mlp = AttentionBlockCache(*cache[:9]), MlpBlockCache(*cache[9:], key=cache.key)
        to_attention, to_mlp = halves(params)
        assert pull is not None
        assert attention.opened is not None
        dmlp, dh = pull(to_mlp, of_mlp, dy)
        dh = lax.add(dy, dh)
        dattention, dx = attention.opened(to_attention, of_attention, dh)
        return TransformerBlockParams(dattention, dmlp), added(dh, dx)

    def then(params, to_mlp, x, f):
        h = lax.add(x, f)
        return lax.add(h, plain[1].forward(to_mlp, h)[0])

    decoding, backward = partial(_decoding, plain[0], halves, then), closed(partial(opened, pull=mlp.backward))
    return Layer(init, forward, backward, who, decoding=decoding, opened=opened)


def _decoding(attention: Layer, halves: Callable, then: Callable, leaf: Layer, length: int) -> Layer:
    """The decoding of a block: `then` gives y, of x and of what the attention makes of it."""
    onwards = decoder_of(attention, length)

    def start(params, x):
        return begin(onwards, jax.random.key(0), x)[1]

    def step(params, x, memory):
        to_attention, to_mlp = halves(params._replace(key=None))
        (f, memory), _ = onwards.forward(to_attention, With(x, memory))
        return then(params, to_mlp, x, f), memory

    return decoder(leaf, start, step)


def _post_norm_block(who: str, attention: Layer, mlp: Layer, plain: tuple, norm: str, eps: float) -> Layer:
    """As `_block`, the norms behind the sums of the two halves, which have none."""

    def init(key, x):
        drawn = _block(who, attention, mlp, plain).init(key, x)
        of_norm = init_norm(norm, alone(x).shape[-1], alone(x).dtype)
        return drawn._replace(attention=drawn.attention._replace(norm=of_norm), mlp=drawn.mlp._replace(norm=of_norm))

    def halves(params):
        return params.attention._replace(norm=None, key=params.key), params.mlp._replace(norm=None, key=params.key)

    def forward(params, x):
        to_attention, to_mlp = halves(params)
        f, of_attention = attention.forward(to_attention, x)
        u = lax.add(alone(x), f)
        of_u = statistics(norm, u, eps)
        h = normalize(params.attention.norm, u, of_u)
        m, of_mlp = mlp.forward(to_mlp, h)
        w = lax.add(h, m)
        of_w = statistics(norm, w, eps)
        cache = PostNormBlockCache(x, *of_attention[2:], u=u, of_u=of_u, z=of_mlp.z, w=w, of_w=of_w)
        return normalize(params.mlp.norm, w, of_w), cache

    def opened(params, cache, dy, pull=mlp.opened):
        x, *met, u, of_u, z, w, of_w = cache
        to_attention, to_mlp = halves(params)
        assert pull is not None
        assert attention.opened is not None
        dnorm_of_w, dw = pull_normalize(params.mlp.norm, w, of_w, dy)
        dw = cast(dw, dy.dtype)
        of_mlp = MlpBlockCache(normalize(params.attention.norm, u, of_u), None, z, cache.key)
        dmlp, dh = pull(to_mlp, of_mlp, dw)
        dnorm_of_u, du = pull_normalize(params.attention.norm, u, of_u, lax.add(dw, dh))
        du = cast(du, dy.dtype)
        dattention, dx = attention.opened(to_attention, AttentionBlockCache(x, None, *met), du)
        dparams = dattention._replace(norm=dnorm_of_u), dmlp._replace(norm=dnorm_of_w)
        return TransformerBlockParams(*dparams), added(du, dx)

    def then(params, to_mlp, x, f):
        u = lax.add(x, f)
        h = normalize(params.attention.norm, u, statistics(norm, u, eps))
        w = lax.add(h, plain[1].forward(to_mlp, h)[0])
        return normalize(params.mlp.norm, w, statistics(norm, w, eps))

    decoding, backward = partial(_decoding, plain[0], halves, then), closed(partial(opened, pull=mlp.backward))
    return Layer(init, forward, backward, who, decoding=decoding, opened=opened)


@called_as(transformer_block)
def reference(
    params: TransformerBlockParams, x: PyTree, hidden, activation, gated, norm, bias, eps, post_norm, **own
) -> Array:
    sequence = x.x if isinstance(x, MaskedSequence) else x
    attention, mlp = params.attention._replace(key=params.key), params.mlp._replace(key=params.key)
    of_mlp = hidden, activation, gated, norm, bool(bias) and bias != "qkv", eps, own.pop("mlp_dropout")
    del own["mlp_tile"]
    if post_norm:
        assert attention.norm is not None
        assert mlp.norm is not None
        u = sequence + attention_block.reference(attention._replace(norm=None), x, norm=norm, bias=bias, eps=eps, **own)
        h = naive_norm(u, *attention.norm, eps, norm)
        w = h + mlp_block.reference(mlp._replace(norm=None), h, *of_mlp)
        return naive_norm(w, *mlp.norm, eps, norm)
    h = sequence + attention_block.reference(attention, x, norm=norm, bias=bias, eps=eps, **own)
    return h + mlp_block.reference(mlp, h, *of_mlp)


_EPS = Interval(1e-6, 0.1, 1e-6)
_OF_ATTENTION, _OF_MLP = (half.PARAMS._replace(key=None) for half in (attention_block, mlp_block))

RULE = Rule(
    "transformer_block",
    transformer_block,
    reference,
    cases=(
        Case(
            "swiglu, grouped queries",
            Real("T d"),
            {"heads": 4, "hidden": Size("F"), "kv_heads": 2, "eps": _EPS, "block": Size("P")}
            | {"stretch": Stretch("linear", 4.0)},
            never_empty=("T",),
            fixed={"d": 8, "F": 6, "P": 5},
            timed={"T": 512, "d": 256, "F": 512, "P": 128},
        ),
        Case(
            "gelu, layer norm, a window on both sides, a soft cap, tiles",
            Real("B T d"),
            {"heads": 2, "head_dim": 3, "hidden": 12, "activation": "gelu", "gated": False, "rope": None, "eps": _EPS}
            | {"norm": "layer", "causal": False, "window": (4, 2), "bias": True, "block": 16, "soft_cap": 2.0}
            | {"mlp_tile": 10},
            ("T",),
            fixed={"d": 8},
        ),
        Case(
            "post-norm, a mask, segments",
            specs(MaskedSequence, Real("B T d", -1.0, 1.0), Boolean("B u u T"), Integer("B T", 0, 2)),
            {"heads": 2, "hidden": Size("F"), "gated": False, "norm": "layer", "bias": True, "eps": _EPS, "block": 16}
            | {"post_norm": True, "rope": None},
            never_empty=("T",),
            fixed={"B": 2, "d": 8, "F": 6, "u": 1},
        ),
        Case(
            "dropout of both halves",
            Real("B T d"),
            {"heads": 2, "kv_heads": 1, "hidden": Size("F"), "gated": False, "dropout": 0.25, "mlp_dropout": 0.5},
            params=specs(TransformerBlockParams, _OF_ATTENTION, _OF_MLP, Key()),
            fixed={"B": 2, "d": 8, "m": 16, "F": 6},
            least={"T": 2},
        ),
        Case(
            "a kernel",
            Real("T d"),
            {"heads": 2, "hidden": 6, "eps": _EPS, "block": 4, "implementation": "pallas"},
            never_empty=("T",),
            fixed={"d": 8},
        ),
    ),
    cite="arXiv:1706.03762, section 3.1; pre-norm: arXiv:2002.04745, figure 1(b); as in arXiv:2302.13971, section 2.2",
    covers=("llama block", "decoder layer", "encoder layer"),
)
