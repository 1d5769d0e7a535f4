"""gaussian_noise: y = x + sigma e, with e standard normal numbers drawn from the key, element by element.

Differential: the draw does not depend on x, so delta y = delta x, and the adjoint hands the cotangent on:

    dx = dy                                                               x, y, dy, dx: one shape

What the noise does to a network it does through the layers above, which see another input.

The key is a parameter that is not trained: its cotangent is None. A new one has to be put in its place before the
next step. At a sigma of 0 the layer is the identity and draws nothing; that is how it is made for evaluation, with the
same parameters.

Cached: nothing; the derivative is 1 everywhere.

Numerical care: e is drawn in float32, whatever x's dtype is, so that every dtype sees the same noise; half precision is
added to in float32 and rounded once. The backward is exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, PyTree

from bpref.checks.hyperparameters import require_non_negative
from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.formulas.random_draws import KEY, require_key
from bpref.layer import Held, Layer, Reals, each_position
from bpref.rule import Case, Interval, Key, Real, Rule


class GaussianNoiseParams(NamedTuple):
    key: PyTree


def gaussian_noise(std: float = 0.1) -> Layer[GaussianNoiseParams, Array, Reals, NoCache]:
    """y = x + std e, e drawn from the standard normal distribution.

    Args:
      std: sigma, in the units of x. At 0 the layer is the identity.

    Returns:
      A layer with params `GaussianNoiseParams(key)`, a PRNG key whose cotangent is None, x of any shape, y of x's.

    Raises:
      ValueError: std is negative or not finite; there are several keys.
      TypeError: x is not floating-point; the key is none.
    """
    who = "gaussian_noise"
    std = require_non_negative(who, "std", std)

    def init(key, x):
        return GaussianNoiseParams(key)

    def forward(params, x: Float[Array, "..."]):
        require_key(who, params.key)
        if std == 0:
            return x, NoCache()
        z = widen(x)
        e = jax.random.normal(params.key, x.shape, jnp.float32)
        return cast(z + std * cast(e, z.dtype), x.dtype), NoCache()

    def backward(params, cache, dy):
        return GaussianNoiseParams(None), dy

    if std == 0:
        return Layer(init, forward, backward, who, held=Held(("key",)), decoding=each_position)
    return Layer(init, forward, backward, who, held=KEY, evaluating=gaussian_noise(0))


def reference(params: GaussianNoiseParams, x: Array, std: float = 0.1) -> Array:
    return x + jax.random.normal(params.key, x.shape, jnp.float32).astype(x.dtype) * std


RULE = Rule(
    "gaussian_noise",
    gaussian_noise,
    reference,
    cases=(
        Case(
            "",
            Real("N d"),
            {"std": Interval(0.0, 2.0, 0.3)},
            params=GaussianNoiseParams(Key()),
            timed={"N": 512, "d": 1024},
        ),
    ),
    cite="Bishop, 'Training with noise is equivalent to Tikhonov regularization' (1995)",
)
