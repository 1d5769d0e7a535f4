"""What is not finite, kept within its segment: on the way to another it would meet a weight of 0, and 0 NaN is NaN.

Step t of a chunk is of the segment n_t, the number of those that begin in the chunk up to it: 0 is the one that goes on
from the chunk before. A step is bad where something that it is given is not finite, of a gate's logarithm -inf apart,
which is a gate of 0. Computed is with 0 in that place, and what it would have reached becomes NaN: of its segment the
steps from it on, or where time runs back up to it, and the state that is handed on.

    m_t = largest n_s of a bad s <= t       spoiled_t = [m_t = n_t]       on; back the smallest of s >= t

A state that is not finite spoils the segment that it is of from its end. What overflows in a chunk of finite numbers
is not seen before the next.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from bpref.formulas.recurrence.chunks import into_chunks
from bpref.formulas.recurrence.states import begins


def segment_numbers(ids: Int[Array, "*b T"] | None, K: int, chunk: int) -> Float[Array, "C G L 1"] | None:
    """n, for each of K heads, by chunks."""
    if ids is None:
        return None
    new = begins(ids).astype(jnp.float32)[..., None, None]
    return jnp.cumsum(into_chunks(jnp.broadcast_to(new, (*ids.shape, K, 1)), K, chunk), -2)


def is_usable(z: Array, is_gate: bool = False) -> Bool[Array, "..."]:
    return z < jnp.inf if is_gate else jnp.isfinite(z)


def made_finite(z: Array, is_gate: bool = False) -> Array:
    """z with 0 in the place of what is not finite."""
    return jnp.where(is_usable(z, is_gate), z, 0)


def bad_steps(L: int, arrays: Sequence[Array], gate: int | None = None) -> Bool[Array, "G L 1"]:
    """Which of L steps have something in their rows that is not finite; the gates' logarithms are of that place."""

    def of_rows(i, z):
        G, rows, D = z.shape
        return jnp.all(jnp.reshape(is_usable(z, i == gate), (G, L, rows // L * D)), -1, keepdims=True)

    good = [of_rows(i, z) for i, z in enumerate(arrays)]
    return ~jnp.all(jnp.concatenate(good, -1), -1, keepdims=True)


def bad_state(S: Float[Array, "G D E"]) -> Bool[Array, "G 1 1"]:
    return ~jnp.all(is_usable(S), (1, 2), keepdims=True)


def spoiled(
    bad: Bool[Array, "G L 1"], n: Float[Array, "G L 1"], state: Bool[Array, "G 1 1"], reverse: bool = False
) -> tuple[Bool[Array, "G L 1"], Bool[Array, "G 1 1"]]:
    """Which steps a bad one of their segment reaches, or a bad state; and whether the state after them is reached."""
    if reverse:
        none = jnp.asarray(n.shape[1] + 1, n.dtype)
        m = lax.cummin(jnp.where(bad, n, none), 1, reverse=True)
        m = jnp.minimum(m, jnp.where(state, n[:, -1:], none))
        return m == n, m[:, :1] == 0
    none = jnp.asarray(-1, n.dtype)
    m = jnp.maximum(lax.cummax(jnp.where(bad, n, none), 1), jnp.where(state, 0, none))
    return m == n, m[:, -1:] == n[:, -1:]


def nan_where(which: Array, z: Array) -> Array:
    return jnp.where(which, jnp.nan, z)
