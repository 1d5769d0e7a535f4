"""rrelu: y = x where x >= 0, a x where x < 0, with a slope a of each element's own, drawn from the key.

Forward, with i over the elements, and u_i uniform between 0 and 1:

    a_i = l + (h - l) u_i
    y_i = x_i where x_i >= 0,  a_i x_i elsewhere                          x, y: one shape

Differential: the draw does not depend on x, so delta y_i = delta x_i where x_i >= 0, a_i delta x_i elsewhere, and the
adjoint is

    dx_i = dy_i (1 where x_i >= 0, a_i where x_i < 0)                     x, y, dy, dx: one shape

At the kink x = 0 the subgradient is 1, as in `leaky_relu`; PyTorch takes a_i there.

The key is a parameter that is not trained: its cotangent is None. A new one has to be put in its place before the
next step. Where l = h there is one slope and nothing is drawn: the layer for evaluation is the one with both at
(l + h) / 2, the mean slope, with the same parameters.

Cached: the sign of x, one byte an element. The slopes are made again from the key, which as a parameter is given to the
backward anyway.

Numerical care: u is drawn in float32, whatever x's dtype is, so that every dtype sees the same slopes; half precision
is multiplied in float32 and rounded once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, PyTree

from bpref.checks.hyperparameters import require_finite
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Held, Layer, Reals, each_position
from bpref.rule import Case, Interval, Key, Real, Rule


class RreluParams(NamedTuple):
    key: PyTree


class RreluCache(NamedTuple):
    nonnegative: Bool[Array, "..."]


def rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Layer[RreluParams, Array, Reals, RreluCache]:
    """y = x where x >= 0, a x elsewhere, a drawn uniformly from `lower` to `upper` for each element.

    Args:
      lower, upper: l <= h, the range of the slopes. Where they are equal nothing is drawn.

    Returns:
      A layer with params `RreluParams(key)`, a PRNG key whose cotangent is None, x of any shape, and y of x's.

    Raises:
      ValueError: a bound is not finite, or `lower` is above `upper`; there are several keys.
      TypeError: x is not floating-point; the key is none.
    """
    who = "rrelu"
    lower, upper = require_finite(who, "lower", lower), require_finite(who, "upper", upper)
    if lower > upper:
        raise ValueError(f"{who}: lower is {lower}, expected at most upper = {upper}")

    def init(key, x):
        return RreluParams(key)

    def forward(params, x: Float[Array, "..."]):
        require_key(who, params.key)
        nonnegative = x >= 0
        return sloped(params.key, nonnegative, x), RreluCache(nonnegative)

    def backward(params, cache, dy):
        return RreluParams(None), sloped(params.key, cache.nonnegative, dy)

    def sloped(key, nonnegative, v):
        return jnp.where(nonnegative, v, cast(widen(v) * slopes(key, v), v.dtype))

    def slopes(key, v):
        if lower == upper:
            return lower
        return lower + (upper - lower) * cast(jax.random.uniform(key, v.shape, jnp.float32), wide_dtype(v.dtype))

    if lower == upper:
        return Layer(init, forward, backward, who, held=Held(("key",)), decoding=each_position)
    mean = (lower + upper) / 2
    return Layer(init, forward, backward, who, held=KEY, evaluating=rrelu(mean, mean))


def reference(params: RreluParams, x: Array, lower: float = 1 / 8, upper: float = 1 / 3) -> Array:
    u = jax.random.uniform(params.key, x.shape, jnp.float32).astype(x.dtype)
    return jnp.where(x >= 0, x, (lower + (upper - lower) * u) * x)


_PARAMS = RreluParams(Key())

RULE = Rule(
    "rrelu",
    rrelu,
    reference,
    cases=(
        Case(
            "",
            Real("N d", points=(0.0, 1e4, -1e4)),
            {"lower": Interval(0.0, 0.2, 0.125), "upper": Interval(0.25, 1.0, 0.5)},
            params=_PARAMS,
            timed={"N": 512, "d": 1024},
        ),
        Case("one slope", Real("N d", points=(0.0,)), {"lower": 0.25, "upper": 0.25}, params=_PARAMS),
    ),
    cite="arXiv:1505.00853, section 3.4 (section not checked)",
    covers=("randomized_leaky_relu",),
)
