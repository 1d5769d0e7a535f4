"""reversible_block: y1 = x1 + attention(norm(x2)), y2 = x2 + mlp(norm(y1)), which can be run backwards from y.

Forward, with f the attention half of a transformer block (see `attention_block`) and g the half that mixes no positions
(see `mlp_block`), both of which norm what they are given, on two streams of features:

    y1 = x1 + f(x2)                                                       (*b, T, d)
    y2 = x2 + g(y1)                                                       (*b, T, d)

Neither sum loses anything: g(y1) can be made again from y1, and f(x2) then from x2, so that

    x2 = y2 - g(y1)
    x1 = y1 - f(x2)

Differential: delta y1 = delta x1 + delta f(x2) and delta y2 = delta x2 + delta g(y1). y1 acts twice, by itself and in
y2, and so does x2, in y2 and in y1. With g* and f* the adjoints of the halves at y1 and at x2,

    t   = dy1 + g*(dy2)               all that reaches y1                 (*b, T, d)
    dx1 = t                                                               (*b, T, d)
    dx2 = dy2 + f*(t)                                                     (*b, T, d)

and the cotangents of the params are what g*(dy2) and f*(t) give beside. The sweep goes backwards through the block in
both senses: g runs forward at y1, gives x2, and back; then f runs forward at x2, and back.

Cached: y1 and y2, and nothing else, for one more forward of both halves in the backward. This is where a stack ends:
what a block keeps is what the next block's sweep finds again as its x, so that a stack keeps the y of its last block
alone, however deep it is (`bpref.reversible`). That forward is a quarter to a half of autodiff's time for the whole at
512 steps of 256 features, and all that a block by itself is slower by; at 1,024 of 512 attention has won it back.

Numerical care: x2 is a difference, and comes back with the rounding of y2, half an ulp of the larger of the two, which
cancels where g(y1) is much larger than x2; `jax.vjp` keeps x2 itself. What comes back is what the gradient is taken at.
In half precision y is kept in float32 for that reason, as it was before it was rounded: from a y2 in bfloat16, x2 would
come back with two digits.
"""

from typing import NamedTuple

import jax
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.attention.attention_grid import Window
from bpref.formulas.attention.rotations import Stretch
from bpref.formulas.norm.pre_norm import NormParams
from bpref.layer import Layer, Reals
from bpref.rule import Case, Interval, Real, Rule, Size, called_as, specs
from bpref.rules.block import attention_block, mlp_block
from bpref.rules.block.attention_block import AttentionBlockParams, attention_layer
from bpref.rules.block.mlp_block import MlpBlockParams, mlp_layer


class Streams(NamedTuple):
    x1: Float[Array, "*n"]
    x2: Float[Array, "*n"]


class ReversibleBlockParams(NamedTuple):
    attention: AttentionBlockParams
    mlp: MlpBlockParams


class ReversibleBlockCache(NamedTuple):
    y1: Float[Array, "*b T d"]
    y2: Float[Array, "*b T d"]


