"""soft_dtw: how far apart two sequences are when time may run at any pace in either, softly over all paces.

Of each example, D_ij is what it costs to match entry i of a sequence of n with entry j of one of m. A path matches its
way from (1, 1) to (n, m), each time one further in either or in both, and costs the sum of its D. With gamma > 0, and p
for a path,

    J = -gamma log sum_p exp(-cost_p / gamma)                             D: (B, n, m)    J: (B,)

which for gamma to 0 is the least cost, dynamic time warping.

Forward, with d = D / gamma and R_ij the same of the paths to (i, j), in units of gamma:

    R_ij = d_ij - log sum_c exp(-R_c)        R_11 = d_11        J = gamma R_nm

over the three cells c before (i, j): above, to the left, and both; R is infinite outside. Those cells that have one i +
j are computed together, n + m - 1 steps for all.

Differential: delta R is that of d, and the mean of its three delta R before, weighed by what each is of the sum,

    delta R_ij = delta d_ij + sum_c w_ijc delta R_c        w_ijc = exp(-R_c) / sum_k exp(-R_k)

The adjoint goes back from E_nm = 1, E being the derivative of R_nm by R_ij: each cell hands it on to the three before,

    E_c += w_ijc E_ij        dD_ij = dJ E_ij                              (B, n, m)

since gamma and 1 / gamma cancel. E_ij is the probability that a path goes through (i, j), where a path has the weight
exp(-cost / gamma). It is computed by the same steps, the last first.

With lengths, n and m are those of the example: J = gamma R where its paths end, its E begins there, and no path leads
from the cells behind it to the end, so that dD = 0 in them.

Cached: R alone, and lengths that are given. Autodiff keeps the three terms of each sum and what they are made of.

Numerical care: half precision is computed in float32. The three w are divided by their sum, so that what a cell hands
on is what it has, and E does not drift. Cuturi and Blondel have w from what R_ij was made of, exp(R_ij - d_ij - R_c),
of which nothing is left where R is beyond 1 / round-off, and which do not add up to 1 long before. What lies outside is
1e30, whose exponential is 0. Behind the lengths D counts as 0, whatever it is: E would be 0 times a NaN there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, PyTree

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.lengths import used, within
from bpref.formulas.log_space import LOG_ZERO
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.shape_keeper import shape_keeper
from bpref.layer import Layer, Reals, no_params
from bpref.loops import scan
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Integer, Interval, Real, Rule, called_as

OUTSIDE = -LOG_ZERO


class PairsWithLengths(NamedTuple):
    D: Float[Array, "B n>0 m>0"]
    lengths: Int[Array, " B"]
    other_lengths: Int[Array, " B"]


class SoftDtwCache(NamedTuple):
    R: Float[Array, "B n m"]
    ends: tuple[Int[Array, " B"], Int[Array, " B"]] | None
    like: Float[Array, "0 B n m"]


def soft_dtw(gamma: float = 1.0, reduction: str = "none") -> Layer[tuple[()], PyTree, Reals, SoftDtwCache]:
    """J = the soft least cost of matching two sequences in order, of what it costs to match any two of their entries.

    Args:
      gamma: how soft the least is, in units of D.
      reduction: "none" for one number for each example, their "mean" or "sum", or "batch_mean", which is the mean.

    Returns:
      A layer with params `()`, x D `(B, n, m)`, such as the squared distances of n entries from m others, and y J
      `(B,)`, or `()`, in at least float32. It may be negative. x may be a tuple `(D, lengths, other_lengths)` too,
      integers `(B,)`: of each pair how many of the n and of the m entries there are. Where one has none there is no
      path: J = +inf, and a gradient of 0.

    Raises:
      ValueError: gamma is not positive; n or m is 0; lengths are not one for each pair; the reduction is none of these;
        a mean, and B is 0.
      TypeError: D is not floating-point; lengths are not integers.
    """
    who = "soft_dtw"
    gamma, J_of = require_positive(who, "gamma", gamma), require_reduction(who, reduction)

    def forward(params, x: Float[Array, "B n>0 m>0"] | PairsWithLengths):
        D, *lengths = x if isinstance(x, PairsWithLengths) else (x,)
        J_of.divisor(D.shape[:1])
        if not lengths:
            R = _soft_costs(widen(D) / gamma)
            return J_of.of(gamma * R[:, -1, -1]), SoftDtwCache(R, None, shape_keeper(D))
        i, j = ends = within(lengths[0], D.shape[1]), within(lengths[1], D.shape[2])
        is_inside = used(i, D.shape[1])[:, :, None] & used(j, D.shape[2])[:, None, :]
        R = _soft_costs(jnp.where(is_inside, widen(D) / gamma, 0))
        at_end = jax.vmap(lambda R, i, j: R[i, j])(R, jnp.maximum(i - 1, 0), jnp.maximum(j - 1, 0))
        J = jnp.where((i > 0) & (j > 0), gamma * at_end, jnp.inf)
        return J_of.of(J), SoftDtwCache(R, ends, shape_keeper(D))

    def backward(params, cache, dJ):
        R, ends, like = cache
        E = _passes(R, ends)
        weight = jnp.broadcast_to(J_of.at_terms(dJ, E.shape[:1]), E.shape[:1])
        dD = cast(weight[:, None, None] * E, like.dtype)
        return (), dD if ends is None else (dD, None, None)

    return Layer(no_params, forward, backward, who)


def _soft_costs(d: Array) -> Array:
    """R: (B, n, m)."""
    B, n, m = d.shape

    def step(carry, one):
        (R_1, R_2), (d_k, is_first) = carry, one
        terms, least = _terms(R_1, R_2)
        R = d_k + jnp.where(is_first, 0, least - jnp.log(sum(terms)))
        return (R, R_1), R

    first = lax.broadcasted_iota(jnp.int32, (n + m - 1, 1, n), 0) == 0
    outside = jnp.full((B, n), OUTSIDE, d.dtype)
    return _straight(scan(step, (outside, outside), (_skewed(d), first))[1], m)


def _passes(R: Array, ends: tuple[Array, Array] | None) -> Array:
    """E: (B, n, m); of paths that end at (n, m), or each example's at its own `ends`."""
    B, n, m = R.shape
    i, j = ends or (jnp.full(B, n, jnp.int32), jnp.full(B, m, jnp.int32))
    is_row = (lax.broadcasted_iota(jnp.int32, (B, n), 1) == i[:, None] - 1) & (j > 0)[:, None]
    begins = lax.broadcasted_iota(jnp.int32, (n + m - 1, B, 1), 0) == (i + j)[None, :, None] - 2

    def step(carry, one):
        (E, E_1), (cells, begins) = carry, one
        E = jnp.where(begins & is_row, 1, E)
        terms, _ = _terms(*cells)
        share = E / sum(terms)
        left, above, both = (term * share for term in terms)
        return (E_1 + left + _up(above), _up(both)), E

    skewed = jnp.pad(_skewed(R), ((2, 0), (0, 0), (0, 0)), constant_values=OUTSIDE)
    nothing = jnp.zeros((B, n), R.dtype)
    return _straight(scan(step, (nothing, nothing), ((skewed[1:-1], skewed[:-2]), begins), reverse=True)[1], m)


