"""The layer of softmax attention, in one block or in many: `attend` with its parameters."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import is_integer, plain, require_finite, require_flags, require_positive_or_none
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.attention.attend import Cotangents, attend, attend_with_weights, pull_attend
from bpref.formulas.attention.attention_grid import Extras, Pattern, require_window
from bpref.formulas.attention.distances import buckets, slopes
from bpref.formulas.attention.heads import Heads, require_heads
from bpref.formulas.attention.memory import attend_on, no_memory, reach
from bpref.formulas.decoder import decoder
from bpref.formulas.random_draws import require_key, require_rate, with_key_in_x
from bpref.layer import Layer


class AttentionParams(NamedTuple):
    """`None` where not used: a logit for each head's sink, and T5's bias for each bucket of distances and head."""

    sinks: Float[Array, " N"] | None = None
    relative_bias: Float[Array, "buckets N"] | None = None


class Weighted(NamedTuple):
    """What attention puts out, and its weights: those of each head, or their mean over the heads."""

    y: Array
    weights: Float[Array, "*b N T S"] | Float[Array, "*b T S"]


class Forms(NamedTuple):
    """What computes both ways of the layer: the y of `attend`, and `pull_attend` of nothing kept but x."""

    attend: Callable[[Pattern, Heads, Extras], Array]
    pull_attend: Callable[[Pattern, Heads, Extras, Array], Cotangents]


XLA = Forms(lambda pattern, x, extras: attend(pattern, x, extras).y, pull_attend)


def require_pattern(who: str, pattern: Pattern) -> Pattern:
    """`pattern` as Python has its numbers; raise `ValueError` unless it can be meant."""
    require_flags(who, causal=pattern.causal)
    scale = require_finite(who, "scale", pattern.scale)
    dropout = require_rate(who, pattern.dropout, "dropout")
    window = require_window(who, pattern.window)
    for name, v in (("query_block", pattern.query_block), ("key_block", pattern.key_block)):
        if v is not None and (not is_integer(v) or v < 1):
            raise ValueError(f"{who}: {name} is {v!r}, expected an integer of at least 1")
    query_block, key_block = map(plain, (pattern.query_block, pattern.key_block))
    soft_cap = require_positive_or_none(who, "soft_cap", pattern.soft_cap)
    return Pattern(scale, pattern.causal, window, soft_cap, dropout, query_block, key_block)


def softmax_attention(
    who: str,
    pattern: Pattern,
    is_scaled: bool,
    alibi: bool,
    buckets_number: int | None,
    furthest: int,
    sinks: bool,
    forms: Callable[[Heads], Forms] = lambda x: XLA,
    weights: str | None = None,
) -> Layer:
    """The layer called `who`; with `is_scaled` the logits are divided by sqrt(D), else multiplied by pattern.scale.

    With `weights` its y is `Weighted`: those of each head, or their mean over the heads.
    """
    require_flags(who, alibi=alibi, sinks=sinks)
    pattern = require_pattern(who, pattern)
    least = 2 if pattern.causal else 4
    if buckets_number is not None and (
        not (is_integer(buckets_number) and is_integer(furthest))
        or buckets_number < least
        or buckets_number % (least // 2)
        or furthest <= buckets_number
    ):
        raise ValueError(
            f"{who}: relative_buckets is {buckets_number!r} and max_distance {furthest!r}, expected at least {least} "
            "buckets, an even number if there are some for each direction, and more distances than buckets"
        )
    buckets_number, furthest = plain(buckets_number), plain(furthest)

    def init(key, x):
        N, dtype = x.q.shape[-2], x.q.dtype
        return AttentionParams(
            jnp.zeros(N, dtype) if sinks else None,
            jnp.zeros((buckets_number, N), dtype) if buckets_number is not None else None,
        )

    def of(params: AttentionParams, x: Heads, W: int = 0) -> tuple[Pattern, Extras, np.ndarray | None]:
        """What `attend` is given; of W earlier keys that stand before those of x."""
        T, S, (N, D) = x.q.shape[-3], x.k.shape[-3], x.q.shape[-2:]
        distance = np.arange(1 - T - W, S)
        u, bucket = None, None
        if params.relative_bias is not None:
            bucket = buckets(distance, len(params.relative_bias), furthest, not pattern.causal)
            u = widen(params.relative_bias)[bucket].T
        if alibi:
            falling = jnp.asarray(-slopes(N)[:, None] * np.abs(distance), wide_dtype(x.q.dtype))
            u = falling if u is None else u + falling
        return pattern._replace(scale=D**-0.5) if is_scaled else pattern, Extras(params.sinks, u), bucket

    def forward(params, x: Heads):
        require_heads(who, x)
        if pattern.dropout:
            if x.key is None:
                raise ValueError(f"{who}: dropout is {pattern.dropout!r}, and x.key is None; expected a PRNG key")
            require_key(who, x.key)
        pattern_of_x, extras, _ = of(params, x)
        if weights is None:
            return forms(x).attend(pattern_of_x, x, extras), x
        y, w = attend_with_weights(pattern_of_x, x, extras)
        return Weighted(y, cast(jnp.mean(w, -3) if weights == "mean" else w, x.q.dtype)), x

    def backward(params, cache, dy):
        x = cache
        pattern_of_x, extras, bucket = of(params, x)
        if weights is None:
            d = forms(x).pull_attend(pattern_of_x, x, extras, dy)
        else:
            d = pull_attend(pattern_of_x, x, extras, *of_weighted(x, dy))
        dtable = None
        if params.relative_bias is not None and d.extras.u is not None:
            zeros = jnp.zeros(params.relative_bias.shape, d.extras.u.dtype)
            dtable = cast(zeros.at[jnp.asarray(bucket)].add(d.extras.u.T), params.relative_bias.dtype)
        dx = Heads(d.dq, d.dk, d.dv, bias=d.dbias)
        return AttentionParams(d.extras.sinks, dtable), dx

    def of_weighted(x, dy):
        """dy, nothing kept and no dL, and dw."""
        of_y, dw = dy
        if of_y is None:
            of_y = jnp.zeros((*x.q.shape[:-1], x.v.shape[-1]), x.q.dtype)
        if dw is not None and weights == "mean":
            dw = jnp.expand_dims(widen(dw) / x.q.shape[-2], -3)
        return of_y, None, None, dw

    def decoding(leaf, length):
        W = reach(who, pattern.causal, pattern.window, length)

        def step(params, x, memory):
            other = [name for name, v in x._asdict().items() if v is not None and name not in "qkv"]
            if other:
                raise ValueError(f"{who}: {other[0]} is given, expected None: earlier positions have none")
            require_heads(who, x)
            pattern_of_x, extras, _ = of(params, x, W)
            return attend_on(pattern_of_x, x, extras, memory, length)

        return decoder(leaf, lambda params, x: no_memory(W, x.k, x.v), step)

    layer = Layer(init, forward, backward, who, decoding=decoding if weights is None else None)
    if not pattern.dropout:
        return layer
    own = is_scaled, alibi, buckets_number, furthest, sinks, forms, weights
    without = softmax_attention(who, pattern._replace(dropout=0.0), *own)
    return with_key_in_x(layer, without, lambda x, held: x if x.key is not None else x._replace(**held))
