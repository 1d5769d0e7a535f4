"""Softmax attention as kernels: one block of queries after the other, the logits of a pair of blocks never written.

The sums are those of `blockwise_attention`'s docstring, in its symbols. One run of a kernel has the queries of block i
and all keys of their head beside it, and goes through the blocks j of keys in which a query of it may see one:

    forward:    m, Z and o of the queries; y = o / Z
    backward:   at first m, Z and D_t = sum_s p_ts dy_t . v_s; and then, of the same logits made again,
                dx_ts = p_ts (dy_t . v_s - D_t), dq_t += scale sum_s dz_ts k_s, and
                dk_s += scale sum_t dz_ts q_t, dv_s += sum_t p_ts dy_t

On a TPU runs follow each other, and dk and dv stay on the chip until all queries that share the keys have been met: q,
k, v and dy are read once, dq, dk and dv written once, and nothing else. A GPU runs many blocks at once, none of which
may add to what another does. There dk and dv are made by runs of their own, one for each block of keys and head, which
read the m, Z and D that those of the queries have written: nine products and not seven.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from bpref.checks.hyperparameters import require_choice
from bpref.dtypes import cast, wide_dtype
from bpref.formulas.attention.attend import Cotangents, attend, pull_attend
from bpref.formulas.attention.attention_grid import LOWEST, Extras, Pattern
from bpref.formulas.attention.heads import Heads
from bpref.formulas.attention.softmax_attention import XLA, Forms
from bpref.kernels.attention_blocks import Arrays, Pair, Plan, grouped, pair_of, planned, ungrouped
from bpref.kernels.launch import (
    IMPLEMENTATIONS,
    LANES,
    OF_A_TPU,
    ON_CHIP,
    Block,
    Ref,
    instead_of,
    launch,
    numbered,
    on_one_tpu,
    product,
)
from bpref.rule import Hyper


def forms(
    who: str, implementation: str, blocks: tuple[int | None, int | None], others: Hyper
) -> Callable[[Heads], Forms]:
    """Which forms are taken of x, by the `implementation` that was asked for.

    Args:
      blocks: how many queries and keys are worked on at once; None: all.
      others: hyperparameters that the kernels have not, by name.

    Raises:
      ValueError: one of them is asked for beside "pallas"; there is no such implementation.
    """
    require_choice(who, "implementation", implementation, IMPLEMENTATIONS)
    asked = [name for name, v in others.items() if v]
    if implementation == "pallas" and asked:
        raise ValueError(f'{who}: {asked[0]} is {others[asked[0]]!r}; implementation "pallas" has none, "xla" has')

    def of(x: Heads) -> Forms:
        if implementation == "xla" or (implementation == "auto" and (asked or not is_better_by_kernel(blocks, x))):
            return XLA
        given = [name for name in ("mask", "bias") if getattr(x, name) is not None]
        if given:
            raise ValueError(f'{who}: x.{given[0]} is given; implementation "pallas" takes none, "xla" does')
        return KERNELS

    return of


def is_better_by_kernel(blocks: tuple[int | None, int | None], x: Heads) -> bool:
    """Whether "auto" takes the kernels: on a TPU, for at least a block of its own sizes, where the keys fit onto it."""
    if any(block is None or block % LANES for block in blocks):
        return False
    S = x.k.shape[-3]
    room = sum(S * BYTES_OF_A_KEY * -(-a.shape[-1] // LANES) * LANES for a in (x.k, x.v))
    is_plain = x.mask is None and x.bias is None and str(x.q.dtype) in OF_A_TPU
    return is_plain and min(S, x.q.shape[-3]) >= LANES and room <= ON_CHIP * 3 // 4 and on_one_tpu()


BYTES_OF_A_KEY = 20
"""Of each feature, in float32: two copies of k, one being read, two of dk, one being written, and its sum."""


def _attend(pattern: Pattern, x: Heads, extras: Extras) -> Array:
    """The y of `attend`, of x without a mask, a bias and dropout, and of no extras."""

    def plain(x):
        return attend(pattern, x, extras).y

    return instead_of(plain, partial(_attended, pattern), x._replace(key=None), is_empty=not x.q.size)


def _pull_attend(pattern: Pattern, x: Heads, extras: Extras, dy: Array) -> Cotangents:
    def plain(x, dy):
        d = pull_attend(pattern, x, extras, dy)
        return d.dq, d.dk, d.dv

    dq, dk, dv = instead_of(plain, partial(_pulled, pattern), x._replace(key=None), dy, is_empty=not x.q.size)
    return Cotangents(dq, dk, dv, None, Extras())


KERNELS = Forms(_attend, _pull_attend)


def _attended(pattern: Pattern, platform: str, x: Heads) -> Array:
    plan, a = planned(pattern, platform, x)
    y = _of_queries(plan, jax.ShapeDtypeStruct((*a.q.shape[:-1], a.v.shape[-1]), a.q.dtype))
    body = partial(_attend_body, plan, len(a.segments))
    (y,) = launch(platform, body, "attention", _grid(plan, a), _inputs(plan, a), [y], parallel=4)
    return ungrouped(y, jax.ShapeDtypeStruct((*x.q.shape[:-1], x.v.shape[-1]), x.q.dtype))


def _pulled(pattern: Pattern, platform: str, x: Heads, dy: Array) -> tuple[Array, Array, Array]:
    plan, a = planned(pattern, platform, x)
    do = grouped(platform, dy, a.q.shape[1], plan.bq)
    dq, dk, dv = (_pull_apart if platform == "cuda" else _pull_in_one)(platform, plan, a, do)
    return ungrouped(dq, x.q), ungrouped(dk[:, :, None], x.k), ungrouped(dv[:, :, None], x.v)


def _pull_in_one(platform: str, plan: Plan, a: Arrays, do: Array) -> list[Array]:
    """dq, dk and dv of runs that follow each other."""
    outputs = [_of_queries(plan, a.q), _of_head(a.k), _of_head(a.v)]
    kept = [jax.ShapeDtypeStruct(v.shape[-2:], wide_dtype(v.dtype)) for v in (a.k, a.v)]
    body, inputs = partial(_pull, plan, len(a.segments)), [_of_queries(plan, do), *_inputs(plan, a)]
    return launch(platform, body, "attention_backward", _grid(plan, a), inputs, outputs, kept, parallel=2)


def _pull_apart(platform: str, plan: Plan, a: Arrays, do: Array) -> tuple[Array, Array, Array]:
    """dq, and dk and dv, of runs in any order."""
    wide = wide_dtype(a.q.dtype)
    numbers = [_of_queries(plan, jax.ShapeDtypeStruct((*a.q.shape[:-1], 1), wide)) for _ in "mZD"]
    body, inputs = partial(_pull_queries, plan, len(a.segments)), [_of_queries(plan, do), *_inputs(plan, a)]
    outputs = [_of_queries(plan, a.q), *numbers]
    dq, *mZD = launch(platform, body, "attention_backward_queries", _grid(plan, a), inputs, outputs, parallel=4)

    def of_block(v):
        return Block(v, (None, None, plan.bk, v.shape[-1]), lambda b, k, g, j: (b, k, j, 0))

    def of_head(v):
        return Block(v, (None, None, None, *v.shape[-2:]), lambda b, k, g, j: (b, k, g, 0, 0))

    def put(v):
        spec = jax.ShapeDtypeStruct((*a.q.shape[:3], *v.shape[-2:]), wide)
        return Block(spec, (None, None, None, plan.bk, v.shape[-1]), lambda b, k, g, j: (b, k, g, j, 0))

    inputs = [*map(of_head, (do, *mZD, a.q)), of_block(a.k), of_block(a.v)]
    if a.segments:
        of_q, of_k = a.segments
        inputs.append(Block(of_q, (None, *of_q.shape[-2:]), lambda b, k, g, j: (b, 0, 0)))
        inputs.append(Block(of_k, (None, 1, plan.bk), lambda b, k, g, j: (b, j, 0)))
    body, outputs = partial(_pull_keys, plan, len(a.segments)), [put(a.k), put(a.v)]
    grid = *a.q.shape[:3], a.k.shape[-2] // plan.bk
    of_heads = launch(platform, body, "attention_backward_keys", grid, inputs, outputs, parallel=4)
    dk, dv = (cast(d.sum(2), a.q.dtype) for d in of_heads)
    return dq, dk, dv


def _grid(plan: Plan, a: Arrays) -> tuple[int, ...]:
    """One run for each block of queries of each head."""
    *front, T, _ = a.q.shape
    return *front, T // plan.bq


def _of_queries(plan: Plan, v: Array | jax.ShapeDtypeStruct) -> Block:
    return Block(v, (None, None, None, plan.bq, v.shape[-1]), lambda b, k, g, i: (b, k, g, i, 0))


def _of_head(v: Array) -> Block:
    return Block(v, (None, None, *v.shape[-2:]), lambda b, k, g, i: (b, k, 0, 0))


def _inputs(plan: Plan, a: Arrays) -> list[Block]:
    inputs = [_of_queries(plan, a.q), _of_head(a.k), _of_head(a.v)]
    if a.segments:
        of_q, of_k = a.segments
        inputs.append(Block(of_q, (None, plan.bq, 1), lambda b, k, g, i: (b, i, 0)))
        inputs.append(Block(of_k, (None, *of_k.shape[-2:]), lambda b, k, g, i: (b, 0, 0)))
    return inputs


def _attend_body(plan: Plan, segments: int, q_ref: Ref, k_ref: Ref, v_ref: Ref, *refs: Ref) -> None:
    from jax.experimental import pallas as pl

    ids, (y_ref,) = refs[:segments], refs[segments:]
    i, q = pl.program_id(3), q_ref[...]
    wide = wide_dtype(q.dtype)

    def add(j, sums):
        m, Z, o = sums
        at = numbered(j, plan.bk)
        m, shrink, e = pair_of(plan, q, k_ref[at, :], i, j, _ids(ids, j)).continued(m)
        return m, Z * shrink + e.sum(-1, keepdims=True), o * shrink + product(cast(e, q.dtype), v_ref[at, :], 1, 0)

    one = jnp.zeros((plan.bq, 1), wide)
    _, Z, o = lax.fori_loop(*plan.keys_of(i), add, (one + LOWEST, one, jnp.zeros(y_ref.shape, wide)))
    y_ref[...] = cast(o / jnp.where(Z > 0, Z, 1), y_ref.dtype)


def _pull(plan: Plan, segments: int, do_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, *refs: Ref) -> None:
    from jax.experimental import pallas as pl

    ids, (dq_ref, dk_ref, dv_ref, dK, dV) = refs[:segments], refs[segments:]
    g, i = pl.program_id(2), pl.program_id(3)

    @pl.when((g == 0) & (i == 0))
    def begin():
        dK[...] = jnp.zeros_like(dK)
        dV[...] = jnp.zeros_like(dV)

    q, do = _readable(q_ref[...]), do_ref[...]

    def add(j, p, dz):
        at = numbered(j, plan.bk)
        dK[at, :] += product(dz, q, 0, 0)
        dV[at, :] += product(p, do, 0, 0)

    _over_keys(plan, i, do_ref, q_ref, k_ref, v_ref, ids, dq_ref, add)

    @pl.when((g == pl.num_programs(2) - 1) & (i == pl.num_programs(3) - 1))
    def end():
        dk_ref[...] = cast(dK[...], dk_ref.dtype)
        dv_ref[...] = cast(dV[...], dv_ref.dtype)


def _pull_queries(plan: Plan, segments: int, do_ref: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, *refs: Ref) -> None:
    from jax.experimental import pallas as pl

    ids, (dq_ref, *number_refs) = refs[:segments], refs[segments:]
    numbers = _over_keys(plan, pl.program_id(3), do_ref, q_ref, k_ref, v_ref, ids, dq_ref, lambda j, p, dz: None)
    for ref, number in zip(number_refs, numbers, strict=True):
        ref[...] = number


def _over_keys(
    plan: Plan,
    i: Array,
    do_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    ids: tuple[Ref, ...],
    dq_ref: Ref,
    add: Callable[..., None],
) -> tuple[Array, Array, Array]:
    """Write dq of block i, `add(j, p, dz)` being told of each pair; m, Z and D."""
    q, do = q_ref[...], do_ref[...]
    wide = wide_dtype(q.dtype)

    def met(j):
        k = k_ref[numbered(j, plan.bk), :]
        return k, pair_of(plan, q, k, i, j, _ids(ids, j)), product(do, v_ref[numbered(j, plan.bk), :], 1, 1)

    def first_time(j, sums):
        m, Z, D = sums
        _, pair, dp = met(j)
        m, shrink, e = pair.continued(m)
        return m, Z * shrink + e.sum(-1, keepdims=True), D * shrink + pair.of_seen(e * dp).sum(-1, keepdims=True)

    one = jnp.zeros((plan.bq, 1), wide)
    m, Z, D = lax.fori_loop(*plan.keys_of(i), first_time, (one + LOWEST, one, one))

    def second_time(j, dq):
        k, pair, dp = met(j)
        p, dz = _gradients(plan, pair, dp, m, Z, D, q.dtype)
        add(j, p, dz)
        return dq + product(dz, _readable(k), 1, 0)

    dq_ref[...] = cast(lax.fori_loop(*plan.keys_of(i), second_time, jnp.zeros(q.shape, wide)), q.dtype)
    return m, Z, D


def _pull_keys(
    plan: Plan,
    segments: int,
    do_ref: Ref,
    m_ref: Ref,
    Z_ref: Ref,
    D_ref: Ref,
    q_ref: Ref,
    k_ref: Ref,
    v_ref: Ref,
    *refs: Ref,
) -> None:
    from jax.experimental import pallas as pl

    ids, (dk_ref, dv_ref) = refs[:segments], refs[segments:]
    j, k, v = pl.program_id(3), k_ref[...], v_ref[...]

    def add(i, sums):
        dk, dv = sums
        at = numbered(i, plan.bq)
        do, m, Z, D, q = (ref[at, :] for ref in (do_ref, m_ref, Z_ref, D_ref, q_ref))
        of_pair = (ids[0][at, :], ids[1][...]) if ids else ()
        p, dz = _gradients(plan, pair_of(plan, q, k, i, j, of_pair), product(do, v, 1, 1), m, Z, D, q.dtype)
        return dk + product(dz, _readable(q), 0, 0), dv + product(p, do, 0, 0)

    start = jnp.zeros(k.shape, dk_ref.dtype), jnp.zeros(v.shape, dv_ref.dtype)
    dk_ref[...], dv_ref[...] = lax.fori_loop(*plan.queries_of(j), add, start)


def _gradients(
    plan: Plan, pair: Pair, dp: Array, m: Array, Z: Array, D: Array, dtype: DTypeLike
) -> tuple[Array, Array]:
    """p, and dz times the scale, for their products."""
    scale = 1 / jnp.where(Z > 0, Z, 1)
    p = pair.relative_to(m) * scale
    dx = pair.of_seen(p * (dp - D * scale))
    dz = dx if pair.slope is None else dx * pair.slope
    return cast(p, dtype), cast(dz * plan.pattern.scale, dtype)


def _ids(refs: tuple[Ref, ...], j: Array) -> tuple[Array, ...]:
    """The segments of the run's queries, and of block j of keys."""
    return (refs[0][...], refs[1][numbered(j, 1), :]) if refs else ()


def _readable(a: Array) -> Array:
    """`a` for a product, in which what is not seen has a weight of 0."""
    return jnp.where(jnp.abs(a) < float("inf"), a, jnp.zeros((), a.dtype))
