"""drop_path: every example is dropped as a whole with probability `rate`; those that stay are divided by the rest.

Forward, with n the example (the first axis), k over all other axes, r the rate and m_n = 1 with probability 1 - r,
drawn from the key, else 0:

    y_nk = m_n x_nk / (1 - r)                                             x, y: (N, ...)

In a residual block, x + drop_path(f(x)), a dropped example skips the block: a network of random depth.

Differential: the draw does not depend on x, so delta y_nk = m_n delta x_nk / (1 - r), and the adjoint is

    dx_nk = m_n dy_nk / (1 - r)                                           (N, ...)

The key is a parameter that is not trained: its cotangent is None. A new one has to be put in its place before the
next step. At rate 0 the layer is the identity and draws nothing; that is how it is made for evaluation, with the same
parameters.

Cached: nothing. The N draws are made again from the key, which as a parameter is given to the backward anyway.

Numerical care: the draws are of bits, the same ones for every dtype of x. m decides by selection, so that what is
dropped is 0 also where x is infinite. 1 / (1 - r) is one constant: each element rounds once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, PyTree

from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.formulas.random_draws import KEY, kept, require_key, require_rate
from bpref.layer import Held, Layer, Reals, each_position
from bpref.rule import Case, Interval, Key, Real, Rule


class DropPathParams(NamedTuple):
    key: PyTree


def drop_path(rate: float = 0.1) -> Layer[DropPathParams, Array, Reals, NoCache]:
    """y = x / (1 - rate) for the examples that are kept, 0 for those that are dropped.

    Args:
      rate: the probability that an example is dropped, from 0 to below 1. At 0 the layer is the identity.

    Returns:
      A layer with params `DropPathParams(key)`, a PRNG key whose cotangent is None, x `(N, ...)`, and y of x's shape.

    Raises:
      ValueError: the rate is out of its range; x is a scalar; there are several keys.
      TypeError: x is not floating-point; the key is none.
    """
    who = "drop_path"
    rate = require_rate(who, rate)

    def init(key, x):
        return DropPathParams(key)

    def forward(params, x: Float[Array, "N ..."]):
        require_key(who, params.key)
        return masked(params.key, x), NoCache()

    def backward(params, cache, dy):
        return DropPathParams(None), masked(params.key, dy)

    def masked(key, v):
        if rate == 0:
            return v
        m = kept(key, rate, v.shape[:1])
        scaled = cast(widen(v) * (1 / (1 - rate)), v.dtype)
        return jnp.where(lax.broadcast_in_dim(m, v.shape, (0,)), scaled, 0)

    if rate == 0:
        return Layer(init, forward, backward, who, held=Held(("key",)), decoding=each_position)
    return Layer(init, forward, backward, who, held=KEY, evaluating=drop_path(0))


def reference(params: DropPathParams, x: Array, rate: float = 0.1) -> Array:
    m = jax.random.bernoulli(params.key, jnp.float32(1 - rate), (x.shape[0], *(1,) * (x.ndim - 1)))
    return x * m.astype(x.dtype) / (1 - rate)


RULE = Rule(
    "drop_path",
    drop_path,
    reference,
    cases=(
        Case(
            "",
            Real("N d"),
            {"rate": Interval(0.0, 0.9, 0.1)},
            params=DropPathParams(Key()),
            timed={"N": 512, "d": 2048},
        ),
        Case("images", Real("N H W C"), {"rate": 0.2}, params=DropPathParams(Key())),
    ),
    cite="by example: arXiv:1605.07648, section 3.1; a layer for a whole batch: arXiv:1603.09382, section 3",
    covers=("stochastic_depth",),
)
