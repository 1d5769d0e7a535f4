"""block_sparse_attention: softmax attention to the blocks of keys that a pattern names for each block of queries.

Forward, with C_ij whether the queries t of block i may see the keys s of block j, b queries and b' keys to a block, and
the logits x_ts of `dot_product_attention` without params; sums are over the keys s that query t sees, of blocks with C:

    m_t = max_s x_ts           Z_t = sum_s exp(x_ts - m_t)                over s with C_{floor(t / b), floor(s / b')}
    p_ts = exp(x_ts - m_t) / Z_t
    y_t = sum_s p_ts v_s                                                  (T, E)

A query of whose blocks none is set, or that sees nothing in them, has y_t = 0.

Differential: C is a constant, a mask that is known when it is traced. So the adjoint is that of `blockwise_attention`,
with D_t = sum_s p_ts dy_t . v_s, over the same pairs:

    dv_s = sum_t p_ts dy_t           dx_ts = p_ts (dy_t . v_s - D_t)      0 where C is not set
    dq_t = scale sum_s dz_ts k_s     dk_s = scale sum_t dz_ts q_t         dz_ts = dx_ts, times the soft cap's slope

Blocks that are not set are in no list and no loop: work grows with the number of those that are, b b' (D + E) each; of
T x S nothing is made, either way. Where C is a band it is a window, with a first column it has a global token too.

Cached: x alone, as in `blockwise_attention`.

Numerical care: that of `blockwise_attention`.
"""

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bpref.checks.hyperparameters import is_traced, require_sizes
from bpref.formulas.attention.attend import attend, pull_attend
from bpref.formulas.attention.attention_grid import Extras, Pattern
from bpref.formulas.attention.heads import Heads, require_heads
from bpref.formulas.attention.heads_to_try import ACROSS, GROUPED, NEVER_EMPTY, WITHIN
from bpref.formulas.attention.softmax_attention import AttentionParams, require_pattern
from bpref.layer import Layer, Reals, no_params
from bpref.naive.attention import naive_attention
from bpref.rule import Boolean, Case, Interval, Real, Rule, called_as