def reversible_block(
    heads: int,
    hidden: int,
    kv_heads: int | None = None,
    activation: str = "silu",
    gated: bool = True,
    norm: str = "rms",
    rope: float | None = 10000.0,
    causal: bool = True,
    window: Window | None = None,
    bias: bool = False,
    eps: float = 1e-6,
    block: int = 128,
    stretch: Stretch | None = None,
) -> Layer[ReversibleBlockParams, tuple[Array, Array], tuple[Reals, Reals], ReversibleBlockCache]:
    """A transformer block on two streams whose input is found again from its output: y1 = x1 + f(x2), y2 = x2 + g(y1).

    Args:
      heads, hidden, kv_heads, activation, gated, norm, rope, causal, window, bias, eps, block, stretch:
        those of `transformer_block`.

    Returns:
      A layer with params `ReversibleBlockParams(attention: AttentionBlockParams, mlp: MlpBlockParams)`, x the pair
      `(x1, x2)` of shape `(*b, T, d)` each, and y the pair `(y1, y2)` of the same.

    Raises:
      ValueError: an argument is out of its range; x1 and x2 differ in shape; x2 has no sequence, no position or no
        features; heads do not divide the features, or leave an odd number for RoPE; x2 has other features than W_qkv.
      TypeError: x is no pair; x1 and x2 are not floating-point, or not of one dtype, or not of W_qkv's.
    """
    who = "reversible_block"
    require_flags(who, gated=gated, causal=causal, bias=bias)
    f = attention_layer(who, heads, kv_heads, norm, rope, causal, window, bias, eps, block, stretch)
    g = mlp_layer(who, hidden, activation, gated, norm, bias, eps)

    def init(key, x):
        x1, x2 = x
        of_f, of_g = jax.random.split(key)
        return ReversibleBlockParams(f.init(of_f, x2), g.init(of_g, x1))

    def forward(params, x: Streams):
        x1, x2 = x
        y1 = lax.add(widen(x1), widen(f.forward(params.attention, x2)[0]))
        y2 = lax.add(widen(x2), widen(g.forward(params.mlp, cast(y1, x1.dtype))[0]))
        return (cast(y1, x1.dtype), cast(y2, x2.dtype)), ReversibleBlockCache(y1, y2)

    def backward(params, cache, dy):
        dtype = jax.tree.leaves(dy)[0].dtype
        dy1, dy2 = with_zeros(dy, tuple(jax.ShapeDtypeStruct(y.shape, dtype) for y in cache))
        of_y1, of_g = g.forward(params.mlp, cast(cache.y1, dy1.dtype))
        x2 = cast(lax.sub(cache.y2, widen(of_y1)), dy2.dtype)
        dmlp, t = g.backward(params.mlp, of_g, dy2)
        t = lax.add(dy1, t)
        dattention, dx2 = f.backward(params.attention, f.forward(params.attention, x2)[1], t)
        return ReversibleBlockParams(dattention, dmlp), (t, lax.add(dy2, dx2))

    return Layer(init, forward, backward, who)


@called_as(reversible_block)
def reference(
    params: ReversibleBlockParams, x: tuple[Array, Array], hidden, activation, gated, norm, bias, eps, **own
) -> tuple[Array, Array]:
    x1, x2 = x
    y1 = x1 + attention_block.reference(params.attention, x2, norm=norm, bias=bias, eps=eps, **own)
    return y1, x2 + mlp_block.reference(params.mlp, y1, hidden, activation, gated, norm, bias, eps)


_EPS = Interval(1e-6, 0.1, 1e-6)
_V = Real("d", -2.0, 2.0)


def _weights(axes: str) -> Real:
    """As `init` draws them for 16 features: with weights of variance 1, x2 would be a small part of y2."""
    return Real(axes, -0.4, 0.4)


RULE = Rule(
    "reversible_block",
    reversible_block,
    reference,
    cases=(
        Case(
            "grouped queries",
            (Real("T d"), Real("T d")),
            {
                "heads": 4,
                "hidden": Size("F"),
                "kv_heads": 2,
                "eps": _EPS,
                "block": Size("P"),
                "stretch": Stretch("ntk", 4.0),
            },
            never_empty=("T",),
            params=ReversibleBlockParams(
                specs(AttentionBlockParams, specs(NormParams, _V, None), _weights("Q d"), None, _weights("d d"), None),
                specs(MlpBlockParams, specs(NormParams, _V, None), _weights("M d"), None, _weights("d F"), None),
            ),
            fixed={"d": 16, "Q": 32, "M": 12, "F": 6, "P": 5},
            least={"T": 2},
            timed={"T": 512, "d": 256, "Q": 512, "M": 1024, "F": 512, "P": 128},
        ),
        Case(
            "gelu, layer norm",
            (Real("B T d"), Real("B T d")),
            {
                "heads": 2,
                "hidden": 6,
                "activation": "gelu",
                "gated": False,
                "norm": "layer",
                "rope": None,
                "causal": False,
                "eps": _EPS,
                "block": 16,
            },
            never_empty=("T",),
            params=ReversibleBlockParams(
                specs(AttentionBlockParams, specs(NormParams, _V, _V), _weights("Q d"), None, _weights("d d"), None),
                specs(MlpBlockParams, specs(NormParams, _V, _V), _weights("F d"), None, _weights("d F"), None),
            ),
            fixed={"B": 2, "d": 16, "Q": 48, "F": 6},
            least={"T": 2},
        ),
    ),
    cite="arXiv:1707.04585, equations 6 and 7 and algorithm 1; of a transformer: arXiv:2001.04451, section 3",
    covers=("revnet", "reformer block"),
)
