"""decoder_block: a block of a decoder that looks into a memory: attention to itself, attention to it, and an MLP.

Forward, with f the attention of a sequence to itself (see `attention_block`), c that to the memory e (see
`multi_head_attention`) and m the half that mixes no positions (see `mlp_block`), all three without a norm, x of shape
(*b, T, d) and e of shape (*b, S, f):

    h = x + f(n),        n = norm(x)                                      (*b, T, d)
    g = h + c(n', e),    n' = norm'(h)                                    (*b, T, d)
    y = g + m(n''),      n'' = norm''(g)                                  (*b, T, d)

where c is, with N heads of queries and K of keys and values of D features each,

    q = W_q n'        k = W_k e        v = W_v e                          (*b, T, N D), (*b, S, K D) twice
    c = W_o o,        o = softmax(q k^T / sqrt(D)) v                      (*b, T, d)

Differential:

    delta y = delta g + m's delta of (its params, n'')
    delta g = delta h + c's delta of (its params, n', e)
    delta h = delta x + f's delta of (its params, n)

Each of g, h and x acts twice, so its cotangent is a sum of two, one of which is the cotangent of the sum itself; e acts
once, in c:

    dg = dy + norm'' back of m's dn'' of dy                               (*b, T, d)
    dh = dg + norm' back of c's dn' of dg         de: c's of dg           (*b, T, d), (*b, S, f)
    dx = dh + norm back of f's dn of dh                                   (*b, T, d)

and the params' cotangents are what those backwards give beside. Masks and the key have none.

With `post_norm` the parts read x, h and g as they are, and the norms stand behind the sums:

    u = x + f(x)              u' = h + c(h, e)            u'' = g + m(g)
    h = norm(u)               g = norm'(u')               y = norm''(u'')
    dg = du'' + m's dg of du'',   dh = du' + c's dh of du',   dx = du + f's dx of du;   each du as its norm has it

Cached: x, e, h, g and the statistics of their rows, from which n, n' and n'' are made again, and what the three parts
keep but for these: q, k, v and o of both attentions, of f the softmax's m and S too, and z of the MLP: the least from
which no product with a matrix of the parameters is made a second time. With `post_norm` u, u' and u'' stand for h and
g, which are made again of them.

Numerical care: that of the parts. h, g and the cotangents of n, n' and n'' are rounded to x's dtype. With dropout the
key draws for f and m, and another, made of it, for c: f and c would drop the same places else.
"""

from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import Bool, Float, PyTree

from bpref.checks.hyperparameters import require_flags, require_positive
from bpref.formulas.affine import closed
from bpref.formulas.attention.sequences import MaskedSequence, Sequences
from bpref.formulas.norm.pre_norm import NormParams, init_norm, require_norm
from bpref.formulas.norm.residual_part import Kept, Norms, Part
from bpref.formulas.random_draws import KEY, require_rate
from bpref.keys import another
from bpref.layer import Held, Layer, Reals
from bpref.naive.dense import naive_norm
from bpref.rule import Boolean, Case, Interval, Key, Real, Rule, Size, called_as, specs
from bpref.rules.attention import multi_head_attention
from bpref.rules.attention.multi_head_attention import MultiHeadAttentionParams
from bpref.rules.block import attention_block, mlp_block
from bpref.rules.block.attention_block import AttentionBlockParams, attention_layer
from bpref.rules.block.mlp_block import MlpBlockParams, mlp_layer


class SequenceAndMemory(NamedTuple):
    """The input of a block of a decoder.

    Attributes:
      x: the sequence.
      memory: that which it looks into, such as what an encoder has made.
      mask: which position may see which of x, with axes of size 1 where it is the same for all.
      memory_mask: which position may see which of the memory, likewise: `(*b, 1, 1, S)` for padding.
    """

    x: Float[Array, "*b T>0 d>0"]
    memory: Float[Array, "*b S>0 f>0"]
    mask: Bool[Array, "*#b #N #T #T"] | None = None
    memory_mask: Bool[Array, "*#b #N #T #S"] | None = None


class DecoderBlockParams(NamedTuple):
    attention: AttentionBlockParams
    cross: MultiHeadAttentionParams
    cross_norm: NormParams
    mlp: MlpBlockParams
    key: Array | None = None


class DecoderBlockCache(NamedTuple):
    """x and its memory, and what is kept of each part; with the norms in front the stream of the first is x."""

    x: SequenceAndMemory
    attention: Kept
    cross: Kept
    mlp: Kept


