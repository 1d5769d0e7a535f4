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

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.formulas.chunks import sees
from bpref.formulas.long_sums import times


class Decays(NamedTuple):
    between: Float[Array, "G L L"]
    from_start: Float[Array, "G L 1"]
    to_end: Float[Array, "G L 1"]
    whole: Float[Array, "G 1 1"]


def decays(g: Array) -> Decays:
    """The factors of logarithms (G, L, 1)."""
    L = g.shape[-2]
    sums = jnp.cumsum(jnp.where(sees(L, L, strictly=True), g, 0), -2)
    between = jnp.where(sees(L, L), jnp.exp(sums), 0)
    from_start = jnp.exp(jnp.cumsum(g, -2))
    return Decays(between, from_start, between[:, -1, :, None], from_start[:, -1:])


def decays_to_end(g: Array) -> tuple[Array, Array]:
    """`to_end` and `whole` alone, of logarithms (G, L, 1)."""
    left = lax.cumsum(g, g.ndim - 2, reverse=True)
    return jnp.exp(jnp.concatenate([left[:, 1:], jnp.zeros_like(left[:, :1])], -2)), jnp.exp(left[:, :1])


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
