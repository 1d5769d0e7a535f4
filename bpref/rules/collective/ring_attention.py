"""ring_attention: softmax attention to the keys of all devices, which go round: no device holds more than a block.

Forward, with P devices, of which device p holds the queries q_p (T, D), keys k_p (S, D) and values v_p (S, E) of its
part of the sequence. In turn r = 0, 1 ... P - 1 it has the block of device j = p - r (mod P), sent on by the one before
it, and goes on with the sums of `blockwise_attention`, for each of its queries:

    m' = max(m, max_s x_ts)       Z' = e^(m - m') Z + sum_s exp(x_ts - m')
    o' = e^(m - m') o + sum_s exp(x_ts - m') v_s
    y_t = o_t / Z_t             L_t = m_t + log Z_t, the log-sum-exp over the keys of all devices

`causal`, device p sees its own keys s <= t, all of those before it, j < p, and none of those behind it.

Differential: y is that of `dot_product_attention` on the joined sequence, so its backward is: each block of it needs q,
dy, L and D_t = dy_t . y_t of the queries, which stay, and k and v, which come by once more:

    p_ts  = exp(x_ts - L_t)            dx_ts = p_ts (dy_t . v_s - D_t)    one block of (T, S) at a time
    dq_t += scale sum_s dx_ts k_s                                         (T, D)    on the device of the query
    dk_s += scale sum_t dx_ts q_t      dv_s += sum_t p_ts dy_t            (S, D) and (S, E)    on that of the key

The last two are sums over all devices for one that holds the key: they go round with k and v, each device adding its
share to what has come by, and one more turn takes them home. So of what crosses, block by block to the next device,

    forward    k, v                P - 1 times
    backward   k, v                P - 1 times        dk, dv                P times

and it hides behind T S products each turn. Nothing of T x S is kept, nor anything of P blocks.

Cached: q, k and v, y, and m and Z, which together are L: two numbers of each query and head.

Numerical care: that of `blockwise_attention`. The sums are in at least float32 from the first block to the last, as are
dk and dv on their way, twice the bytes in half precision; exp(x - m) / Z has not the rounding of L. D_t is dy_t . y_t,
and not the sum of p_ts dy_t . v_s, which is known only when all blocks have gone round: where p is 1, dx is rounding.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from bpref.dtypes import cast
from bpref.formulas.attention.attend import Kept, Sums, kept_of, pull_wide, sums_over
from bpref.formulas.attention.attention_grid import Extras, Grid, Pattern
from bpref.formulas.attention.heads import Heads, require_heads
from bpref.formulas.attention.softmax_attention import AttentionParams, require_pattern
from bpref.layer import Layer, Reals, no_params
from bpref.loops import cond, scan
from bpref.naive.attention import naive_attention
from bpref.naive.blocks import apart, whole
from bpref.over_devices import SPLIT, axis_name, laid_out
from bpref.rule import Case, Real, Rule, Size, called_as, specs


class RingAttentionCache(NamedTuple):
    x: Heads
    kept: Kept


def ring_attention(
    axis: str | int,
    causal: bool = False,
    soft_cap: float | None = None,
    scale: float | None = None,
    query_block: int = 256,
    key_block: int = 256,
) -> Layer[tuple[()], Heads, Reals, RingAttentionCache]:
    """Each query's mean of the values of all devices, by the softmax of its dot products with their keys.

    Args:
      axis: the name of the axis of the mesh, for `jax.shard_map`; or a number P of blocks, all on one device.
      causal: whether a query sees the keys up to its own place alone, the devices' parts being in their order.
      soft_cap, scale, query_block, key_block: as in `blockwise_attention`, which is what a device does in a turn.

    Returns:
      A layer with params `()`, x `Heads(q: (*b, T, N, D), k: (*b, S, K, D), v: (*b, S, K, E))`, the device's blocks of
      T and S, and y `(*b, T, N, E)`, its block of T. With P blocks on one device, all have P in front.

      Causal, the first device has one block to attend to and the last P, and all wait for the last.

    Example:
      >>> layer = bpref.ring_attention(axis=2, causal=True)
      >>> q = jnp.ones((2, 1, 3, 4, 8))  # 2 devices, batch 1, 3 positions each, 4 heads
      >>> y, cache = layer.forward((), bpref.Heads(q, q, q))

    Raises:
      ValueError: a hyperparameter is out of its range; shapes do not fit; N is no multiple of K; T and S differ where
        it is causal; there is more in x than q, k and v.
      TypeError: x is no `Heads`, or not floating-point.
    """
    who = "ring_attention"
    name = axis_name(who, axis)
    given = Pattern(0.0 if scale is None else scale, causal, None, soft_cap, 0.0, query_block, key_block)
    pattern = require_pattern(who, given)

    def forward(params, x: Heads):
        _require(x)
        q, k, v = x[:3]
        own, other = _patterns(q)

        def met(pattern, k, v, before=None):
            return sums_over(Grid(pattern, Heads(q, k, v), Extras()), before)

        def turn(carry, r):
            sums, k, v = carry
            k, v = _passed_on((k, v))
            sums = cond(_is_seen(r), partial(met, other), lambda k, v, sums: sums, k, v, sums)
            return (sums, k, v), None

        sums: Sums = _turns(turn, (met(own, k, v), k, v))[0]
        kept = kept_of(Grid(own, x, Extras()), sums)
        return kept.y, RingAttentionCache(Heads(q, k, v), kept)

    def backward(params, cache, dy):
        (q, k, v, *_), kept = cache
        own, other = _patterns(q)

        def pulled(pattern, k, v):
            return pull_wide(pattern, Heads(q, k, v), Extras(), dy, kept)[:3]

        def unseen(k, v):
            return jax.tree.map(jnp.zeros_like, own_share)

        def turn(carry, r):
            k, v, dk, dv, dq = carry
            k, v, dk, dv = _passed_on((k, v, dk, dv))
            more = cond(_is_seen(r), partial(pulled, other), unseen, k, v)
            return (k, v, dk + more[1], dv + more[2], dq + more[0]), None

        own_share = pulled(own, k, v)
        *_, dk, dv, dq = _turns(turn, (k, v, own_share[1], own_share[2], own_share[0]))
        dk, dv = _passed_on((dk, dv))
        return (), Heads(*(cast(d, q.dtype) for d in (dq, dk, dv)))

    def _patterns(q):
        """Of the device's own block, and of another one."""
        own = pattern._replace(scale=q.shape[-1] ** -0.5) if scale is None else pattern
        return own, own._replace(causal=False)

    def _passed_on(blocks):
        P = lax.axis_size(name)
        return lax.ppermute(blocks, name, [(p, (p + 1) % P) for p in range(P)])

    def _turns(turn, start):
        return scan(turn, start, jnp.arange(1, lax.axis_size(name), dtype=jnp.int32))[0]

    def _is_seen(r):
        return lax.axis_index(name) >= r if causal else True

    def _require(x):
        other = [field for field, v in x._asdict().items() if v is not None and field not in "qkv"]
        if other:
            raise ValueError(f"{who}: {other[0]} is given, expected None: q, k and v go round")
        require_heads(who, x)
        T, S = x.q.shape[-3], x.k.shape[-3]
        if causal and T != S:
            raise ValueError(f"{who}: {T} queries and {S} keys on each device, expected as many where it is causal")

    return laid_out(Layer(no_params, forward, backward, who), axis, (), x=SPLIT, cache=SPLIT, y=SPLIT)


