"""Causal attention whose queries come one chunk after another: the keys and values that they look back at are kept.

Before query n + i of a chunk there are W + i keys within its reach: the last W before the chunk, and i in it. Side by
side, (W + t) of them, query i sees those from i to i + W, whatever n is: a window, all of whose sizes are known when
it is traced. Those that would stand before the first position are hidden. So one program serves every position.

W is what the window reaches back, or all other positions where there is none. What is older falls out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from bpref.dtypes import cast
from bpref.formulas.attention.attend import attend
from bpref.formulas.attention.attention_grid import Extras, Pattern, Window, sides
from bpref.formulas.attention.heads import Heads
from bpref.formulas.decoder import require_no_later


class Memory(NamedTuple):
    """The last W keys and values, zeros where there have been fewer, and the number n of positions so far."""

    k: Float[Array, "*b W K D"]
    v: Float[Array, "*b W K E"]
    n: Int[Array, ""]


def reach(who: str, causal: bool, window: Window | None, length: int) -> int:
    """W, of `length` positions; raises `ValueError` where a position sees later ones."""
    left, right = (length, 1) if window is None else sides(window)
    require_no_later(who, causal or not right)
    return min(left, length - 1)


def no_memory(W: int, k: Array | jax.ShapeDtypeStruct, v: Array | jax.ShapeDtypeStruct) -> Memory:
    """Of keys and values (*b, t, K, D) and (*b, t, K, E), or their specifications."""
    k, v = (jnp.zeros((*a.shape[:-3], W, *a.shape[-2:]), a.dtype) for a in (k, v))
    return Memory(k, v, jnp.zeros((), jnp.int32))


def attend_on(pattern: Pattern, x: Heads, extras: Extras, memory: Memory, length: int) -> tuple[Array, Memory]:
    """y of a chunk's queries, keys and values, and the memory after it; NaN where it goes beyond `length`."""
    W, t = memory.k.shape[-3], x.q.shape[-3]
    k, v = (jnp.concatenate([cast(old, new.dtype), new], -3) for old, new in ((memory.k, x.k), (memory.v, x.v)))
    there = lax.iota(jnp.int32, W + t) >= W - memory.n
    mask = there.reshape((1,) * (x.q.ndim - 1) + (W + t,))
    pattern = pattern._replace(causal=False, window=(0, W), key_block=None if t == 1 else pattern.key_block)
    y = attend(pattern, Heads(x.q, k, v, mask), extras).y
    n = memory.n + t
    k, v = (lax.slice_in_dim(a, t, None, axis=a.ndim - 3) for a in (k, v))
    return jnp.where(n <= length, y, jnp.nan), Memory(k, v, n)
