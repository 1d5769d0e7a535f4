"""stochastic_rounding: to one of the two neighbours in a narrower format, the nearer the likelier; right on the mean.

Forward, element by element, for a format of m bits behind the point and exponents from e on, r_i uniform in [0, 1):

    h_i = 2^(max(floor(log2 |x_i|), e) - m)                               the distance of the format's numbers at x_i
    u_i = x_i / h_i,   f_i = u_i - floor(u_i)                             exact: h_i is a power of 2
    y_i = h_i (floor(u_i) + [r_i < f_i])                                  x, y: one shape

so that the mean of y_i is x_i: what is lost by rounding to nearest again and again, as a small update to a large weight
is, is there on the mean. Beyond the largest number of the format y is that number. What is not finite stays as it is.

Differential: delta y = 0 almost everywhere, and no derivative in the steps. By decision, the straight-through
estimator, the backward is that of the mean of y, which is x:

    dx_i = dy_i                                                           x's shape

also beyond the largest number. The key is a constant.

Cached: nothing.

Numerical care: r has 32 bits whatever the dtype of x, and the comparison with f is exact in float32. h is found by
comparisons with powers of 2, and is not below float32's smallest normal number (`bpref.formulas.formats`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree

from bpref.dtypes import cast, floating_dtype, wide_dtype, widen
from bpref.formulas.caches import NoCache
from bpref.formulas.formats import spacing, to_nearest
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Layer, Reals, each_position
from bpref.rule import Case, Key, Real, Rule
from bpref.tangents import by_decision


class StochasticRoundingParams(NamedTuple):
    key: PyTree


def stochastic_rounding(dtype: DTypeLike = "bfloat16") -> Layer[StochasticRoundingParams, Array, Reals, NoCache]:
    """y = x, rounded at random to numbers that a narrower format has, and right on the mean.

    Args:
      dtype: the format, such as "bfloat16", jnp.float16 or "float8_e4m3fn". y has these numbers, in x's dtype.

    Returns:
      A layer with params `StochasticRoundingParams(key)`, a PRNG key whose cotangent is None, x of any shape, and y of
      x's. In evaluation it rounds to the nearest.

    Raises:
      ValueError: there are several keys.
      TypeError: x is not floating-point; the key is none; dtype is no floating-point dtype.
    """
    who = "stochastic_rounding"
    to = floating_dtype(who, "dtype", dtype)
    largest = float(jnp.finfo(to).max)

    def init(key, x):
        return StochasticRoundingParams(key)

    def forward(params, x: Float[Array, "..."]):
        require_key(who, params.key)
        bits = jax.random.bits(params.key, x.shape, jnp.uint32)
        y = by_decision(at_random, lambda x, bits: x)(widen(x), bits)
        return cast(y, x.dtype), NoCache()

    def of_nearest(params, x: Float[Array, "..."]):
        y = by_decision(lambda x: to_nearest(x, to), lambda x: x)(widen(x))
        return cast(y, x.dtype), NoCache()

    def backward(params, cache, dy):
        return StochasticRoundingParams(None), dy

    def at_random(x, bits):
        h = spacing(x, to)
        below = jnp.floor(x / h)
        is_above = bits < ((x / h - below) * 2.0**32).astype(jnp.uint32)
        return jnp.where(jnp.isfinite(x), jnp.clip(h * jnp.where(is_above, below + 1, below), -largest, largest), x)

    evaluating = Layer(init, of_nearest, backward, who, decoding=each_position)
    return Layer(init, forward, backward, who, held=KEY, evaluating=evaluating)


def reference(params: StochasticRoundingParams, x: Array, dtype: DTypeLike = "bfloat16") -> Array:
    """By a list of all numbers that the format has, and x's place in it."""
    kind = jnp.dtype(dtype)
    with np.errstate(invalid="ignore"):  # some are NaN
        listed = np.arange(2 ** (8 * kind.itemsize)).astype(f"uint{8 * kind.itemsize}").view(kind).astype(np.float64)
    is_meant = np.isfinite(listed) & ((listed == 0) | (abs(listed) >= np.finfo(np.float32).tiny))
    wide = wide_dtype(x.dtype)
    numbers, z = jnp.asarray(np.unique(listed[is_meant]), wide), lax.stop_gradient(x).astype(wide)
    at = jnp.clip(jnp.searchsorted(numbers, z, side="right") - 1, 0, len(numbers) - 2)
    below, above = numbers[at], numbers[at + 1]
    share = jnp.clip((z - below) / (above - below), 0, 1)
    bits = jax.random.bits(params.key, x.shape, jnp.uint32)
    is_above = (bits < (share * 2.0**32).astype(jnp.uint32)) | (share == 1)
    y = jnp.where(is_above, above, below)
    return x + lax.stop_gradient(y.astype(x.dtype) - x)


RULE = Rule(
    "stochastic_rounding",
    stochastic_rounding,
    reference,
    cases=(
        Case(
            "to bfloat16",
            Real("N d", points=(0.0, 1.0, -1.0)),
            params=StochasticRoundingParams(Key()),
            timed={"N": 512, "d": 1024},
        ),
        Case(
            "to 8 bits",
            Real("N d", points=(0.0, 448.0, -1000.0, 2.0**-9, 0.001, -0.0157)),
            {"dtype": "float8_e4m3fn"},
            params=StochasticRoundingParams(Key()),
        ),
    ),
    cite="Gupta et al., 'Deep learning with limited numerical precision', arXiv:1502.02551, section 3",
    covers=("sr",),
)
