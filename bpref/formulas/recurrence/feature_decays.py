"""What is left, for each feature of the key, of what came earlier in a chunk of L steps, L a power of 2.

With Lambda_tsi = exp(sum of g_ui over s < u <= t) there are L^2 D factors. They factorise at any step between s and t:
of two neighbouring stretches of time all that the first gives to the second is a product of matrices, with f from the
border to each step of the second, e from each step of the first to the border, both at most 1 where gates are.

    O_ts = sum_i x_ti Lambda_tsi y_si           s <= t, rows x and y that belong to steps t and s

is made of halves, and of halves of these, log2 L times, until single steps are left. `early` rows see what there is
before their own step and its gate: Lambda_t-1,s, s < t. Of R, the cotangent of O, what is in the rows of the second and
the columns of the first gives

    dx = f * R (e y)      dg_u = sum_{t>=u} x * dx      in the second
    dy = e * R^T (f x)    dg_u = sum_{s<u} y * dy       in the first

and t > u where rows are early. No sum of gates is a difference of two, and each pair counts where it crosses u, once.
"""

from collections.abc import Iterator

import jax.numpy as jnp
from jax import Array, lax

from bpref.formulas.long_sums import times
from bpref.formulas.recurrence.chunks import transpose
from bpref.formulas.recurrence.decays import per_row, per_step


def overlaps(x: Array, y: Array, g: Array, early: bool = False) -> Array:
    """O (G, rows of x, rows of y), 0 where s > t; some rows for each of the L steps of g (G, L, D)."""
    G, L, D = g.shape
    x_t, y_t = (jnp.reshape(z, (G, L, z.shape[1] // L, D)) for z in (x, y))
    O = jnp.zeros((*x_t.shape[:3], y_t.shape[2]), x.dtype) if early else times(x_t, transpose(y_t))
    for (_, x_2), (y_1, _), (g_1, g_2) in reversed(list(halvings(L, x, y, g))):
        f, e = per_row(from_start(g_2, early), x_2.shape[-2]), per_row(to_end(g_1), y_1.shape[-2])
        across = times(f * x_2, transpose(e * y_1))
        O = jnp.reshape(O, (G, across.shape[1], 2, *across.shape[2:]))
        first = jnp.concatenate((O[:, :, 0], jnp.zeros_like(across)), -1)
        O = jnp.concatenate((first, jnp.concatenate((across, O[:, :, 1]), -1)), -2)
    return O[:, 0]


def pull_overlaps(R: Array, x: Array, y: Array, g: Array, early: bool = False) -> tuple[Array, Array, Array]:
    """dx, dy and dg, given R (G, rows of x, rows of y), of which nothing is read where s > t."""
    G, L, D = g.shape
    dx, dy, dg = (jnp.zeros_like(z) for z in (x, y, g))
    R = R[:, None]
    for (_, x_2), (y_1, _), (g_1, g_2) in halvings(L, x, y, g):
        rows, columns, h = x_2.shape[-2], y_1.shape[-2], g_1.shape[-2]
        f, e = per_row(from_start(g_2, early), rows), per_row(to_end(g_1), columns)
        across = R[:, :, rows:, :columns]
        dx_2 = f * times(across, e * y_1)
        dy_1 = e * times(transpose(across), f * x_2)
        dx = dx + joined(jnp.zeros_like(dx_2), dx_2)
        dy = dy + joined(dy_1, jnp.zeros_like(dy_1))
        dg = dg + joined(sum_before(per_step(y_1 * dy_1, h)), sum_from(per_step(x_2 * dx_2, h), early))
        R = jnp.stack((R[:, :, :rows, :columns], R[:, :, rows:, columns:]), 2)
        R = jnp.reshape(R, (G, 2 * R.shape[1], rows, columns))
    if early:
        return dx, dy, dg
    x_t, y_t = (jnp.reshape(z, (G, L, z.shape[1] // L, D)) for z in (x, y))
    R = jnp.reshape(R, (G, L, x_t.shape[2], y_t.shape[2]))
    own_x, own_y = times(R, y_t), times(transpose(R), x_t)
    return dx + jnp.reshape(own_x, x.shape), dy + jnp.reshape(own_y, y.shape), dg


def halvings(L: int, *arrays: Array) -> Iterator[tuple[tuple[Array, Array], ...]]:
    """For stretches of L, L/2, ..., 2 steps, the first and the second half of each array, (G, stretches, rows, n)."""
    for i in range(L.bit_length() - 1):
        halves = (jnp.reshape(x, (x.shape[0], 2**i, 2, x.shape[1] >> (i + 1), x.shape[2])) for x in arrays)
        yield tuple((x[:, :, 0], x[:, :, 1]) for x in halves)


def joined(first: Array, second: Array) -> Array:
    G, stretches, rows, n = first.shape
    return jnp.reshape(jnp.stack((first, second), 2), (G, 2 * stretches * rows, n))


def kept(f: Array, S: Array) -> Array:
    """diag(w) S, w the last row of f."""
    return f[:, -1, :, None] * S


def from_start(g: Array, early: bool = False) -> Array:
    """What is left at every step of what there is before the first; `early` before the step's own gate."""
    return jnp.exp(lax.cumsum(_shifted(g, 1) if early else g, g.ndim - 2))


def to_end(g: Array) -> Array:
    """What is left after the last step of what every step adds."""
    return jnp.exp(lax.cumsum(_shifted(g, -1), g.ndim - 2, reverse=True))


def sum_from(x: Array, early: bool = False) -> Array:
    """Over the steps t >= u, or t > u, whose products have the gate u in them."""
    return lax.cumsum(_shifted(x, -1) if early else x, x.ndim - 2, reverse=True)


def sum_before(x: Array) -> Array:
    """Over the steps s < u."""
    return lax.cumsum(_shifted(x, 1), x.ndim - 2)


def _shifted(x: Array, by: int) -> Array:
    """x one step later or, by -1, earlier; 0 comes in."""
    return lax.pad(
        x, jnp.zeros((), x.dtype), [(by, -by, 0) if axis == x.ndim - 2 else (0, 0, 0) for axis in range(x.ndim)]
    )
