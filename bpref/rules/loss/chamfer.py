"""chamfer: how far two sets of points are apart, each point from the other set's nearest.

The mean is that of all terms, one for each example: what `reduction="none"` gives.

Forward, for sets x of shape (N, P, D) and y of shape (N, Q, D), n the example:

    i_np = the q for which |x_np - y_nq| is least,   j_nq = the p for which |y_nq - x_np| is
    d_np = x_np - y_{n, i_np},   e_nq = y_nq - x_{n, j_nq}                (N, P, D), (N, Q, D)
    l_n  = 1/P sum_p |d_np|^2 + 1/Q sum_q |e_nq|^2                        or, not `squared`, of |d| and |e|
    J    = 1/N sum_n l_n                                                  J: ()

Differential, with i and j constant, as they are wherever one point is the nearest:

    delta l_n = 1/P sum_p 2 d_np . delta d_np + 1/Q sum_q 2 e_nq . delta e_nq
    delta d_np = delta x_np - delta y_{n, i_np},   delta e_nq = delta y_nq - delta x_{n, j_nq}

and with u = d / |d| in the place of 2 d, e likewise, where not squared. The sweep starts with dJ. The factor of each
perturbation, with g_n = dJ / N, or another `reduction`'s (`bpref.formulas.loss.terms`):

    dd_np = g_n / P 2 d_np,   de_nq = g_n / Q 2 e_nq
    dx_np = dd_np - sum_q [j_nq = p] de_nq                                (N, P, D)
    dy_nq = de_nq - sum_p [i_np = q] dd_np                                (N, Q, D)

Ties: of several points that are equally near, the first one's is the whole cotangent; l has a kink there. At d = 0 the
derivative of |d| is taken as 0.

Cached: both sets, and i and j in the smallest integers. None of the P Q distances is needed again.

Numerical care: distances are sums of squares of differences, since |x|^2 - 2 x . y + |y|^2 loses the nearest where
both sets are far from the origin. Half precision is computed and summed in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt

from bpref.checks.hyperparameters import require_flags
from bpref.dtypes import cast, widen, widen_integers
from bpref.formulas.indexing.indices import add_rows, placed
from bpref.formulas.loss.terms import require_reduction
from bpref.formulas.norm.unit_vectors import length, unit
from bpref.layer import Layer, Reals, no_params
from bpref.naive.reduction import naive_reduction
from bpref.rule import Case, Real, Rule


class PointSets(NamedTuple):
    prediction: Float[Array, "N P>0 D"]
    target: Float[Array, "N Q>0 D"]


class ChamferCache(NamedTuple):
    x: Float[Array, "N P D"]
    y: Float[Array, "N Q D"]
    nearest_to_x: UInt[Array, "N P"]
    nearest_to_y: UInt[Array, "N Q"]


def chamfer(
    squared: bool = True, reduction: str = "mean"
) -> Layer[tuple[()], tuple[Array, Array], Reals, ChamferCache]:
    """J = mean over the examples of mean_p min_q |x_p - y_q|^2 + mean_q min_p |y_q - x_p|^2.

    Args:
      squared: whether distances are squared, or just distances.
      reduction: "mean" of all terms, their "sum", "none" for the terms themselves, or "batch_mean", their sum divided
        by the size of the first axis, N.

    Returns:
      A layer with params `()`, x `(prediction, target)`, `(N, P, D)` and `(N, Q, D)`, and y the scalar J, or the terms
      (N,), in at least float32. Both have a cotangent.

    Raises:
      ValueError: the shapes do not fit, or a set is empty; a mean is over no examples; the reduction is none of these.
      TypeError: x is no pair; the points are not floating-point, or have two dtypes.
    """
    who = "chamfer"
    require_flags(who, squared=squared)
    J_of = require_reduction(who, reduction)

    def forward(params, sets: PointSets):
        x, y = map(widen, sets)
        apart = jnp.sum((x[:, :, None] - y[:, None]) ** 2, -1)
        to_x, to_y = placed(jnp.argmin(apart, 2), y.shape[1]), placed(jnp.argmin(apart, 1), x.shape[1])
        d, e = x - _nearest(y, to_x), y - _nearest(x, to_y)
        J = J_of.of(jnp.mean(size(d), 1) + jnp.mean(size(e), 1))
        return J, ChamferCache(*sets, to_x, to_y)

    def backward(params, cache, dJ):
        x, y, to_x, to_y = cache
        g = J_of.at_terms(dJ, (len(x),), below=2)
        wide_x, wide_y = widen(x), widen(y)
        dd = g / x.shape[1] * slope(wide_x - _nearest(wide_y, to_x))
        de = g / y.shape[1] * slope(wide_y - _nearest(wide_x, to_y))
        return (), (cast(_less(dd, to_y, de), x.dtype), cast(_less(de, to_x, dd), y.dtype))

    def size(d):
        return jnp.sum(d * d, -1) if squared else length(d)[..., 0]

    def slope(d):
        return 2 * d if squared else unit(d)[0]

    return Layer(no_params, forward, backward, who)


def _in_all(indices: Array, n: int) -> Array:
    """Indices into one example's n points as those into all examples' points, one after the other."""
    N = len(indices)
    return jnp.arange(N, dtype=jnp.int32)[:, None] * n + widen_integers(indices)


def _nearest(y: Array, indices: Array) -> Array:
    """The points of y at the indices of each example."""
    N, n, D = y.shape
    return jnp.take(y.reshape(N * n, D), _in_all(indices, n), axis=0).reshape(*indices.shape, D)


def _less(d: Array, indices: Array, e: Array) -> Array:
    """d without what e adds up to at each of its points."""
    N, n, D = d.shape
    return add_rows(d.reshape(N * n, D), _in_all(indices, n), -e, 0).reshape(d.shape)


def reference(params: tuple[()], sets: tuple[Array, Array], squared: bool = True, reduction: str = "mean") -> Array:
    x, y = sets

    def distances(x, y):
        """From each point of x to the first of the nearest of y."""
        apart = jnp.sum((x[:, :, None] - y[:, None]) ** 2, -1)
        least = jnp.take_along_axis(apart, jnp.argmin(apart, -1, keepdims=True), -1)[..., 0]
        return least if squared else jnp.where(least > 0, jnp.sqrt(jnp.where(least > 0, least, 1)), 0)

    return naive_reduction(jnp.mean(distances(x, y), 1) + jnp.mean(distances(y, x), 1), reduction)


RULE = Rule(
    "chamfer",
    chamfer,
    reference,
    cases=(
        Case(
            "squared distances",
            (Real("N P D"), Real("N Q D")),
            never_empty=("N", "P", "Q"),
            timed={"N": 4, "P": 512, "Q": 512, "D": 3},
        ),
        Case(
            "distances, no reduction",
            (Real("N P D", points=(1.0, 2.0)), Real("N Q D", points=(1.0, 2.0))),
            {"squared": False, "reduction": "none"},
            never_empty=("P", "Q"),
            fixed={"D": 2},
        ),
    ),
    cite="Fan, Su and Guibas, 'A point set generation network for 3D object reconstruction', arXiv:1612.00603, "
    "section 4.1",
    covers=("chamfer distance", "pytorch3d.loss.chamfer_distance"),
)
