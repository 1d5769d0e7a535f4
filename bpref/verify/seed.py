"""The seed of every random draw: a whole number, or one of JAX's keys as the number that reports print."""

import operator
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from bpref.verify.subject import describe

WORDS = (2, 4)
"""How many words of 32 bits JAX's keys have."""


def seed_of(who: str, key: Any, argument: str = "key") -> int:
    """The seed that `key` means: itself, a JAX key's words read as one number, so that `jax.random.key(1)` is 1; or,
    where it is None, a new one.

    Args:
      who: the function that was called, for the message.
      argument: what it was given as.
      key: None, a whole number of 0 or more, a `jax.random.key`, or a `jax.random.PRNGKey`.

    Raises:
      TypeError: it is none of these.
    """
    if key is None:
        return secrets.randbelow(10**6)
    words = _words(key)
    if words is not None:
        return int.from_bytes(words.astype(">u4").tobytes())
    try:
        number = -1 if isinstance(key, bool) else operator.index(key)
    except TypeError:
        number = -1
    if number < 0:
        came = repr(key) if isinstance(key, int | np.integer) else describe(key)
        raise TypeError(
            f"{who}: {argument} is {came}, expected a whole number of 0 or more, or a jax.random.key: the seed of "
            "every draw"
        )
    return number


def _words(key: Any) -> np.ndarray | None:
    """The words of a single concrete JAX key; None for anything else."""
    if isinstance(key, Tracer) or not isinstance(key, jax.Array | np.ndarray):
        return None
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(key)) if key.shape == () else None
    return np.asarray(key) if key.dtype == np.uint32 and key.ndim == 1 and key.size in WORDS else None
