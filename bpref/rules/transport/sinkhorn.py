"""sinkhorn: the plan P that moves weights a to weights b at least cost C, and as evenly as epsilon asks.

Forward, with a = softmax(alpha) of the n rows and b = softmax(beta) of the m columns, P has row sums a and column sums
b and the smallest

    sum_ij P_ij C_ij + epsilon P_ij log P_ij                              C, P: (..., n, m)

of all that do. With one number f_i for each row and g_j for each column, which Sinkhorn's steps find (see
`bpref.formulas.sinkhorn`), it is

    P_ij = a_i b_j exp(K_ij + f_i + g_j)        K_ij = -C_ij / epsilon

Differential. P changes with K and the weights, and with f and g as the sums ask; with h_i and k_j for all that is of a
row and of a column, f_i + log a_i and g_j + log b_j,

    delta P_ij = P_ij (delta K_ij + delta h_i + delta k_j)
    sum_j delta P_ij = delta a_i        sum_i delta P_ij = delta b_j

The adjoint sum_ij dP_ij delta P_ij. Let u_i and v_j solve the transposed system, whose matrix of P and its sums is
symmetric: u_i is the mean of dP_ij - v_j over row i, weighed by P, and v_j that of dP_ij - u_i over column j,

    u_i = sum_j P_ij (dP_ij - v_j) / a_i        v_j = sum_i P_ij (dP_ij - u_i) / b_j

or, of all sums of a row's number and a column's, u_i + v_j is the one nearest to dP where P lies. What is left of dP is
K's, and the weights have u and v:

    dK_ij = P_ij (dP_ij - u_i - v_j)        dC = -dK / epsilon            (..., n, m)
    dalpha_i = a_i (u_i - sum_k a_k u_k)                                  (..., n)
    dbeta_j = b_j (v_j - sum_k b_k v_k)                                   (..., m)

The last two are softmax's adjoint, which leaves out the constant that u and v may exchange. Taken in turn, u and v
converge as the forward's steps do: they are these steps, linear at the end.

Unrolled, the same adjoint of what `steps` steps give, however far from the end: with D_ij = P_ij dP_ij for dK so far,
the steps are taken back one by one from df_i = sum_j D_ij and dg_j = sum_i D_ij (see `bpref.formulas.sinkhorn`). Each
subtracts from the rows what the columns have taken, and so on: with many steps it is the system of u and v, solved in
turn. It is the derivative to have where few steps are a layer's own and not an approximation.

Cached: P alone; its sums are a and b. Unrolled: C, alpha and beta, and f and g of every step, (n + m) numbers a step,
where autodiff keeps the n m exponentials of each.

Numerical care: half precision is computed in float32, and sums in logarithms: C may be any multiple of epsilon. The
steps needed grow as the range of C over epsilon, for the backward as for the forward: where `steps` do not suffice P
has the sums b and not quite a, and the gradient is that of a plan with just the sums that P has. Rows and columns
without weight, alpha or beta at -inf, take no part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from bpref.checks.hyperparameters import require_flags, require_positive, require_positive_or_none, require_size
from bpref.dtypes import cast, widen
from bpref.formulas.matrices import product, transpose
from bpref.formulas.sinkhorn import end_of_steps, scaled, steps_back, steps_taken, weighed, weights
from bpref.layer import Layer, Reals, no_params
from bpref.loops import settled
from bpref.rule import Case, Interval, Real, Rule, called_as


class Transport(NamedTuple):
    """What is moved, and where: costs, and the logarithms of the weights of rows and columns, up to a constant each."""

    C: Float[Array, "*b n>0 m>0"]
    alpha: Float[Array, "*b n"]
    beta: Float[Array, "*b m"]


class SinkhornCache(NamedTuple):
    P: Float[Array, "*b n m"]


class UnrolledSinkhornCache(NamedTuple):
    x: Transport
    f: Float[Array, "steps *b n"]
    g: Float[Array, "steps *b m"]


def sinkhorn(
    epsilon: float = 0.1, steps: int = 100, tolerance: float | None = None, unrolled: bool = False
) -> Layer[tuple[()], tuple[Array, Array, Array], Reals, SinkhornCache | UnrolledSinkhornCache]:
    """The plan of optimal transport with entropy, by Sinkhorn's steps, differentiated at its end or step by step.

    Args:
      epsilon: how much evenness is worth, in units of C.
      steps: how many there are at most, forward and backward; all of them are taken where they are unrolled.
      tolerance: the steps end when no g changes by more than this times the largest; `None` for four units of
        round-off.
      unrolled: whether the gradient is that of the steps that were taken, and not of the plan that they lead to.

    Returns:
      A layer with params `()`, x `Transport(C, alpha, beta)`: `(*b, n, m)`, `(*b, n)` and `(*b, m)`, where
      softmax(alpha) and softmax(beta) are the weights, and y is P `(*b, n, m)`, whose elements sum to 1.

    Raises:
      ValueError: shapes do not fit; n or m is 0; epsilon or tolerance is not positive, or steps no positive integer.
      TypeError: x is no such tuple; C is not floating-point, or alpha or beta not of C's dtype.
    """
    who = "sinkhorn"
    epsilon, steps = require_positive(who, "epsilon", epsilon), require_size(who, "steps", steps)
    tolerance = require_positive_or_none(who, "tolerance", tolerance)
    require_flags(who, unrolled=unrolled)

    def forward(params, x: Transport):
        K, a, b = widen(x.C) / -epsilon, weights(x.alpha), weights(x.beta)
        if unrolled:
            f, g = steps_taken(K, a, b, steps)
            P = weighed(a, b) * scaled(K, f[-1], g[-1])
            return cast(P, x.C.dtype), UnrolledSinkhornCache(x, f, g)
        P = weighed(a, b) * scaled(K, *end_of_steps(K, a, b, steps, tolerance))
        return cast(P, x.C.dtype), SinkhornCache(P)

    def backward(params, cache, dy):
        dP = widen(dy)
        if unrolled:
            (C, alpha, beta), f, g = cache
            K, a, b = widen(C) / -epsilon, weights(alpha), weights(beta)
            dK = weighed(a, b) * scaled(K, f[-1], g[-1]) * dP
            df, dg = jnp.sum(dK, -1), jnp.sum(dK, -2)
            of_steps = steps_back(K, a, b, f, g, df, dg)
            dK, dA, dB = (now + before for now, before in zip((dK, df, dg), of_steps, strict=True))
        else:
            P = cache.P
            a, b = jnp.sum(P, -1), jnp.sum(P, -2)
            u, v = _nearest_sum(P, dP, a, b, steps, tolerance)
            dK, dA, dB = P * (dP - u[..., :, None] - v[..., None, :]), a * u, b * v
        of_weights = (d - w * jnp.sum(d, -1, keepdims=True) for d, w in ((dA, a), (dB, b)))
        return (), tuple(cast(d, dy.dtype) for d in (dK / -epsilon, *of_weights))

    return Layer(no_params, forward, backward, who)


def _nearest_sum(P: Array, dP: Array, a: Array, b: Array, steps: int, tolerance: float | None) -> tuple[Array, Array]:
    """u and v."""
    by_row, by_column = (P / jnp.where(s == 0, 1, s) for s in (a[..., :, None], b[..., None, :]))
    mean_of_row, mean_of_column = jnp.sum(by_row * dP, -1), jnp.sum(by_column * dP, -2)

    def of_v(v):
        return mean_of_row - product(by_row, v[..., None])[..., 0]

    def step(v):
        return mean_of_column - product(transpose(by_column), of_v(v)[..., None])[..., 0]

    v = settled(step, jnp.zeros_like(b), steps, tolerance)
    return of_v(v), v


@called_as(sinkhorn)
def reference(params: tuple[()], x: tuple[Array, Array, Array], epsilon, steps, **how) -> Array:
    """Sinkhorn's own form: the matrix exp(-C / epsilon) times a vector, and its transposed times one."""
    C, alpha, beta = x
    E, a, b = jnp.exp(-C / epsilon), jax.nn.softmax(alpha, -1), jax.nn.softmax(beta, -1)

    def step(v, _):
        u = a / jnp.einsum("...ij,...j->...i", E, v)
        v = b / jnp.einsum("...ij,...i->...j", E, u)
        return v, u

    v, u = lax.scan(step, b, length=steps)
    return u[-1][..., :, None] * E * v[..., None, :]


_WEIGHTS = Real("B n", -1.0, 1.0), Real("B m", -1.0, 1.0)

# From one row, or to one column, there is one plan: its gradient is 0, and only its rounding could be compared.
_LEAST = {"n": 2, "m": 2}

RULE = Rule(
    "sinkhorn",
    sinkhorn,
    reference,
    cases=(
        Case(
            "at its end",
            (Real("B n m", 0.0, 1.0), *_WEIGHTS),
            {"epsilon": Interval(0.3, 2.0, 0.5), "steps": 60},
            least=_LEAST,
            timed={"B": 16, "n": 64, "m": 64},
        ),
        Case(
            "three steps unrolled",
            (Real("n m"), Real("n"), Real("m")),
            {"epsilon": Interval(0.5, 2.0, 1.0), "steps": 3, "unrolled": True},
            least=_LEAST,
        ),
    ),
    cite="Cuturi, 'Sinkhorn distances: lightspeed computation of optimal transport' (2013), arXiv:1306.0895, algorithm "
    "1; the adjoint: Luise, Rudi, Pontil and Ciliberto (2018), arXiv:1805.11897, section 4",
    covers=("entropic optimal transport", "optimal transport plan", "doubly stochastic"),
)