def decoder_block(
    heads: int,
    hidden: int,
    kv_heads: int | None = None,
    activation: str = "silu",
    gated: bool = True,
    norm: str = "rms",
    rope: float | None = 10000.0,
    causal: bool = True,
    bias: bool = False,
    eps: float = 1e-6,
    block: int = 128,
    dropout: float = 0.0,
    head_dim: int | None = None,
    post_norm: bool = False,
    mlp_dropout: float = 0.0,
) -> Layer[DecoderBlockParams, tuple[Array, Array], Reals, DecoderBlockCache]:
    """A block of the decoder of an encoder-decoder transformer, pre-norm or post-norm.

    Args:
      heads: the number N of heads of queries in both attentions, which divides the number of features d.
      hidden: the number F of hidden features of the MLP.
      kv_heads: the number K of heads of keys and values, which divides N; N where left out.
      activation, gated: the MLP's, as in `mlp_block`.
      norm: "rms" or "layer".
      rope: the base of the rotations in the attention of x to itself; None for none. The memory's keys are not turned.
      causal: whether a position of x sees no later ones of x.
      bias: whether every product of matrices has a bias, but for the keys of the memory, where it does nothing.
      eps: what is added to the mean squares or variances, in units of x squared.
      block: how many positions of either attention are worked on at once.
      dropout: the share of both attentions' weights that are dropped.
      head_dim: the features D of a head; d / N where left out.
      post_norm: whether the norms stand behind the sums, as in the first transformer.
      mlp_dropout: of the MLP's hidden features, as `dropout` of `mlp_block`.

    Returns:
      A layer with params `DecoderBlockParams(attention: AttentionBlockParams, cross: MultiHeadAttentionParams,
      cross_norm: (scale: (d,), shift: (d,) or None), mlp: MlpBlockParams, key: a PRNG key with either dropout)`, x
      `(x: (*b, T, d), memory: (*b, S, f))`, or with the masks of `SequenceAndMemory` behind them, and y `(*b, T, d)`.
      With `post_norm` the norm of a part's params is that behind it.

    Raises:
      ValueError: an argument is out of its range; a sequence has no position or no features; heads do not divide the
        features, or leave an odd number for RoPE; shapes do not fit.
      TypeError: x is no such tuple; a sequence is not floating-point, or it or a parameter is not of W_qkv's dtype.
    """
    who = "decoder_block"
    require_flags(who, gated=gated, causal=causal, bias=bias, post_norm=post_norm)
    require_norm(who, norm)
    eps = require_positive(who, "eps", eps)
    keyed = any([require_rate(who, dropout, "dropout"), require_rate(who, mlp_dropout, "mlp_dropout")])

    def made(dropout, mlp_dropout):
        own = heads, kv_heads, None, rope, causal, None, bias, eps, block, None, None
        projected = {"bias": bias, "dropout": dropout, "query_block": block, "key_block": block}
        parts = (
            attention_layer(who, *own, dropout, keyed, head_dim),
            multi_head_attention.multi_head_attention(heads, kv_heads, head_dim, **projected),
            mlp_layer(who, hidden, activation, gated, None, bias, eps, mlp_dropout, keyed),
        )
        return _block(who, parts, Norms(norm, eps, post_norm))

    layer = made(dropout, mlp_dropout)
    if not keyed:
        return layer
    return layer._replace(held=KEY, evaluating=made(0.0, 0.0)._replace(held=Held(("key",))))


def _block(who: str, layers: tuple[Layer, Layer, Layer], norms: Norms) -> Layer:
    """The three parts, which have no norms themselves, and their norms."""

    def init(key, x):
        x, memory = x[:2]
        inputs = zip(layers, jax.random.split(key, 3), (x, Sequences(x, memory), x), strict=True)
        attention, cross, mlp = (layer.init(k, of) for layer, k, of in inputs)
        of_norms = [init_norm(norms.norm, x.shape[-1], x.dtype) for _ in layers]
        drawn = attention._replace(norm=of_norms[0], key=None), cross, of_norms[1]
        return DecoderBlockParams(*drawn, mlp._replace(norm=of_norms[2], key=None), attention.key)

    def parts(params, x):
        attention, cross, of_cross, mlp, key = params
        own = attention._replace(norm=None, key=key), cross, mlp._replace(norm=None, key=key)
        puts = (
            lambda s: s if x.mask is None else MaskedSequence(s, x.mask),
            lambda s: Sequences(s, x.memory, x.memory_mask, key=None if key is None else another(key)),
            lambda s: s,
        )
        return [*map(Part, layers, own, (attention.norm, of_cross, mlp.norm), puts)]

    def forward(params, x: SequenceAndMemory):
        s, kept = x.x, []
        for part in parts(params, x):
            s, of = norms.forward(part, s)
            kept.append(of)
        if not norms.post_norm:
            kept[0] = kept[0]._replace(stream=None)
        return s, DecoderBlockCache(x, *kept)

    def opened(params, cache, dy):
        x, *kept = cache
        if not norms.post_norm:
            kept[0] = kept[0]._replace(stream=x.x)
        of_params = parts(params._replace(key=kept[0].own.key), x)
        attention, cross, mlp = zip(of_params, kept, norms.read(x.x, of_params, kept), strict=True)
        dmlp, of_mlp, dg, _ = norms.opened(*mlp, dy)
        dcross, of_cross, dh, given = norms.opened(*cross, dg)
        dattention, of_attention, dx, _ = norms.opened(*attention, dh)
        dparams = dattention._replace(norm=of_attention), dcross, of_cross, dmlp._replace(norm=of_mlp)
        return DecoderBlockParams(*dparams), SequenceAndMemory(dx, given.memory)

    return Layer(init, forward, closed(opened), who, opened=opened)


