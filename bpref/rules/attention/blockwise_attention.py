"""blockwise_attention: softmax attention in blocks of queries and keys, nothing of T x S ever made.

Forward: the y of `dot_product_attention`, its sums over s taken block by block. For one block of queries, let m be the
largest logit seen so far, Z = sum_s exp(x_ts - m), and o = sum_s r_ts exp(x_ts - m) v_s; with the next block S',

    m' = max(m, max_S' x_ts)       Z' = e^(m - m') Z + sum_S' exp(x_ts - m')       o' = e^(m - m') o + sum_S' ...
    y_t = o_t / Z_t                                                                       (T, E)

A sink is a key that has been seen before all others: m = sink, Z = 1, o = 0.

Differential: y is the same function, and so is its backward. Each block of it needs x and dy of its own rows and
columns, and m_t, Z_t and D_t = sum_s r_ts p_ts dy_t . v_s, for which all blocks of a row are gone through first (and
where a row has but one, it is gone through once):

    p_ts = exp(x_ts - m_t) / Z_t             dx_ts = p_ts (r_ts dy_t . v_s - D_t)          one block of (T, S) at a time
    dv_s += sum_t r_ts p_ts dy_t             dk_s += scale sum_t dz_ts q_t                (S, E) and (S, D)
    dq_t += scale sum_s dz_ts k_s            du_(s - t) += dx_ts, dbias_ts += dx_ts       (T, D)

Blocks in which no key is seen, above the diagonal or outside the window, are not in the loop's list: a causal attention
does half of the work, and one with a window does work and has memory in proportion to T.

Cached: x alone, as in `dot_product_attention`.

Numerical care: that of `dot_product_attention`. m starts at a finite number, so that no e^(m - m') is NaN; o and Z are
summed in at least float32, rescaled sums rounding once more for each block of keys. Dropout's draws depend on where
an element stands, not on the blocks, and are made again in the backward. D_t = dy_t . y_t would spare two of a block's
seven products, and is not precise enough: see `dot_product_attention`.

Both ways are there in two forms, by `implementation`: "xla", one loop over the pairs of blocks, and "pallas", kernels
in which the logits of a pair never leave the chip (`bpref/kernels/attention.py`), for TPUs and GPUs; a CPU interprets
them, slowly. As the compiler of a TPU v5e has scheduled them, kernels take less than a fifth of the cycles of "xla",
and of JAX's own kernel about as many (`benchmarks/README.md`); so "auto" is "pallas" in a process that has one TPU chip
and no other device, of blocks that are multiples of 128, where there are 128 queries and keys at least, and k, v, dk
and dv fit into its vector memory (some 9,800 keys of 64 or 128 features). It is "xla" else: that is divided among chips
by itself, while kernels have to be put into a `jax.shard_map`; and of a GPU no compiler says what they take. A kernel's
backward is differentiated once more as the same backward in XLA's form.
"""

from jax import Array

from bpref.formulas.attention.attention_grid import Pattern, Window
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.softmax_attention import AttentionParams, softmax_attention
from bpref.kernels.attention import forms
from bpref.layer import Layer, Reals
from bpref.naive.attention import naive_attention
from bpref.rule import Hyper, Interval, Rule, called_as
from bpref.rules.attention.dot_product_attention import CASES


def blockwise_attention(
    causal: bool = False,
    window: Window | None = None,
    soft_cap: float | None = None,
    scale: float | None = None,
    alibi: bool = False,
    relative_buckets: int | None = None,
    max_distance: int = 128,
    sinks: bool = False,
    dropout: float = 0.0,
    query_block: int = 256,
    key_block: int = 256,
    implementation: str = "auto",
) -> Layer[AttentionParams, Heads, Reals, Heads]:
    """`dot_product_attention` with memory that grows with T + S and not with T S: the same results and cotangents.

    Args:
      causal, window, soft_cap, scale, alibi, relative_buckets, max_distance, sinks, dropout: as there.
      query_block, key_block: how many queries and keys are worked on at once; by a kernel on a TPU multiples of 128 or
        all there are, on a GPU powers of two, of which it takes 64 at most.
      implementation: "xla", "pallas" or "auto", see above; without a mask, a bias, `alibi`, `relative_buckets`, `sinks`
        and `dropout` there is "pallas".

    Returns:
      A layer with x, y and params as there. A mask or a bias is as large as it is given; a bias below -1e30 is a mask.
      What is not seen is not read.

    Raises:
      ValueError, TypeError: as there; a block is not at least 1.
    """
    who = "blockwise_attention"
    pattern = Pattern(0.0 if scale is None else scale, causal, window, soft_cap, dropout, query_block, key_block)
    is_scaled = scale is None
    others = {"alibi": alibi, "relative_buckets": relative_buckets, "sinks": sinks, "dropout": dropout}
    chosen = forms(who, implementation, (query_block, key_block), others)
    return softmax_attention(who, pattern, is_scaled, alibi, relative_buckets, max_distance, sinks, chosen)


@called_as(blockwise_attention)
def reference(params: AttentionParams, x: Heads, implementation, **hyper) -> Array:
    return naive_attention(params, x, **hyper)


_BLOCKS: tuple[Hyper, ...] = ({"query_block": 5, "key_block": 2}, {"query_block": 2, "key_block": 3})

RULE = Rule(
    "blockwise_attention",
    blockwise_attention,
    reference,
    cases=(
        *(case._replace(hyper={**case.hyper, **_BLOCKS[i % 2]} if i else case.hyper) for i, case in enumerate(CASES)),
        CASES[0]._replace(
            name="causal, soft cap, a kernel",
            hyper={"causal": True, "soft_cap": Interval(1.0, 8.0, 2.0), "implementation": "pallas", **_BLOCKS[0]},
            fixed={**CASES[0].fixed, "B": 1},
            timed={},
        ),
        CASES[2]._replace(
            name="window, segments, a kernel",
            x=CASES[2].x._replace(key=None),
            hyper={"window": (4, 2), "scale": 0.4, "implementation": "pallas", **_BLOCKS[1]},
        ),
    ),
    cite="arXiv:2205.14135, algorithms 2 and 4; arXiv:2112.05682",
    covers=("flash attention", "memory-efficient attention", "sliding-window attention"),
)
