"""Attention in blocks of queries and keys: what both rules of softmax attention, and the blocks built of it, compute.

With heads grouped by the keys that they share (axes *b, K, G = N / K in front), query t, key s, and d = s - t:

    z_ts = scale q_t . k_s      a_ts = c tanh(z_ts / c), or z_ts      x_ts = a_ts + bias_ts + u_d
    m_t = max_s x_ts      Z_t = e^(sink - m_t) + sum_s exp(x_ts - m_t)      p_ts = exp(x_ts - m_t) / Z_t
    y_t = sum_s r_ts p_ts v_s

over the keys that t sees; u is what depends on the distance alone, and r the dropout: 0, or 1 / (1 - rate). Backward,
as derived in `dot_product_attention`, with D_t = sum_s r_ts p_ts dy_t . v_s:

    dv_s = sum_t r_ts p_ts dy_t               dx_ts = p_ts (r_ts dy_t . v_s - D_t)      dz_ts = dx_ts (1 - (a_ts / c)^2)
    dq_t = scale sum_s dz_ts k_s              dk_s = scale sum_t dz_ts q_t
    dbias_ts = dx_ts          du_d = sum_t dx_t,t+d          dsink = - sum_t exp(sink - m_t) / Z_t D_t

and where log(Z_t) + m_t has a cotangent dL_t, dx_ts has p_ts dL_t more (`attention_with_log_sum_exp`): added last,
since both dy_t . v_s and D_t may be far larger, and where a query sees one key to the last digit they are equal. Where
the weights w_ts = r_ts p_ts are an output too, what arrives of them stands beside dy_t . v_s wherever that is.

Each way is one loop over the pairs of blocks in which any key is seen; the list of them is made when it is traced.

D_t is needed before the first dx_ts. Where nothing but x has been kept and a row of blocks has more pairs than one, the
backward meets each pair twice. At first it makes m, Z and D_t: the products of the first two cost nothing, since D_t
needs the same; and p is then 1 to the last digit where a query sees one key, which it would not be with an m that
another program has rounded. D_t is dy_t . y_t too, which is rounded otherwise than the dy_t . v_s from which it is
taken, where their difference is all there is of dx_ts. To keep y, m and Z, as a block of a transformer does, whose
y its next product needs anyway, spares the first time by that, and two of seven products.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.attention.attention_grid import Extras, Grid, Logits, Pattern, over_keys, over_last, over_rows
from bpref.formulas.attention.heads import Heads, from_groups
from bpref.loops import cond, scan


class Kept(NamedTuple):
    """What spares the backward its first time through the pairs: y, and of each query m and Z, in at least float32."""

    y: Float[Array, "*b T N E"]
    m: Float[Array, "*b T N"]
    Z: Float[Array, "*b T N"]


def log_sum_exp_of(kept: Kept) -> Array:
    """L = m + log Z; -inf where a query sees nothing."""
    return jnp.where(kept.Z > 0, kept.m + jnp.log(jnp.where(kept.Z > 0, kept.Z, 1)), -jnp.inf)


class Cotangents(NamedTuple):
    """dq, dk, dv in their own shapes and dtypes; dbias, and `Extras` of the others, where they are used."""

    dq: Array
    dk: Array
    dv: Array
    dbias: Array | None
    extras: Extras


class Sums(NamedTuple):
    """Of the keys that queries have met so far: the largest logit m, and relative to it Z and o, not divided yet.

    Grouped and padded as the queries of a `Grid` are.
    """

    m: Float[Array, "*b K G T"]
    Z: Float[Array, "*b K G T"]
    o: Float[Array, "*b K G T E"]


def attend(pattern: Pattern, x: Heads, extras: Extras) -> Kept:
    """y in q's dtype, 0 where a query sees nothing; m and Z."""
    grid = Grid(pattern, x, extras)
    return kept_of(grid, sums_over(grid))


def kept_of(grid: Grid, sums: Sums) -> Kept:
    """What `attend` gives, of the sums over all keys."""
    m, Z, o = sums
    y = cast(grid.ungrouped(o / jnp.where(Z > 0, Z, 1)[..., None]), grid.q.dtype)
    return Kept(y, grid.unlike_rows(m), grid.unlike_rows(Z))


