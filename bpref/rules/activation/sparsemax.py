"""sparsemax: y is the point of the simplex nearest to x, along one axis; a distribution with exact zeros.

Forward, with c along the axis, n over all others, and S_n the support, the classes that keep a share:

    tau_n = (sum_{c in S_n} x_nc - 1) / |S_n|
    y_nc  = x_nc - tau_n  where c in S_n = {c: x_nc > tau_n},  0 elsewhere      (..., C)

S_n and tau_n define each other, and only one pair fits. It is found by leaving out (Michelot): take too large a set,
compute its tau, drop whatever does not exceed it, until nothing is dropped. tau only grows and no member of S_n is ever
dropped, so the loop ends, in a few rounds that each are one pass, where the usual form sorts.

Differential: a small perturbation leaves S_n as it is, and there

    delta y_nc = delta x_nc - 1/|S_n| sum_{k in S_n} delta x_nk           c in S_n, else 0

a projection (onto the support, minus the mean), symmetric, so the adjoint is the same map:

    dx_nc = dy_nc - 1/|S_n| sum_{k in S_n} dy_nk   where c in S_n         x, y, dy, dx: one shape

Kinks: where x_nc = tau_n a class is just about to enter. It is not in S_n (the inequality is strict), and has y = 0 and
a cotangent of 0: one of the two one-sided derivatives.

Cached: the support, one byte an element; neither x nor y nor tau is needed.

Numerical care: everything is of d = x - m, m the largest, which is exact near the top and cannot overflow; members
have d > -1, so the search starts with those. x > tau is asked as |S| d > sum d - 1, without a division that would round
a tie to either side. The last tau comes from S alone. Half precision is computed in float32. -inf is a class that is
masked, NaN makes its whole row NaN.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.dtypes import cast, widen
from bpref.formulas.indexing.along_axis import require_axis, scalar_as_line
from bpref.layer import Layer, Reals, no_params
from bpref.loops import while_loop
from bpref.rule import Case, Real, Rule


class SparsemaxCache(NamedTuple):
    support: Bool[Array, "..."]


def sparsemax(axis: int = -1) -> Layer[tuple[()], Array, Reals, SparsemaxCache]:
    """y = the nearest point to x with y >= 0 and sum y = 1 along an axis.

    Args:
      axis: the one along which y sums to 1.

    Returns:
      A layer with params `()`, x of any shape with at least one element along the axis, or a scalar, which is a
      line of one, and y of x's shape.

    Raises:
      ValueError: x has no such axis, or nothing along it.
      TypeError: x is not floating-point.
    """
    who = "sparsemax"

    def forward(params, x: Float[Array, "..."]):
        along = require_axis(who, x, axis)
        z = widen(x)
        d = z - lax.stop_gradient(jnp.max(z, along, keepdims=True))
        support = _support(lax.stop_gradient(d), along)
        total, size = _sums(d, support, along)
        y = jnp.where(support, d - (total - 1) / size, 0)
        return cast(y, x.dtype), SparsemaxCache(support)

    def backward(params, cache, dy):
        v = widen(dy)
        total, size = _sums(v, cache.support, axis)
        return (), cast(jnp.where(cache.support, v - total / size, 0), dy.dtype)

    return scalar_as_line(Layer(no_params, forward, backward, who), axis)


def _sums(v: Array, members: Array, axis: int) -> tuple[Array, Array]:
    """The sum of v over the members along the axis, and how many they are."""
    total = jnp.sum(jnp.where(members, v, 0), axis, keepdims=True)
    return total, jnp.sum(members, axis, keepdims=True, dtype=v.dtype)


def _support(d: Array, axis: int) -> Array:
    """The classes that exceed their own tau; d has its largest value 0. NaN is never left out."""

    def goes_on(state):
        return jnp.any(state[1])

    def leave_out(state):
        members, _ = state
        total, size = _sums(d, members, axis)
        dropped = members & (size * d <= total - 1)
        return members & ~dropped, jnp.any(dropped)

    return while_loop(goes_on, leave_out, (~(d <= -1), jnp.array(True)))[0]


def reference(params: tuple[()], x: Array, axis: int = -1) -> Array:
    """Algorithm 1 of the paper: sort, and find the longest prefix that exceeds its own threshold."""
    z = jnp.moveaxis(x, axis, -1)
    falling = -jnp.sort(-z, -1)
    k = jnp.broadcast_to(jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype), z.shape)
    sums = jnp.cumsum(falling, -1)
    size = jnp.sum(1 + k * falling > sums, -1, keepdims=True)
    tau = (jnp.take_along_axis(sums, size - 1, -1) - 1) / size.astype(z.dtype)
    return jnp.moveaxis(jnp.where(z > tau, z - tau, 0), -1, axis)


RULE = Rule(
    "sparsemax",
    sparsemax,
    reference,
    cases=(
        Case("", Real("N C", points=(1.0, 1.0, 0.0)), never_empty=("C",), timed={"N": 128, "C": 1024}),
        Case("nearly uniform", Real("N C", -0.01, 0.01), never_empty=("C",)),
        Case("another axis", Real("B C T"), {"axis": 1}, never_empty=("C",)),
    ),
    cite="arXiv:1602.02068, equation 2, algorithm 1 and equation 15",
)
