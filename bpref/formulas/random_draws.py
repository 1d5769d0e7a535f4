"""What layers that draw at random share: keys that live in their parameters, and draws that no dtype changes.

A key is a leaf of `params`, so that a layer stays a function; whoever trains puts a new one there for every step. Its
cotangent is `None`. Draws are of 32 bits whatever x is computed in: float64 and bfloat16 see the same mask.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.random import threefry_2x32
from jaxtyping import Bool, Float, Int, PyTree

from bpref.checks.hyperparameters import is_number, plain
from bpref.dtypes import cast, require_array, widen
from bpref.keys import number_of, words
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


def kept_at(key: Array, rate: float, row: Int[Array, "..."], column: Int[Array, "..."]) -> Bool[Array, "..."]:
    """True with probability 1 - rate: the draw of each place is a function of the key, its row and its column alone."""
    below = threshold(rate)
    if below == 2**32:
        return jnp.ones(row.shape, bool)
    bits = threefry_2x32(words(key), jnp.concatenate([row.reshape(-1), column.reshape(-1)]))[: row.size]
    return bits.reshape(row.shape) < jnp.uint32(below)


def dropped(key: Array, rate: float, a: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """a / (1 - rate), and 0 where it is dropped, place by place; one example alone has what it has among all.

    Columns are counted from the last number backwards: attention counts its keys from 0, and may have the same key.
    """
    if not rate:
        return a
    rows = math.prod(a.shape[:-1])
    row = (jnp.arange(rows, dtype=jnp.uint32) + jnp.uint32(rows) * number_of(key)).reshape(*a.shape[:-1], 1)
    kept = kept_at(key, rate, jnp.broadcast_to(row, a.shape), ~lax.broadcasted_iota(jnp.uint32, a.shape, a.ndim - 1))
    return jnp.where(kept, cast(widen(a) * (1 / (1 - rate)), a.dtype), 0)


def threshold(rate: float) -> int:
    """Below it are 32 random bits with probability 1 - rate."""
    return math.ceil(float(np.float32(1 - rate)) * 2**RESOLUTION) << (32 - RESOLUTION)