def block_sparse_attention(
    pattern: ArrayLike,
    block: int | tuple[int, int] | None = None,
    causal: bool = False,
    soft_cap: float | None = None,
    scale: float | None = None,
) -> Layer[tuple[()], Heads, Reals, Heads]:
    """Each query's mean of the values in the blocks that its own block sees, weighted by softmax.

    Args:
      pattern: C, booleans, a row for each block of queries and a column for each of keys; not traced, since programs
        differ by it. The same for all heads; what is beyond the end of x is not looked at.
      block: how many queries and keys a block has, as one number or as two; T / rows and S / columns, rounded up, if it
        is not given.
      causal, soft_cap, scale: as in `dot_product_attention`. Blocks that are set and lie wholly in the future are left
        out like others.

    Returns:
      A layer with params `()`, x `Heads(q: (*b, T, N, D), k: (*b, S, K, D), v: (*b, S, K, E), ...)` without a key, and
      y `(*b, T, N, E)`. A mask, a bias and ids of segments are looked at in the blocks that are set.

    Example:
      Three blocks of queries, which see their own block, the one before it, and the first:

      >>> sees = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], bool)
      >>> layer = bpref.block_sparse_attention(sees, block=4, causal=True)
      >>> x = bpref.Heads(*(jnp.ones((1, 12, 2, 8)) for _ in range(3)))
      >>> layer.forward((), x)[0].shape
      (1, 12, 2, 8)

    Raises:
      ValueError: the pattern is not made of booleans in rows and columns, or has too few of them for x; `block` is not
        positive; as in `dot_product_attention`; x.key is given.
      TypeError: the pattern is traced; as in `dot_product_attention`.
    """
    who = "block_sparse_attention"
    if is_traced(pattern):
        raise TypeError(f"{who}: pattern is traced, expected booleans that are known: which blocks there are is static")
    C = _require_pattern_of_blocks(who, pattern)
    given = None if block is None else _both(who, block)
    general = require_pattern(who, Pattern(0.0 if scale is None else scale, causal, None, soft_cap))

    def of(x):
        T, S, D = x.q.shape[-3], x.k.shape[-3], x.q.shape[-1]
        b = given or tuple(-(-n // blocks) for n, blocks in zip((T, S), C.shape, strict=True))
        for n, size, blocks, what in zip((T, S), b, C.shape, ("queries", "keys"), strict=True):
            if n > size * blocks:
                raise ValueError(f"{who}: {n} {what}, expected at most {size * blocks}: {blocks} blocks of {size}")
        own = D**-0.5 if scale is None else general.scale
        return general._replace(scale=own, query_block=b[0], key_block=b[1], meet=C)

    def forward(params, x: Heads):
        require_heads(who, x)
        if x.key is not None:
            raise ValueError(f"{who}: x.key is given, expected None: there is no dropout")
        return attend(of(x), x, Extras()).y, x

    def backward(params, cache, dy):
        x = cache
        d = pull_attend(of(x), x, Extras(), dy)
        return (), Heads(d.dq, d.dk, d.dv, bias=d.dbias)

    return Layer(no_params, forward, backward, who)


def _require_pattern_of_blocks(who: str, pattern: ArrayLike) -> np.ndarray:
    try:
        C = np.asarray(pattern)
    except ValueError:  # rows of several lengths
        C = None
    if C is None or C.dtype != bool or C.ndim != 2 or 0 in C.shape:
        came = repr(pattern) if C is None or not C.ndim or not C.size else f"of shape {C.shape} and dtype {C.dtype}"
        raise ValueError(f"{who}: pattern is {came}, expected booleans, a row for each block of queries")
    return C


def _both(who: str, block: int | tuple[int, int]) -> tuple[int, ...]:
    if isinstance(block, tuple) and len(block) == 2:
        return require_sizes(who, **{"block[0]": block[0], "block[1]": block[1]})
    return require_sizes(who, block=block) * 2


@called_as(block_sparse_attention)
def reference(params: tuple[()], x: Heads, pattern, block, **of_logits) -> Array:
    """A mask of all pairs, a pair at a time."""
    C, T, S = np.asarray(pattern), x.q.shape[-3], x.k.shape[-3]
    bq, bk = block if isinstance(block, tuple) else (block, block)
    bq, bk = bq or -(-T // len(C)), bk or -(-S // len(C[0]))
    seen = np.array([[C[t // bq, s // bk] for s in range(S)] for t in range(T)], bool).reshape(T, S)
    seen = seen.reshape((1,) * (x.q.ndim - 2) + (T, S))
    return naive_attention(AttentionParams(), x._replace(mask=seen if x.mask is None else x.mask & seen), **of_logits)


_WINDOW_AND_FIRST = tuple(tuple(j == 0 or 0 <= i - j < 2 for j in range(8)) for i in range(8))

RULE = Rule(
    "block_sparse_attention",
    block_sparse_attention,
    reference,
    cases=(
        Case(
            "causal, a window and the first block",
            WITHIN,
            {"pattern": _WINDOW_AND_FIRST, "causal": True},
            tuple(axis for axis in NEVER_EMPTY if axis != "S"),
            fixed=GROUPED,
            timed={"B": 1, "T": 1024, "N": 8, "D": 64, "K": 8, "E": 64},
        ),
        Case(
            "mask, bias, soft cap, a row of nothing",
            ACROSS._replace(mask=Boolean("B N T S"), bias=Real("u N T S", -2, 2)),
            {
                "pattern": ((True, False, True), (False, False, False), (False, True, True)),
                "block": (2, 3),
                "soft_cap": Interval(1.0, 8.0, 2.0),
                "scale": 0.4,
            },
            NEVER_EMPTY,
            fixed=GROUPED | {"B": 2, "u": 1, "T": 5, "S": 8},
        ),
    ),
    cite="arXiv:2007.14062, section 2 (BigBird; section not checked); in blocks: arXiv:2205.14135, section 3.3",
    covers=("block-sparse attention", "sparse attention", "bigbird", "longformer", "block mask"),
)
