"""native_sparse_attention: what a query sees in summaries, in the blocks that suit it, and nearby, by three gates.

Forward, for each head of queries q (T, D), and three pairs of keys and values, each with heads of its own: M summaries,
such as the mean keys and values of blocks, and twice T keys and values. Attention means that of `blockwise_attention`,
with scale a, 1 / sqrt(D) if it is not given:

    o^1_t = attention of q_t to the summaries j whose l positions, from d j on, are all up to t        (T, E)
    o^2_t = that of q_t to its block of b keys and the best of the earlier, as `top_k_block_attention` (T, E)
    o^3_t = that of q_t to the keys of t - w + 1, ..., t                                               (T, E)
    y_t   = sum_i g_ti o^i_t                                                                           (T, E)

A query before the end of the first summary has o^1 = 0.

Differential; which blocks are the best has no derivative, as there:

    delta y_t = sum_i g_ti delta o^i_t + o^i_t delta g_ti

The factors of the perturbations, the rest being the three attentions' own:

    do^i_t = g_ti dy_t                    (T, E)          dg_ti = dy_t . o^i_t            (3,)
    dq     = sum_i dq^i                   (T, D)          dq^i: of the i-th attention's backward of do^i

Cached: x, which blocks were chosen, and the three o, without which dg would ask for all three attentions again.

Against the paper: a block's worth is q_t . (its mean key), of the keys that are selected from, and each head of queries
chooses for itself; there the summaries' softmax is summed over a block and over the heads that share keys. Where
summaries are the blocks' means and no heads share keys the choice is the same. No block is always chosen but a query's
own.

Numerical care: that of the three. Each o is rounded to q's dtype; the sums over i are at least float32. The mask of the
summaries, T M booleans, is made.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from bpref.checks.hyperparameters import require_finite, require_sizes
from bpref.dtypes import cast, widen
from bpref.formulas.attention.heads import Heads, require_groups
from bpref.formulas.attention.softmax_attention import AttentionParams
from bpref.layer import Layer, Reals, no_params
from bpref.naive.attention import naive_attention
from bpref.rule import Case, Real, Rule, called_as, specs
from bpref.rules.attention import top_k_block_attention as of_blocks
from bpref.rules.attention.blockwise_attention import blockwise_attention


class SparseHeads(NamedTuple):
    """The input: queries, keys and values of three kinds, and what each kind counts for.

    Attributes:
      q: queries.
      k_summary, v_summary: keys and values of the summaries.
      k_selected, v_selected: those of which blocks are selected.
      k_recent, v_recent: those of the window.
      gates: of each query and head, g of the three in this order, such as a sigmoid of what its features say.
    """

    q: Float[Array, "*b T N>0 D"]
    k_summary: Float[Array, "*b M K>0 D"]
    v_summary: Float[Array, "*b M K E"]
    k_selected: Float[Array, "*b T K D"]
    v_selected: Float[Array, "*b T K E"]
    k_recent: Float[Array, "*b T K D"]
    v_recent: Float[Array, "*b T K E"]
    gates: Float[Array, "*b T N 3"]

    by_name = True


class NativeSparseAttentionCache(NamedTuple):
    x: SparseHeads
    chosen: Int[Array, "M R k"]
    o: tuple[Float[Array, "*b T N E"], ...]


def native_sparse_attention(
    block: int = 64,
    k: int = 16,
    window: int = 512,
    length: int | None = None,
    stride: int | None = None,
    scale: float | None = None,
) -> Layer[tuple[()], SparseHeads, Reals, NativeSparseAttentionCache]:
    """The gated sum of attention to summaries, to the k blocks that suit a query best, and to a window.

    Args:
      block: b, the number of keys in a block of which it is chosen.
      k: how many blocks a query sees, its own among them.
      window: w, how many keys back a query sees in the window, its own among them.
      length: l, how many positions a summary is of; `block` where left out.
      stride: d, how far apart summaries begin; `length` where left out.
      scale: a, what the dot products are multiplied by.

    Returns:
      A layer with params `()`, x `SparseHeads(q: (*b, T, N, D), k_summary: (*b, M, K, D), v_summary: (*b, M, K, E),
      k_selected: (*b, T, K, D), ..., gates: (*b, T, N, 3))`, N a multiple of K, and y `(*b, T, N, E)`.

    Raises:
      ValueError: an argument is not positive, or `scale` not finite; shapes do not fit, or are empty.
      TypeError: x is no `SparseHeads`; its arrays are not floating-point numbers of one dtype.

    Example:
      >>> q, k, v = (jnp.ones((1, 12, n, 8)) for n in (4, 2, 2))
      >>> means = [u.reshape(1, 3, 4, 2, 8).mean(2) for u in (k, v)]
      >>> gates = jnp.full((1, 12, 4, 3), 0.5)
      >>> layer = bpref.native_sparse_attention(block=4, k=2, window=3)
      >>> layer.forward((), bpref.SparseHeads(q, *means, k, v, k, v, gates))[0].shape
      (1, 12, 4, 8)
    """
    who = "native_sparse_attention"
    length = block if length is None else length
    stride = length if stride is None else stride
    b, k, w, l, d = require_sizes(who, block=block, k=k, window=window, length=length, stride=stride)
    scale = None if scale is None else require_finite(who, "scale", scale)
    to_summaries = blockwise_attention(scale=scale)
    to_selected = of_blocks.top_k_block_attention(b, k, scale)
    to_recent = blockwise_attention(causal=True, window=w, scale=scale)

    def forward(params, x: SparseHeads):
        for name, keys in x._asdict().items():
            if 0 in keys.shape[-3:]:
                raise ValueError(f"{who}: {name} has shape {keys.shape}, expected none of its last three axes empty")
        summaries, selected, recent = heads_of(x)
        require_groups(who, selected)
        o1, _ = to_summaries.forward(AttentionParams(), summaries)
        o2, of_selected = to_selected.forward((), selected)
        o3, _ = to_recent.forward(AttentionParams(), recent)
        g1, g2, g3 = gates_of(x)
        y = g1 * widen(o1) + g2 * widen(o2) + g3 * widen(o3)
        return cast(y, x.q.dtype), NativeSparseAttentionCache(x, of_selected.chosen, (o1, o2, o3))

    def backward(params, cache, dy):
        x, chosen, o = cache
        summaries, selected, recent = heads_of(x)
        of_o = [cast(g * widen(dy), dy.dtype) for g in gates_of(x)]
        _, one = to_summaries.backward(AttentionParams(), summaries, of_o[0])
        _, two = to_selected.backward((), of_blocks.TopKBlockAttentionCache(selected, chosen), of_o[1])
        _, three = to_recent.backward(AttentionParams(), recent, of_o[2])
        dq = cast(widen(one.q) + widen(two.q) + widen(three.q), x.q.dtype)
        dgates = jnp.stack([jnp.sum(widen(dy) * widen(part), -1) for part in o], -1)
        return (), SparseHeads(dq, one.k, one.v, two.k, two.v, three.k, three.v, cast(dgates, x.gates.dtype))

    def heads_of(x):
        """What each of the three attentions is given."""
        t, j = jnp.arange(x.q.shape[-3]), jnp.arange(x.k_summary.shape[-3])
        is_whole = d * j[None, :] + l - 1 <= t[:, None]
        mask = is_whole.reshape((1,) * (x.q.ndim - 2) + is_whole.shape)
        summaries = Heads(x.q, x.k_summary, x.v_summary, mask)
        return summaries, Heads(x.q, x.k_selected, x.v_selected), Heads(x.q, x.k_recent, x.v_recent)

    def gates_of(x):
        """g of each of the three, (*b, T, N, 1)."""
        return [widen(x.gates[..., i, None]) for i in range(3)]

    return Layer(no_params, forward, backward, who)


@called_as(native_sparse_attention)
def reference(params: tuple[()], x: SparseHeads, block, k, window, length, stride, scale) -> Array:
    l = block if length is None else length
    d = l if stride is None else stride
    ends = [d * j + l - 1 for j in range(x.k_summary.shape[-3])]
    whole = jnp.array([[end <= t for end in ends] for t in range(x.q.shape[-3])])
    summaries = Heads(x.q, x.k_summary, x.v_summary, whole.reshape((1,) * (x.q.ndim - 2) + whole.shape))
    recent = Heads(x.q, x.k_recent, x.v_recent)
    o = (
        naive_attention(AttentionParams(), summaries, scale=scale),
        of_blocks.reference((), Heads(x.q, x.k_selected, x.v_selected), block, k, scale),
        naive_attention(AttentionParams(), recent, causal=True, window=window, scale=scale),
    )
    return jnp.einsum("i...e,...i->...e", jnp.stack(o), x.gates)


_AXES = ("T N D", "M K D", "M K E", "T K D", "T K E", "T K D", "T K E", "T N three")
_NEVER_EMPTY = ("T", "M", "N", "K", "D", "E")
_X = specs(SparseHeads, *(Real(f"B {axes}", -2.0, 2.0) for axes in _AXES))

RULE = Rule(
    "native_sparse_attention",
    native_sparse_attention,
    reference,
    cases=(
        Case(
            "grouped heads",
            _X,
            {"block": 3, "k": 2, "window": 4},
            _NEVER_EMPTY,
            fixed={"N": 4, "K": 2, "T": 11, "M": 3, "three": 3},
        ),
        Case(
            "summaries that overlap, scale",
            _X,
            {"block": 64, "k": 3, "window": 5, "length": 8, "stride": 4, "scale": 0.4},
            _NEVER_EMPTY,
            fixed={"N": 2, "K": 2, "T": 13, "M": 2, "three": 3},
            timed={"B": 1, "T": 1024, "M": 255, "N": 4, "K": 4, "D": 64, "E": 64, "three": 3},
        ),
    ),
    cite="arXiv:2502.11089, section 3 (native sparse attention; equation numbers not checked)",
    covers=("nsa", "compressed attention"),
)