@called_as(ring_attention)
def reference(params: tuple[()], x: Heads, **hyper) -> Array:
    q, k, v = (whole(a, -3) for a in x[:3])
    return apart(naive_attention(AttentionParams(), Heads(q, k, v), **hyper), len(x.q), -3)


_QKV = (Real("P B T N D", -2, 2), Real("P B S K D", -2, 2), Real("P B S K E", -2, 2))
_CAUSAL = (Real("P B T N D", -2, 2), Real("P B T K D", -2, 2), Real("P B T K E", -2, 2))
_NEVER_EMPTY = ("T", "N", "D", "S", "K", "E")
_FIXED = {"P": 3, "N": 4, "K": 2}

RULE = Rule(
    "ring_attention",
    ring_attention,
    reference,
    cases=(
        Case(
            "causal",
            specs(Heads, *_CAUSAL),
            {"axis": Size("P"), "causal": True},
            _NEVER_EMPTY[:3] + _NEVER_EMPTY[4:],
            fixed=_FIXED,
            timed={"P": 3, "B": 1, "T": 128, "N": 4, "D": 64, "K": 2, "E": 64},
        ),
        Case(
            "soft cap, blocks",
            specs(Heads, *_QKV),
            {"axis": Size("P"), "soft_cap": 2.0, "scale": 0.4, "query_block": 5, "key_block": 2},
            _NEVER_EMPTY,
            fixed=_FIXED,
        ),
    ),
    cite="Liu et al., 'Ring attention with blockwise transformers', arXiv:2310.01889, algorithm 1",
    covers=("context parallel",),
)
