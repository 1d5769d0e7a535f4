"""prelu: y = x where x >= 0, a x where x < 0, with a learned slope a: one, or one for each feature.

Forward, with k the feature (the last axis), n over all others; a_k is a_1 = a_2 = ... = a where there is one slope:

    y_nk = x_nk where x_nk >= 0,  a_k x_nk elsewhere                      (..., d)

Differential: delta y_nk = delta x_nk where x_nk >= 0, a_k delta x_nk + x_nk delta a_k elsewhere. Collect the factor of
each perturbation:

    dx_nk = dy_nk (1 where x_nk >= 0, a_k where x_nk < 0)                 (..., d)
    da_k  = sum_n dy_nk x_nk [x_nk < 0]                                   (d,)
    da    = sum_nk dy_nk x_nk [x_nk < 0]          for the one slope       ()

At the kink x = 0 the subgradient is 1, as in `leaky_relu`, and da has no part of it.

Cached: x alone. a is a parameter, and the sign of x says which side it was.

Numerical care: each element of y and dx is copied or multiplied once; the sums of da run in at least float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from bpref.checks.hyperparameters import require_finite, require_flags
from bpref.dtypes import cast, widen
from bpref.formulas.caches import InputCache
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Real, Rule


class PreluParams(NamedTuple):
    a: Float[Array, " d"] | Float[Array, ""]


def prelu(per_feature: bool = False, initial: float = 0.25) -> Layer[PreluParams, Array, Reals, InputCache]:
    """y = x where x >= 0, a x where x < 0, a learned.

    Args:
      per_feature: whether each feature of the last axis has a slope of its own, or all share one.
      initial: the slope that `init` gives.

    Returns:
      A layer with params `PreluParams(a: (d,) or ())`, x `(..., d)` (any shape for one slope), and y of x's shape.

    Raises:
      ValueError: `initial` is not finite; x does not have d features in its last axis.
      TypeError: x is not floating-point, or not of a's dtype.
    """
    who = "prelu"
    require_flags(who, per_feature=per_feature)
    initial = require_finite(who, "initial", initial)

    def init(key, x):
        if per_feature and len(x.shape) == 0:
            raise ValueError(f"{who}: x is a scalar, expected (..., d), a slope for each feature d")
        return PreluParams(jnp.full(x.shape[-1:] if per_feature else (), initial, x.dtype))

    def forward(params, x: Float[Array, "..."]):
        a = params.a
        z = widen(x)
        return cast(jnp.where(z >= 0, z, _spread(a, x) * z), x.dtype), InputCache(x)

    def backward(params, cache, dy):
        a, x = params.a, widen(cache.x)
        v = widen(dy)
        dx = jnp.where(x >= 0, v, _spread(a, x) * v)
        da = jnp.sum(jnp.where(x >= 0, 0, x * v), tuple(range(x.ndim - a.ndim)))
        return PreluParams(cast(da, a.dtype)), cast(dx, dy.dtype)

    return Layer(init, forward, backward, who, decoding=each_position)


def _spread(a: Array, x: Array) -> Array:
    """a for every element of x, in at least float32."""
    return jnp.broadcast_to(widen(a), x.shape)


def reference(params: PreluParams, x: Array, per_feature: bool = False, initial: float = 0.25) -> Array:
    return jnp.where(x >= 0, x, jnp.broadcast_to(params.a, x.shape) * x)


RULE = Rule(
    "prelu",
    prelu,
    reference,
    cases=(
        Case("one slope", Real("N d", points=(0.0, 1e4, -1e4))),
        Case(
            "a slope for each feature",
            Real("N T d", points=(0.0,)),
            {"per_feature": True},
            timed={"N": 16, "T": 64, "d": 1024},
        ),
    ),
    cite="arXiv:1502.01852, equations 1 to 3",
)
