"""l2_normalize: x divided by its length along one axis, or by eps where it is shorter than that.

Forward, with i along the axis and n for all other axes:

    l_n = sqrt(sum_i x_ni^2), or the p-norm of `vector_norm`; m_n = max(l_n, eps)         size 1 along the axis
    y_ni = x_ni / m_n                                                     x's shape

Differential: where l > eps, delta l_n = sum_i s_ni delta x_ni, with s_ni = y_ni the direction that x points in, and

    s_ni = sign(x_ni) (|x_ni| / l_n)^(p-1)        p = 1: sign(x_ni)      p = +-inf: sign(x_ni) [|x_ni| = l_n] / c_n

of other p, c_n how many attain l_n. So

    delta y_ni = (delta x_ni - y_ni sum_j s_nj delta x_nj) / m_n

which for p = 2 is the change across that direction; then the map is symmetric, and is its own transpose. Elsewhere m
is constant and delta y = delta x / eps. Hence, with u = 1 where l > eps and 0 elsewhere,

    dx_ni = (dy_ni - u_n s_ni sum_j y_nj dy_nj) / m_n                     x's shape

Kink: at l = eps the derivative jumps, and u = 0 is taken. At x = 0 the length has no derivative, but it takes no part
there: y = 0 and dx = dy / eps are defined. About an x_ni of 0 for p = 1 and below, see `vector_norm`.

Cached: x, and m, one number for each vector, which says what u is as well. y would do in place of x, but in half
precision it is rounded.

Numerical care: lengths are found in float32 at least, where the squares overflow beyond 1e19 and lose their digits
below 1e-19; powers other than squares are of |x| / max |x|. Nothing is divided by l, so that nothing is NaN at 0. Where
dy is nearly along x the two terms of dx cancel, as they do in any form of it: what is left has the rounding of dy.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_positive
from bpref.dtypes import cast, widen
from bpref.formulas.norm.p_norms import p_length, p_slope, require_p
from bpref.formulas.norm.reduced import require_axes, require_values
from bpref.layer import Layer, Reals, each_position, no_params
from bpref.rule import Case, Interval, Real, Rule
from bpref.rules.reduction import vector_norm


class L2NormalizeCache(NamedTuple):
    x: Float[Array, "..."]
    length: Float[Array, "..."]


def l2_normalize(axis: int = -1, eps: float = 1e-12, p: float = 2) -> Layer[tuple[()], Array, Reals, L2NormalizeCache]:
    """y = x / max(|x|, eps), with |x| the Euclidean length along an axis, or another p-norm.

    Args:
      axis: the axis along which the vectors lie.
      eps: the length below which x is divided by eps instead.
      p: which norm is the length, a number, `math.inf` or `-math.inf`, as in `vector_norm`.

    Returns:
      A layer with params `()`, x of any shape and y of the same. At x = 0 y is 0, and dx is dy / eps.

    Raises:
      ValueError: eps is not positive; p is no number, or NaN; x has no such axis.
      TypeError: x is not floating-point.
    """
    who = "l2_normalize"
    eps = require_positive(who, "eps", eps)
    p = require_p(who, p)

    def forward(params, x: Float[Array, "..."]):
        axes = require_axes(who, axis, x)
        if p < 0:
            require_values(who, x, axes)
        wide = widen(x)
        length = jnp.maximum(p_length(wide, p, axes), eps)
        return cast(wide / length, x.dtype), L2NormalizeCache(x, length)

    def backward(params, cache, dy):
        x, length = cache
        axes = require_axes(who, axis, x)
        dy = widen(dy)
        wide = widen(x)
        y = wide / length
        s = y if p == 2 else p_slope(wide, length, p, axes)
        along = jnp.sum(y * dy, axes, keepdims=True)
        dx = (dy - s * jnp.where(length > eps, along, 0)) / length
        return (), cast(dx, x.dtype)

    return Layer(no_params, forward, backward, who, decoding=each_position if axis == -1 else None)


def reference(params: tuple[()], x: Array, axis: int = -1, eps: float = 1e-12, p: float = 2) -> Array:
    import optax

    if p == 2:
        return x / optax.safe_norm(x, eps, axis=axis, keepdims=True)
    return x / jnp.maximum(vector_norm.reference((), x, p, axis, keepdims=True), eps)


RULE = Rule(
    "l2_normalize",
    l2_normalize,
    reference,
    cases=(
        Case("last axis", Real("N d"), {"eps": Interval(1e-12, 0.5, 1e-12)}, timed={"N": 2048, "d": 512}),
        Case("short vectors", Real("N d", -1.0, 1.0), {"eps": Interval(0.5, 8.0, 2.9)}),
        Case("channels, p = 1", Real("N C T"), {"axis": 1, "p": 1}),
        Case("p = inf", Real("N d", points=(4.0, -4.0)), {"p": math.inf}),
        Case("any p", Real("N d"), {"p": Interval(1.5, 7.5, 3.0)}),
        Case("p below 1", Real("N d"), {"p": Interval(0.25, 0.9, 0.5)}),
    ),
    cite="torch.nn.functional.normalize; Ranjan et al., arXiv:1703.09507, section 3",
)
