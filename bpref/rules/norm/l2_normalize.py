"""l2_normalize: x divided by its length along one axis, or by eps where it is shorter than that.

Forward, with i along the axis and n for all other axes:

    l_n = sqrt(sum_i x_ni^2)      m_n = max(l_n, eps)                     size 1 along the axis
    y_ni = x_ni / m_n                                                     x's shape

Differential: where l > eps, delta l_n = sum_i y_ni delta x_ni, the change along the direction that x points in, and

    delta y_ni = (delta x_ni - y_ni sum_j y_nj delta x_nj) / m_n

which is the change across that direction; the map is symmetric, and is its own transpose. Elsewhere m is constant and
delta y = delta x / eps. Hence, with u = 1 where l > eps and 0 elsewhere,

    dx_ni = (dy_ni - u_n y_ni sum_j y_nj dy_nj) / m_n                     x's shape

Kink: at l = eps the derivative jumps, and u = 0 is taken. At x = 0 the length has no derivative, but it takes no part
there: y = 0 and dx = dy / eps are defined.

Cached: x, and m, one number for each vector, which says what u is as well. y would do in place of x, but in half
precision it is rounded.

Numerical care: lengths are found in float32 at least, where the squares overflow beyond 1e19 and lose their digits
below 1e-19. Nothing is divided by l, so that nothing is NaN at 0. Where dy is nearly along x the two terms of dx
cancel, as they do in any form of it: what is left has the rounding of dy.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.reduced import require_axes
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Interval, Real, Rule


class L2NormalizeCache(NamedTuple):
    x: Float[Array, "..."]
    length: Float[Array, "..."]


def l2_normalize(axis: int = -1, eps: float = 1e-12) -> Layer[tuple[()], Array, Reals, L2NormalizeCache]:
    """y = x / max(|x|, eps), with |x| the Euclidean length along an axis.

    Args:
      axis: the axis along which the vectors lie.
      eps: the length below which x is divided by eps instead.

    Returns:
      A layer with params `()`, x of any shape and y of the same. At x = 0 y is 0, and dx is dy / eps.

    Raises:
      ValueError: eps is not positive; x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "l2_normalize"
    eps = require_positive(who, "eps", eps)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        wide = widen(x)
        squares = jnp.sum(jnp.square(wide), axes, keepdims=True)
        is_long = squares > eps**2
        length = jnp.where(is_long, jnp.sqrt(jnp.where(is_long, squares, 1)), eps)
        return cast(wide / length, x.dtype), L2NormalizeCache(x, length)

    def backward(params, cache, dy):
        x, length = cache
        axes = require_axes(who, axis, x)
        dy = widen(dy)
        y = widen(x) / length
        along = jnp.sum(y * dy, axes, keepdims=True)
        dx = (dy - y * jnp.where(length > eps, along, 0)) / length
        return (), cast(dx, x.dtype)

    return Layer(no_params, forward, backward, who, decoding=each_position if axis == -1 else None)


def reference(params: tuple[()], x: Array, axis: int = -1, eps: float = 1e-12) -> Array:
    import optax

    length = optax.safe_norm(x, eps, axis=axis, keepdims=True)
    return x / length


RULE = Rule(
    "l2_normalize",
    l2_normalize,
    reference,
    cases=(
        Case("last axis", Real("N d"), {"eps": Interval(1e-12, 0.5, 1e-12)}, timed={"N": 2048, "d": 512}),
        Case("short vectors", Real("N d", -1.0, 1.0), {"eps": Interval(0.5, 8.0, 2.9)}),
        Case("channels", Real("N C T"), {"axis": 1}),
    ),
    cite="torch.nn.functional.normalize; Ranjan et al., arXiv:1703.09507, section 3",
)
