"""transformer_block: h = x + W_o attention(RoPE(norm(x) W_qkv)), y = h + W_out act(norm(h) W_in), pre-norm.

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
second one's x.

Numerical care: that of the two halves. h is rounded to x's dtype, as the sum that it is.
"""

from typing import NamedTuple

import jax
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.formulas.affine import closed
from bpref.formulas.attention_grid import Window
from bpref.formulas.decoder import decoder, decoder_of
from bpref.formulas.pre_norm import Statistics
from bpref.formulas.random_draws import KEY
from bpref.formulas.rotations import Stretch
from bpref.layer import Held, Layer, Reals, With, begin
from bpref.rule import Case, Interval, Real, Rule, Size, called_as
from bpref.rules.block import attention_block, mlp_block
from bpref.rules.block.attention_block import AttentionBlockCache, AttentionBlockParams, attention_layer
from bpref.rules.block.mlp_block import MlpBlockCache, MlpBlockParams, mlp_layer


class TransformerBlockParams(NamedTuple):
    attention: AttentionBlockParams
    mlp: MlpBlockParams
    key: Array | None = None


class TransformerBlockCache(NamedTuple):
    x: Float[Array, "*b T d"]
    of_x: Statistics
    q: Float[Array, "*b T N D"]
    k: Float[Array, "*b T K D"]
    v: Float[Array, "*b T K D"]
    o: Float[Array, "*b T N D"]
    m: Float[Array, "*b T N"]
    S: Float[Array, "*b T N"]
    key: Array
    h: Float[Array, "*b T d"]
    of_h: Statistics
    z: Float[Array, "*b T m"]


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
) -> Layer[TransformerBlockParams, Array, Reals, TransformerBlockCache]:
    """A pre-norm transformer block; as it is called, a block of LLaMA or Mistral.

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
      soft_cap: the size that no logit of the attention reaches, as in `attention_block`.
      dropout: the share of the attention's weights that are dropped, as there.
      head_dim: the features D of a head, as there.

    Returns:
      A layer with params `TransformerBlockParams(attention: AttentionBlockParams, mlp: MlpBlockParams, key: a PRNG key
      with dropout)`, x `(*b, T, d)` and y of x's shape. It is
      `serial(residual(attention_block(...)), residual(mlp_block(...)))`, its cache flat.

    Raises:
      ValueError: an argument is out of its range; x has no sequence, no position or no features; heads do not divide
        the features, or leave an odd number for RoPE; x has other features than W_qkv.
      TypeError: x is not floating-point, or it or a parameter is not of W_qkv's dtype.
    """
    who = "transformer_block"
    require_flags(who, gated=gated, causal=causal)
    own = heads, kv_heads, norm, rope, causal, window, bias, eps, block, stretch, soft_cap
    attention = attention_layer(who, *own, dropout, head_dim=head_dim)
    mlp = mlp_layer(who, hidden, activation, gated, norm, bool(bias) and bias != "qkv", eps)
    layer = _block(who, attention, mlp, attention)
    if not dropout:
        return layer
    without = _block(
        who,
        attention_layer(who, *own, keyed=True, head_dim=head_dim),
        mlp,
        attention_layer(who, *own, head_dim=head_dim),
    )
    return layer._replace(held=KEY, evaluating=without._replace(held=Held(("key",))), decoding=None)


def _block(who: str, attention: Layer, mlp: Layer, decoded: Layer) -> Layer:
    """The two halves, a key of the first's as the block's own; `decoded` is the first without a key."""

    def init(key, x):
        of_attention, of_mlp = jax.random.split(key)
        drawn = attention.init(of_attention, x)
        return TransformerBlockParams(drawn._replace(key=None), mlp.init(of_mlp, x), drawn.key)

    def of_half(params):
        return params.attention._replace(key=params.key)

    def forward(params, x):
        f, of_attention = attention.forward(of_half(params), x)
        h = lax.add(x, f)
        m, of_mlp = mlp.forward(params.mlp, h)
        return lax.add(h, m), TransformerBlockCache(*of_attention, *of_mlp)

    def opened(params, cache, dy):
        of_attention, of_mlp = AttentionBlockCache(*cache[:9]), MlpBlockCache(*cache[9:])
        assert mlp.opened is not None
        assert attention.opened is not None
        dmlp, dh = mlp.opened(params.mlp, of_mlp, dy)
        dh = lax.add(dy, dh)
        dattention, dx = attention.opened(of_half(params), of_attention, dh)
        return TransformerBlockParams(dattention, dmlp), lax.add(dh, dx)

    def decoding(leaf, length):
        onwards = decoder_of(decoded, length)

        def start(params, x):
            return begin(onwards, jax.random.key(0), x)[1]

        def step(params, x, memory):
            (f, memory), _ = onwards.forward(params.attention, With(x, memory))
            h = lax.add(x, f)
            return lax.add(h, mlp.forward(params.mlp, h)[0]), memory

        return decoder(leaf, start, step)

    return Layer(init, forward, closed(opened), who, decoding=decoding, opened=opened)


@called_as(transformer_block)
def reference(params: TransformerBlockParams, x: Array, hidden, activation, gated, norm, bias, eps, **own) -> Array:
    attention = params.attention._replace(key=params.key)
    h = x + attention_block.reference(attention, x, norm=norm, bias=bias, eps=eps, **own)
    return h + mlp_block.reference(params.mlp, h, hidden, activation, gated, norm, bool(bias) and bias != "qkv", eps)


_EPS = Interval(1e-6, 0.1, 1e-6)

RULE = Rule(
    "transformer_block",
    transformer_block,
    reference,
    cases=(
        Case(
            "swiglu, grouped queries",
            Real("T d"),
            {
                "heads": 4,
                "hidden": Size("F"),
                "kv_heads": 2,
                "eps": _EPS,
                "block": Size("P"),
                "stretch": Stretch("linear", 4.0),
            },
            never_empty=("T",),
            fixed={"d": 8, "F": 6, "P": 5},
            timed={"T": 512, "d": 256, "F": 512, "P": 128},
        ),
        Case(
            "gelu, layer norm, a window on both sides, a soft cap",
            Real("B T d"),
            {
                "heads": 2,
                "hidden": 12,
                "activation": "gelu",
                "head_dim": 3,
                "gated": False,
                "norm": "layer",
                "rope": None,
                "causal": False,
                "window": (4, 2),
                "bias": True,
                "eps": _EPS,
                "block": 16,
                "soft_cap": 2.0,
            },
            never_empty=("T",),
            fixed={"d": 8},
        ),
    ),
    cite="arXiv:1706.03762; pre-norm: arXiv:2002.04745, figure 1(b); as in arXiv:2302.13971, section 2.2",
    covers=("llama block", "decoder layer", "encoder layer"),
)
