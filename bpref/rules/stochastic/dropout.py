"""dropout: every element is dropped with probability `rate`; those that stay are divided by the share that stays.

Forward, with i over the elements, r the rate and m_i = 1 with probability 1 - r, drawn from the key, else 0:

    y_i = m_i x_i / (1 - r)                                               x, y: one shape

so that the mean of y over all draws is x. Along `shared_axes` all elements share one draw: with the spatial axes of an
image shared, whole channels are dropped.

Differential: the draw does not depend on x, so delta y_i = m_i delta x_i / (1 - r), and the adjoint is

    dx_i = m_i dy_i / (1 - r)                                             x, y, dy, dx: one shape

The key is a parameter that is not trained: its cotangent is None. A new one has to be put in its place before the
next step. At rate 0 the layer is the identity and draws nothing; that is how it is made for evaluation, with the same
parameters.

Cached: nothing. The mask is made again from the key, which as a parameter is given to the backward anyway. Within one
jit XLA draws it once all the same. Where the backward is compiled apart, or stands in a scan, the second draw makes the
two together 1.8 times as long on a CPU as a mask that is kept would, at one byte an element.

Numerical care: the draws are of bits, the same ones for every dtype of x. m decides by selection, so that what is
dropped is 0 also where x is infinite. 1 / (1 - r) is one constant: each element rounds once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, PyTree

from bpref.dtypes import cast, widen
from bpref.formulas.caches import NoCache
from bpref.formulas.random_draws import KEY, kept, require_key, require_rate
from bpref.layer import Held, Layer, Reals, each_position
from bpref.rule import Case, Interval, Key, Real, Rule


class DropoutParams(NamedTuple):
    key: PyTree


def dropout(rate: float = 0.5, shared_axes: tuple[int, ...] = ()) -> Layer[DropoutParams, Array, Reals, NoCache]:
    """y = x / (1 - rate) where it is kept, 0 where it is dropped.

    Args:
      rate: the probability that an element is dropped, from 0 to below 1. At 0 the layer is the identity.
      shared_axes: axes along which all elements share one draw, such as (1, 2) for images N H W C.

    Returns:
      A layer with params `DropoutParams(key)`, a PRNG key whose cotangent is None, x of any shape, and y of x's.

    Raises:
      ValueError: the rate is out of its range; x has no such axis; there are several keys.
      TypeError: x is not floating-point; the key is none.
    """
    who = "dropout"
    rate = require_rate(who, rate)

    def init(key, x):
        return DropoutParams(key)

    def forward(params, x: Float[Array, "..."]):
        require_key(who, params.key)
        _require_axes(who, x, shared_axes)
        return masked(params.key, x), NoCache()

    def backward(params, cache, dy):
        return DropoutParams(None), masked(params.key, dy)

    def masked(key, v):
        if rate == 0:
            return v
        shared = {axis % v.ndim for axis in shared_axes}
        m = kept(key, rate, tuple(1 if axis in shared else n for axis, n in enumerate(v.shape)))
        scaled = cast(widen(v) * (1 / (1 - rate)), v.dtype)
        return jnp.where(jnp.broadcast_to(m, v.shape), scaled, 0)

    if rate == 0:
        return Layer(init, forward, backward, who, held=Held(("key",)), decoding=each_position)
    return Layer(init, forward, backward, who, held=KEY, evaluating=dropout(0, shared_axes))


def _require_axes(who: str, x: Array, axes: tuple[int, ...]) -> None:
    for axis in axes:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"{who}: x has shape {x.shape}, which has no axis {axis} to share")


def reference(params: DropoutParams, x: Array, rate: float = 0.5, shared_axes: tuple[int, ...] = ()) -> Array:
    shape = list(x.shape)
    for axis in shared_axes:
        shape[axis] = 1
    m: Bool[Array, "..."] = jax.random.bernoulli(params.key, jnp.float32(1 - rate), tuple(shape))
    return jnp.where(jnp.broadcast_to(m, x.shape), x / (1 - rate), 0)


RULE = Rule(
    "dropout",
    dropout,
    reference,
    cases=(
        Case(
            "", Real("N d"), {"rate": Interval(0.0, 0.9, 0.3)}, params=DropoutParams(Key()), timed={"N": 512, "d": 1024}
        ),
        Case("whole channels", Real("N H W C"), {"rate": 0.5, "shared_axes": (1, -2)}, params=DropoutParams(Key())),
        Case("rate 0", Real("N d"), {"rate": 0.0}, params=DropoutParams(Key())),
    ),
    cite="Srivastava et al., 'Dropout: a simple way to prevent neural networks from overfitting' (2014); whole "
    "channels: arXiv:1411.4280, section 3.2",
    covers=("spatial_dropout", "dropout1d", "dropout2d", "dropout3d"),
)
