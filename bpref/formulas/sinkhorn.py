"""Sinkhorn's steps in logarithms: each row of a matrix scaled to a weight, each column to one, in turn, and back.

    P_ij = a_i b_j exp(K_ij + f_i + g_j)         K, P: (..., n, m)    f, a: (..., n)    g, b: (..., m)

from g = 0, where a and b have one sum. A step makes the sum of every row a_i, and then that of every column b_j:

    f_i <- -log sum_j b_j exp(K_ij + g_j)
    g_j <- -log sum_i a_i exp(K_ij + f_i)

and it converges to where P has both. Of several steps all but the first are products: with E_ij = exp(K_ij + f_i + g_j)
where they begin, and u and v for exp of how far f and g have moved since,

    v_j <- 1 / sum_i E_ij a_i u_i        u_i <- 1 / sum_j E_ij b_j v_j

unless they move so far that what E has lost below the smallest numbers would count. Differential of one step, with the
shares V_ij = b_j exp(K_ij + f_i + g_j) of a row, which sum to 1 over j, and W_ij = a_i exp(K_ij + f_i + g_j) of a
column, over i:

    delta f_i = -sum_j V_ij (delta K_ij + delta g_j + delta b_j / b_j)
    delta g_j = -sum_i W_ij (delta K_ij + delta f_i + delta a_i / a_i)

The adjoint takes the steps back, the last first and g before f, from the cotangents of the last f and g. In the
logarithms of the weights, A_i = log a_i and B_j = log b_j,

    t_ij = W_ij dg_j        dK_ij -= t_ij        dA_i, df_i -= sum_j t_ij
    t_ij = V_ij df_i        dK_ij -= t_ij        dB_j -= sum_i t_ij        dg_j = -sum_i t_ij        df_i = 0

V and W are made again of K and of what is kept, f and g of every step: a row and a column, and not two matrices.

Numerical care: what is exponentiated is K but for its means, so to speak; log a and log b, of which P has the size,
would cost the digits that they have before the point. A weight of 0 takes no part.
"""

import jax
import jax.numpy as jnp
from jax import Array

from bpref.dtypes import widen
from bpref.formulas.log_space import LOG_ZERO, known
from bpref.formulas.matrices import product, transpose
from bpref.loops import cond, fori_loop, scan, settled


def weights(alpha: Array) -> Array:
    """softmax(alpha), also where alpha is -inf."""
    return jax.nn.softmax(known(widen(alpha)), -1)


def of_rows(K: Array, b: Array, g: Array) -> Array:
    """f."""
    return _minus_log_sum(K + g[..., None, :], b[..., None, :], -1)


def of_columns(K: Array, a: Array, f: Array) -> Array:
    """g."""
    return _minus_log_sum(K + f[..., :, None], a[..., :, None], -2)


def _minus_log_sum(v: Array, weight: Array, axis: int) -> Array:
    v = jnp.where(weight > 0, v, LOG_ZERO)
    m = jnp.max(v, axis, keepdims=True)
    return -(jnp.squeeze(m, axis) + jnp.log(jnp.sum(weight * jnp.exp(v - m), axis)))


def scaled(K: Array, f: Array, g: Array) -> Array:
    """P, but for the weights."""
    return jnp.exp(K + (f[..., :, None] + g[..., None, :]))


def weighed(a: Array, b: Array) -> Array:
    """a_i b_j."""
    return a[..., :, None] * b[..., None, :]


def end_of_steps(K: Array, a: Array, b: Array, steps: int, tolerance: float | None) -> tuple[Array, Array]:
    """f and g when they change no more."""
    together, alone = divmod(steps, TOGETHER)
    g = settled(lambda g: _together(K, a, b, g), jnp.zeros_like(b), together, tolerance)
    g = settled(lambda g: _step(K, a, b, g), g, alone, tolerance)
    f = of_rows(K, b, g)
    return f, of_columns(K, a, f)


TOGETHER, FURTHEST = 10, 20.0
"""How many steps are products with one matrix, and how far a number may move in them: what is 0 there stays nothing."""


def _step(K: Array, a: Array, b: Array, g: Array) -> Array:
    return of_columns(K, a, of_rows(K, b, g))


def _together(K: Array, a: Array, b: Array, g: Array) -> Array:
    """`TOGETHER` steps from g, by products with E where these keep within the reach of exponentials."""
    f = of_rows(K, b, g)
    E = jnp.where(weighed(a, b) > 0, scaled(K, f, g), 0)

    def step(u, _):
        v = 1 / jnp.where(b > 0, product(transpose(E), (a * u)[..., None])[..., 0], 1)
        return 1 / jnp.where(a > 0, product(E, (b * v)[..., None])[..., 0], 1), v

    u, v = scan(step, jnp.ones_like(f), length=TOGETHER)
    of_rows_moved, moved = jnp.log(u), jnp.log(v[-1])
    is_near = (jnp.max(jnp.abs(of_rows_moved), initial=0) < FURTHEST) & (jnp.max(jnp.abs(moved), initial=0) < FURTHEST)
    return cond(is_near, lambda: g + moved, lambda: fori_loop(0, TOGETHER, lambda _, g: _step(K, a, b, g), g))


def steps_taken(K: Array, a: Array, b: Array, steps: int) -> tuple[Array, Array]:
    """f and g after every step, along a new first axis."""

    def step(g, _):
        f = of_rows(K, b, g)
        g = of_columns(K, a, f)
        return g, (f, g)

    return scan(step, jnp.zeros_like(b), length=steps)[1]


def steps_back(K: Array, a: Array, b: Array, f: Array, g: Array, df: Array, dg: Array) -> tuple[Array, Array, Array]:
    """dK, dA and dB, of what `steps_taken` gave and the cotangents of its last f and g."""

    def step(carry, one):
        (df, dg, dK, dA, dB), (f, g, g_before) = carry, one
        of_column = scaled(K, f, g) * weighed(a, dg)
        of_row = jnp.sum(of_column, -1)
        df, dA = df - of_row, dA - of_row
        to_row = scaled(K, f, g_before) * weighed(df, b)
        to_column = jnp.sum(to_row, -2)
        return (jnp.zeros_like(df), -to_column, dK - (of_column + to_row), dA, dB - to_column), None

    before = jnp.concatenate([jnp.zeros_like(g[:1]), g[:-1]])
    start = df, dg, jnp.zeros_like(K), jnp.zeros_like(a), jnp.zeros_like(b)
    return scan(step, start, (f, g, before), reverse=True)[0][2:]