def _terms(R_1: Array, R_2: Array) -> tuple[list[Array], Array]:
    """exp(-R_c), times exp of their least R_c, which is beside: of the cells to the left, above, and both.

    Args:
      R_1, R_2: of the cells with an i + j that is one less, and two less, by i.
    """
    cells = R_1, _down(R_1), _down(R_2)
    least = lax.stop_gradient(jnp.minimum(jnp.minimum(*cells[:2]), cells[2]))
    return [jnp.exp(least - R_c) for R_c in cells], least


def _down(v: Array) -> Array:
    """Each element at the next i, and what is outside at the first."""
    return jnp.pad(v, ((0, 0), (1, 0)), constant_values=OUTSIDE)[:, :-1]


def _up(v: Array) -> Array:
    return jnp.pad(v, ((0, 0), (0, 1)))[:, 1:]


def _skewed(v: Array) -> Array:
    """(n + m - 1, B, n): the elements (i, j) of v, (B, n, m), at (i + j, i); where there is none, what is outside."""
    B, n, m = v.shape
    rows = jnp.pad(v, ((0, 0), (0, 0), (0, n)), constant_values=OUTSIDE).reshape(B, n * (m + n))
    return rows[:, : n * (m + n - 1)].reshape(B, n, m + n - 1).transpose(2, 0, 1)


def _straight(v: Array, m: int) -> Array:
    """(B, n, m): what `_skewed` made `v` of."""
    _, B, n = v.shape
    rows = v.transpose(1, 2, 0).reshape(B, n * (m + n - 1))
    return jnp.pad(rows, ((0, 0), (0, n))).reshape(B, n, m + n)[:, :, :m]


@called_as(soft_dtw)
def reference(params: tuple[()], x: Array | tuple[Array, Array, Array], gamma, reduction) -> Array:
    """Cell by cell, a row after the other."""
    D, *lengths = x if isinstance(x, tuple) else (x,)

    def of_one(D, *lengths):
        far = jnp.full((), 1e30, D.dtype)

        def row(carry, d):
            above, corner = carry

            def cell(left, one):
                d_ij, up, up_left = one
                R = d_ij - gamma * jax.nn.logsumexp(jnp.stack([up_left, up, left]) / -gamma)
                return R, R

            R = lax.scan(cell, far, (d, above, jnp.concatenate([corner[None], above[:-1]])))[1]
            return (R, far), R

        _, R = lax.scan(row, (jnp.full_like(D[0], 1e30), jnp.zeros((), D.dtype)), D)
        if not lengths:
            return R[-1, -1]
        n, m = (jnp.clip(v, 0, size) for v, size in zip(lengths, D.shape, strict=True))
        return jnp.where((n > 0) & (m > 0), R[n - 1, m - 1], jnp.inf)

    return naive_reduction(jax.vmap(of_one)(D, *lengths), reduction)


RULE = Rule(
    "soft_dtw",
    soft_dtw,
    reference,
    cases=(
        Case(
            "",
            Real("B n m", 0.0, 4.0),
            {"gamma": Interval(0.3, 3.0, 1.0)},
            ("n", "m"),
            fixed={"B": 3},
            timed={"B": 16, "n": 64, "m": 64},
        ),
        Case("mean, sharp, of either sign", Real("B n m"), {"gamma": 0.25, "reduction": "mean"}, ("B", "n", "m")),
        Case(
            "lengths",
            (Real("B n m"), Integer("B", 0, "n", points=(99, 1)), Integer("B", 0, "m", points=(99, 0))),
            {"gamma": 0.5},
            ("n", "m"),
        ),
    ),
    cite="Cuturi and Blondel, 'Soft-DTW: a differentiable loss function for time-series' (2017), arXiv:1703.01541, "
    "algorithms 1 and 2",
    covers=("dynamic time warping", "dtw"),
)
