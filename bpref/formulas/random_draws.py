"""What layers that draw at random share: keys that live in their parameters, and draws that no dtype changes.

A key is a leaf of `params`, so that a layer stays a function; whoever trains puts a new one there for every step. Its
cotangent is `None`. Draws are of 32 bits whatever x is computed in: float64 and bfloat16 see the same mask.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, PyTree

from bpref.checks.hyperparameters import is_number, plain
from bpref.dtypes import require_array
from bpref.layer import Held, Layer, State


def _used(held: State) -> State:
    return {"key": jax.random.split(held["key"])[0]}


def _next(held: State, params: PyTree, cache: PyTree) -> State:
    return {"key": jax.random.split(held["key"])[1]}


KEY = Held(("key",), _used, _next)
"""A key as state: half of it is drawn from, the other half is that of the next step."""


def with_key_in_x(layer: Layer, without: Layer, into: Callable[[PyTree, State], PyTree]) -> Layer:
    """The layer, whose x has a key, with a key as state; in evaluation `without`, which drops nothing."""
    return layer._replace(
        held=KEY._replace(into=into), evaluating=without._replace(held=Held(("key",), into=lambda x, held: x))
    )


RESOLUTION = 23
"""A share is told to this many bits, those of the numbers that `jax.random.uniform` draws."""


def require_key(who: str, key: Array) -> None:
    """Raise unless `key` is one PRNG key: `TypeError` for what is none, `ValueError` for several."""
    require_array(who, "key", key)
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not is_typed and key.dtype != jnp.uint32:
        raise TypeError(f"{who}: key has dtype {key.dtype}, expected a PRNG key such as jax.random.key(0)")
    if key.shape != (() if is_typed else jax.eval_shape(jax.random.PRNGKey, 0).shape):
        raise ValueError(f"{who}: key has shape {key.shape}, expected one PRNG key such as jax.random.key(0)")


def require_rate(who: str, rate: float, name: str = "rate") -> float:
    """`rate` as Python has it; raise `ValueError` unless it is the share that is dropped, from 0 to below 1."""
    if not (is_number(rate) and 0 <= rate < 1):
        raise ValueError(f"{who}: {name} is {rate!r}, expected a number from 0 to below 1")
    return plain(rate)


def kept(key: Array, rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True with probability 1 - rate, element by element: the draws of `jax.random.bernoulli` in float32.

    The bits themselves are compared, since making numbers of them first takes longer and decides nothing.
    """
    below = threshold(rate)
    if below == 2**32:
        return jnp.ones(shape, bool)
    return jax.random.bits(key, shape, jnp.uint32) < jnp.uint32(below)


def threshold(rate: float) -> int:
    """Below it are 32 random bits with probability 1 - rate."""
    return math.ceil(float(np.float32(1 - rate)) * 2**RESOLUTION) << (32 - RESOLUTION)