def sums_over(grid: Grid, before: Sums | None = None) -> Sums:
    """The sums over the grid's keys, and over those met before it."""

    def body(sums, pair):
        i, j = pair
        of_rows, _ = _with_keys(grid, Sums(*(grid.rows(a, i) for a in sums)), i, j)
        return Sums(*(grid.put_rows(a, v, i) for a, v in zip(sums, of_rows, strict=True))), None

    return scan(body, _of_no_keys(grid) if before is None else before, grid.pairs())[0]


def _of_no_keys(grid: Grid) -> Sums:
    return Sums(*grid.before(), jnp.zeros((*grid.q.shape[:-1], grid.v.shape[-1]), grid.wide))


def _with_keys(grid: Grid, sums: Sums, i: Array, j: Array) -> tuple[Sums, Array]:
    """The sums of the queries of block i, after the keys of block j too, and r e^x of these relative to the new m."""
    m, shrink, e = _continued(sums.m, grid.logits(i, j))
    kept = e if grid.r is None else e * grid.r(i, j)
    o = over_keys(cast(kept, grid.q.dtype), grid.readable(grid.keys(grid.v, j)), grid.wide)
    return Sums(m, sums.Z * shrink + e.sum(-1), sums.o * shrink[..., None] + o), kept


def attend_with_weights(pattern: Pattern, x: Heads, extras: Extras) -> tuple[Array, Array]:
    """y, and the weights w (*b, N, T, S) in at least float32, 0 where a query sees nothing; in one block."""
    grid = Grid(pattern._replace(query_block=None, key_block=None), x, extras)
    only = jnp.zeros((), jnp.int32)
    sums, kept = _with_keys(grid, _of_no_keys(grid), only, only)
    w = kept / jnp.where(sums.Z > 0, sums.Z, 1)[..., None]
    return kept_of(grid, sums).y, w.reshape(*w.shape[:-4], w.shape[-4] * w.shape[-3], *w.shape[-2:])


def pull_attend(
    pattern: Pattern,
    x: Heads,
    extras: Extras,
    dy: Array,
    kept: Kept | None = None,
    dL: Array | None = None,
    dw: Array | None = None,
) -> Cotangents:
    """The backward of `attend`.

    Args:
      pattern, x, extras: as there.
      dy: the cotangent of y.
      kept: what `attend` gave.
      dL: the cotangent of log Z + m, (*b, T, N).
      dw: that of the weights, (*b, N, T, S), with an axis of size 1 where it is the same for all heads.
    """
    d = pull_wide(pattern, x, extras, dy, kept, dL, dw)
    dsinks = None if extras.sinks is None or d.extras.sinks is None else cast(d.extras.sinks, extras.sinks.dtype)
    dbias = None if x.bias is None or d.dbias is None else cast(d.dbias, x.bias.dtype)
    dq, dk, dv = (cast(v, x.q.dtype) for v in (d.dq, d.dk, d.dv))
    return Cotangents(dq, dk, dv, dbias, d.extras._replace(sinks=dsinks))


