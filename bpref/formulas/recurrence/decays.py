"""What is left, in one chunk of L steps, of what came earlier: products of the gates between, by sums of logarithms.

With g_u the logarithm of the gate of step u, what step s adds is multiplied on its way to step t by

    Lambda_ts = exp(sum of g_u over s < u <= t)    s <= t, else 0         (L, L)
    from_start_t = exp(sum of g_u over u <= t)     to_end_s = Lambda_Ls   (L,)
    whole = exp(sum of all g_u)

Every sum is over the steps between alone. The difference of two sums from the start would cancel, and be NaN of
infinite logarithms; its exponential of the wrong sign would overflow.

Differential: delta Lambda_ts = Lambda_ts (sum of delta g_u over s < u <= t). With F_ts the cotangent of Lambda_ts times
Lambda_ts, and likewise f of from_start, e of to_end and w of whole, gate u has the share of all that crosses it:

    dg_u = sum over s < u <= t of F_ts + sum over t >= u of f_t + sum over s < u of e_s + w
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.formulas.indexing.along_axis import shifted
from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import sees, transpose


class Decays(NamedTuple):
    between: Float[Array, "G L L"]
    from_start: Float[Array, "G L 1"]
    to_end: Float[Array, "G L 1"]
    whole: Float[Array, "G 1 1"]


def decays(g: Array) -> Decays:
    """The factors of logarithms (G, L, 1)."""
    L = g.shape[-2]
    between = jnp.where(sees(L, L), jnp.exp(sums_between(g)), 0)
    from_start = jnp.exp(jnp.cumsum(g, -2))
    return Decays(between, from_start, between[:, -1, :, None], from_start[:, -1:])


def sums_between(g: Array) -> Array:
    """The sum of g_u over s < u <= t, (G, t, s): by blocks, but for a TPU, which adds up windows at once."""
    return lax.platform_dependent(g, tpu=lambda g: _inside(g[..., 0]), default=_by_blocks)


def _by_blocks(g: Array) -> Array:
    """Made of the end of the block of s, the whole blocks between, and the start of the block of t: about sqrt(L) steps
    each, where one sum along t for every s takes L^2 log L additions."""
    G, L, _ = g.shape
    B = math.isqrt(L - 1) + 1
    n = -(-L // B)
    blocks = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), (0, n * B - L, 0), (0, 0, 0)]).reshape(G, n, B)
    head, tail = jnp.cumsum(blocks, 2), shifted(lax.cumsum(blocks, 2, reverse=True), 2, reverse=True, first=0.0)
    whole = shifted(_inside(head[..., -1]), 1, reverse=False, first=0.0)
    across = head[..., None, None] + whole[:, :, None, :, None] + tail[:, None, None]
    later = (jnp.arange(n)[:, None] - jnp.arange(n)[None])[None, :, None, :, None]
    sums = jnp.where(later == 0, _inside(blocks)[:, :, :, None], jnp.where(later > 0, across, 0))
    return sums.reshape(G, n * B, n * B)[:, :L, :L]


def _inside(v: Array) -> Array:
    """The sums of v_u over s < u <= t, (..., t, s), along the last axis."""
    n = v.shape[-1]
    later = sees(n, n, strictly=True).reshape(*[1] * (v.ndim - 1), n, n)
    return jnp.cumsum(jnp.where(later, v[..., None], 0), -2)


def pull_sums_between(F: Array) -> Array:
    """dg (G, L, 1), given the cotangent (G, t, s) of `sums_between`; what it is where s >= t is not read."""
    L = F.shape[-1]
    crossing = shifted(jnp.cumsum(F, -1), 2, reverse=False, first=0.0)
    return jnp.sum(jnp.where(sees(L, L), crossing, 0), -2)[..., None]


def decays_to_end(g: Array) -> tuple[Array, Array]:
    """`to_end` and `whole` alone, of logarithms (G, L, 1)."""
    left = lax.cumsum(g, 1, reverse=True)
    return jnp.exp(shifted(left, 1, reverse=True, first=0.0)), jnp.exp(left[:, :1])


def pull_decays(F: Array, f: Array, e: Array, w: Array) -> Array:
    """dg of (G, L, 1), given F (G, L, L), f and e (G, L, 1) and w (G, 1, 1)."""
    L = F.shape[-1]
    # By rows t first: what is NaN in one of them is of the gates before it alone.
    crossing = times(F, sees(L, L, reverse=True, strictly=True).astype(F.dtype)) + f
    earlier = sees(L, L, strictly=True).astype(F.dtype)
    return jnp.sum(jnp.where(sees(L, L), crossing, 0), -2)[..., None] + times(earlier, e) + w


def per_row(x: Array, rows: int) -> Array:
    """(..., L, n) -> (..., rows, n): what every step has, for each of its rows."""
    return x if rows == x.shape[-2] else jnp.repeat(x, rows // x.shape[-2], -2)


def per_step(x: Array, L: int) -> Array:
    """(..., rows, n) -> (..., L, n): summed over the rows of each step, the adjoint of `per_row`."""
    *batch, rows, n = x.shape
    return x if rows == L else jnp.sum(jnp.reshape(x, (*batch, L, rows // L, n)), -2)


def per_pair(x: Array, rows: int, columns: int) -> Array:
    """(..., L, L) -> (..., rows, columns): what every two steps have, for each row of one and column of the other."""
    return transpose(per_row(transpose(per_row(x, rows)), columns))


def per_two_steps(x: Array, L: int) -> Array:
    """(..., rows, columns) -> (..., L, L): summed over rows and columns, the adjoint of `per_pair`."""
    return transpose(per_step(transpose(per_step(x, L)), L))
