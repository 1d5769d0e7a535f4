"""variance: the variance, or the standard deviation, over some axes.

Forward, with i over the n values of the reduced axes, and k = n - ddof:

    mu = 1/n sum_i x_i
    v  = 1/k sum_i (x_i - mu)^2        or its root  s = sqrt(v)           x's shape without the reduced axes

Differential: delta v = 2/k sum_i (x_i - mu) (delta x_i - delta mu), where delta mu drops out, since the deviations sum
to 0; and delta s = delta v / (2 s). Hence

    dx_i = dv 2 (x_i - mu) / k                                            x's shape
    dx_i = ds (x_i - mu) / (k s)

Kink: where all values are equal s is 0, and has no derivative; the subgradient 0 is taken there (`jax.numpy.std`
gives NaN). v has none.

Cached: x, mu, and s for the root. The deviations are one subtraction away, and in half precision would be rounded.

Numerical care: two passes, the squares of deviations; the mean of squares less the square of the mean cancels once
the mean is large. A mean of equal values may round, as that of seven times 0.1 does, and a deviation of 1e-8 has a
slope of 1/7: such a mean is put back to what they all are. Half precision is summed in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_count, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.norm.reduced import Axis, count, mean_of, numbered, require_axes, restored, without
from bpref.layer import Layer, Reals, no_params
from bpref.rule import Case, Real, Rule


class VarianceCache(NamedTuple):
    x: Float[Array, "..."]
    mean: Float[Array, "..."]
    deviation: Float[Array, "..."] | None


def variance(
    axis: Axis = None, keepdims: bool = False, ddof: int = 0, root: bool = False
) -> Layer[tuple[()], Array, Reals, VarianceCache]:
    """y = the sum of squared deviations from the mean over some axes, divided by n - ddof; or its root.

    Args:
      axis: one axis, several, or None for all of them.
      keepdims: whether y keeps the reduced axes, with size 1.
      ddof: 0 for the variance of the values themselves, 1 for the unbiased estimate of that which they are drawn from.
      root: whether y is the standard deviation instead.

    Returns:
      A layer with params `()`, x of any shape, and y of x's shape without the reduced axes. Where a standard deviation
      is 0, dx is 0.

    Raises:
      ValueError: x has no such axis, or an axis is named twice; there are not more than ddof values along them.
      TypeError: x is not floating-point.
    """
    who = "variance"
    require_flags(who, keepdims=keepdims, root=root)
    ddof = require_count(who, "ddof", ddof)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        n = count(x.shape, axes)
        if n <= ddof:
            raise ValueError(
                f"{who}: x has shape {x.shape}, expected more than ddof = {ddof} values along axes {axes}, not {n}"
            )
        wide = widen(x)
        mean = mean_of(wide, axes)
        y = jnp.sum(jnp.square(wide - mean), axes, keepdims=True) / (n - ddof)
        if root:
            is_spread = y > 0
            y = jnp.where(is_spread, jnp.sqrt(jnp.where(is_spread, y, 1)), y)
        return cast(without(y, axes, keepdims), x.dtype), VarianceCache(x, mean, y if root else None)

    def backward(params, cache, dy):
        x, mean, s = cache
        axes = numbered(axis, x.ndim)
        k = count(x.shape, axes) - ddof
        slope = restored(widen(dy), axes, keepdims) / k
        slope = 2 * slope if s is None else jnp.where(s == 0, 0, slope / jnp.where(s == 0, 1, s))
        return (), cast(slope * (widen(x) - mean), x.dtype)

    return Layer(no_params, forward, backward, who)


def reference(
    params: tuple[()], x: Array, axis: Axis = None, keepdims: bool = False, ddof: int = 0, root: bool = False
) -> Array:
    return (jnp.std if root else jnp.var)(x, axis, keepdims=keepdims, ddof=ddof)


RULE = Rule(
    "variance",
    variance,
    reference,
    cases=(
        Case("last axis", Real("N d"), {"axis": -1}, ("d",), timed={"N": 1024, "d": 2048}),
        Case(
            "unbiased, kept",
            Real("N T d"),
            {"axis": (0, 1), "keepdims": True, "ddof": 1},
            never_empty=("T",),
            least={"N": 2},
        ),
        Case("deviation of all", Real("N d"), {"root": True}, ("N", "d")),
    ),
    cite="Chan, Golub and LeVeque, 'Algorithms for computing the sample variance' (1983), equation 1.1",
    covers=("standard_deviation",),
)