def pull_wide(
    pattern: Pattern,
    x: Heads,
    extras: Extras,
    dy: Array,
    kept: Kept | None = None,
    dL: Array | None = None,
    dw: Array | None = None,
) -> Cotangents:
    """`pull_attend` before it is rounded, in at least float32."""
    grid = Grid(pattern, x, extras)
    wide = grid.wide
    dO = grid.grouped(dy)
    of_L = None if dL is None else grid.like_rows(widen(dL))
    of_w = None if dw is None else grid.by_pairs(widen(dw), 0)
    dbias, du = (None if a is None else jnp.zeros(a.shape, wide) for a in (grid.bias, grid.u))
    is_asked_for = grid.bias is not None or grid.u is not None
    dscore = None if extras.score is None else with_zeros(None, extras.score.params)

    i, j = grid.pairs()
    is_single = len(np.unique(i)) == len(i)

    def body(sums, pair):
        i, j, *is_known = pair
        rows, dQ, dK, dV, dbias, du, dscore = sums
        q, do = grid.readable(grid.rows(grid.q, i)), grid.rows(dO, i)
        k, v = (grid.readable(grid.keys(a, j)) for a in (grid.k, grid.v))
        logits = grid.logits(i, j)
        dp, r = over_last(do, v, wide), None
        if of_w is not None:
            dp = dp + grid.pair_of(of_w, i, j)
        if grid.r is not None:
            r = grid.r(i, j)
            dp = r * dp

        def summed_up(m, Z, D):
            m, shrink, e = _continued(m, logits)
            return (m, Z * shrink + e.sum(-1), D * shrink + grid.of_seen(logits, e * dp).sum(-1)), e

        def relative_to(m):
            return jnp.where(logits.seen, jnp.exp(logits.x - m[..., None]), 0)

        def gradients(e, Z, D):
            scale = 1 / jnp.where(Z > 0, Z, 1)
            p, mean = e * scale[..., None], D * scale
            apart = dp - mean[..., None]
            apart = apart if of_L is None else apart + grid.rows(of_L, i)[..., None]
            dx = grid.of_seen(logits, p * apart)
            of_score, dz = (None, dx) if logits.pull is None else logits.pull(dx)
            dz = cast((dz if logits.slope is None else dz * logits.slope) * pattern.scale, x.q.dtype)
            return (
                over_keys(dz, k, wide),
                over_rows(dz, q, wide),
                over_rows(cast(p if r is None else r * p, x.q.dtype), do, wide),
                dx if is_asked_for else None,
                None if extras.score is None else with_zeros(of_score, extras.score.params),
            )

        def first_time(m, Z, D):
            of_dx = jnp.zeros_like(dp) if is_asked_for else None, jax.tree.map(jnp.zeros_like, dscore)
            return summed_up(m, Z, D)[0], (*(jnp.zeros_like(a, wide) for a in (q, k, v)), *of_dx)

        def second_time(m, Z, D):
            return (m, Z, D), gradients(relative_to(m), Z, D)

        of_rows = tuple(grid.rows(a, i) for a in rows)
        if kept is not None:
            of_rows, of_pair = second_time(*of_rows)
        elif is_single:
            of_rows, e = summed_up(*of_rows)
            of_pair = gradients(e, *of_rows[1:])
        else:
            of_rows, of_pair = cond(is_known[0], second_time, first_time, *of_rows)
        dq, dk, dv, dx, of_score = of_pair
        if kept is None:
            rows = tuple(grid.put_rows(a, v, i) for a, v in zip(rows, of_rows, strict=True))
        dQ, dK, dV = grid.put_rows(dQ, grid.rows(dQ, i) + dq, i), grid.add_keys(dK, dk, j), grid.add_keys(dV, dv, j)
        if dx is not None:
            dbias = None if dbias is None else grid.add_bias(dbias, dx, i, j)
            du = None if du is None else grid.add_distances(du, dx, i, j)
        return (rows, dQ, dK, dV, dbias, du, jax.tree.map(jnp.add, dscore, of_score)), None

    if kept is None:
        m, Z = grid.before()
        rows = m, Z, jnp.zeros_like(m)
    else:
        y = widen(kept.y)
        D = jnp.where(jnp.all(y == 0, -1), 0, jnp.sum(widen(dy) * y, -1) * kept.Z)
        rows = tuple(grid.like_rows(a) for a in (kept.m, kept.Z, D))
    start = (rows, *(jnp.zeros(a.shape, wide) for a in (grid.q, grid.k, grid.v)), dbias, du, dscore)
    pairs = _twice(i, j) if kept is None and not is_single else (i, j)
    ((m, Z, D), dQ, dK, dV, dbias, du, dscore), _ = scan(body, start, pairs)
    dsinks = None
    if extras.sinks is not None:
        share = jnp.exp(jnp.broadcast_to(grid.of_heads(extras.sinks), m.shape) - m) / Z
        D = D / Z if of_L is None else D / Z - of_L
        dsinks = -jnp.sum(share * D, (*range(len(grid.b)), -1)).reshape(-1)
    return Cotangents(
        grid.ungrouped(dQ),
        from_groups(dK[..., None, : grid.S, :]),
        from_groups(dV[..., None, : grid.S, :]),
        None if x.bias is None or dbias is None else grid.unlike_bias(dbias, x.bias.shape),
        Extras(dsinks, None if extras.u is None or du is None else grid.undistanced(du, extras.u), dscore),
    )


def _continued(m: Array, logits: Logits) -> tuple[Array, Array, Array]:
    """The largest logit so far, what sums so far are multiplied by, and e^x relative to it."""
    m_new = jnp.maximum(m, logits.x.max(-1))
    return m_new, jnp.exp(m - m_new), jnp.where(logits.seen, jnp.exp(logits.x - m_new[..., None]), 0)


def _twice(i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of each i, and then the same again; and which of both times it is."""
    again = np.repeat([False, True], len(i))
    order = np.lexsort((np.tile(np.arange(len(i)), 2), again, np.tile(i, 2)))
    return np.tile(i, 2)[order], np.tile(j, 2)[order], again[order]