@called_as(decoder_block)
def reference(
    params: DecoderBlockParams,
    x: SequenceAndMemory,
    heads,
    hidden,
    kv_heads,
    activation,
    gated,
    norm,
    rope,
    causal,
    bias,
    eps,
    dropout,
    head_dim,
    post_norm,
    mlp_dropout,
    **_,
) -> Array:
    s, memory, mask, memory_mask = x
    attention, cross, cross_norm, mlp, key = params
    other = None if key is None else jax.random.fold_in(key, 1)
    of_both = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "dropout": dropout}

    def to_itself(n):
        own = attention._replace(norm=None, key=key)
        given = MaskedSequence(n, mask)
        return attention_block.reference(own, given, rope=rope, causal=causal, bias=bias, **of_both)

    def to_memory(n) -> PyTree:
        return multi_head_attention.reference(cross, Sequences(n, memory, memory_mask, key=other), **of_both)

    def mixed(n):
        own = mlp._replace(norm=None, key=key)
        return mlp_block.reference(own, n, hidden, activation, gated, bias=bias, dropout=mlp_dropout)

    for part, of_norm in ((to_itself, attention.norm), (to_memory, cross_norm), (mixed, mlp.norm)):
        assert of_norm is not None
        r = part(s) if post_norm else part(naive_norm(s, *of_norm, eps, norm))
        s = naive_norm(s + r, *of_norm, eps, norm) if post_norm else s + r
    return s


_EPS = Interval(1e-6, 0.1, 1e-6)
_NEVER_EMPTY = ("T", "S", "f")
_MASKS = Boolean("B u u T"), Boolean("B u u S")
_KV = Real("n f", -1, 1), Real("n f", -1, 1)

RULE = Rule(
    "decoder_block",
    decoder_block,
    reference,
    cases=(
        Case(
            "swiglu, grouped queries",
            specs(SequenceAndMemory, Real("T d"), Real("S f")),
            {"heads": 4, "hidden": Size("F"), "kv_heads": 2, "eps": _EPS, "block": Size("P")},
            _NEVER_EMPTY,
            fixed={"d": 8, "F": 6, "P": 5},
            timed={"T": 256, "S": 256, "d": 256, "f": 256, "F": 512, "P": 128},
        ),
        Case(
            "post-norm, gelu, layer norm, masks",
            specs(SequenceAndMemory, *(Real(f"B {s}", -1.0, 1.0) for s in ("T d", "S f")), *_MASKS),
            {"heads": 2, "hidden": 12, "activation": "gelu", "gated": False, "norm": "layer", "rope": None}
            | {"causal": False, "bias": True, "eps": _EPS, "block": 16, "post_norm": True},
            _NEVER_EMPTY,
            fixed={"B": 2, "d": 8, "u": 1},
        ),
        Case(
            "dropout of all three parts",
            specs(SequenceAndMemory, Real("B T d"), Real("B S f")),
            {"heads": 2, "kv_heads": 1, "hidden": Size("F"), "gated": False, "dropout": 0.25, "mlp_dropout": 0.5},
            params=specs(
                DecoderBlockParams,
                attention_block.PARAMS._replace(key=None),
                specs(MultiHeadAttentionParams, Real("d d", -1, 1), *_KV, Real("d d", -1, 1)),
                specs(NormParams, Real("d"), None),
                mlp_block.PARAMS._replace(key=None),
                Key(),
            ),
            fixed={"B": 2, "d": 8, "m": 16, "F": 6, "n": 4},
            least={"T": 2, "S": 2, "f": 1},
        ),
    ),
    cite="arXiv:1706.03762, section 3.1; pre-norm: arXiv:2002.04745, figure 1(b)",
    covers=("cross-attention block", "encoder-decoder block", "transformer decoder layer"),
)
