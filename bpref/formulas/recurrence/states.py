"""What a piece of a sequence hands on to the next, and where in it another sequence begins.

Attention with a state starts from S_0, zeros if none is given, and ends with S_T; dS_T is what its backward starts from
and dS_0 what that ends with. Packed sequences are told apart by their ids: where the id is another than at the step
before, a segment begins, and nothing of the state remains: a gate of 0, whose logarithm is -inf. S_0 is of the first
segment, even if that is one step long, and S_T of the last.
"""

from math import prod

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from bpref.cotangents import with_zeros
from bpref.dtypes import cast, wide_dtype, widen
from bpref.formulas.attention.heads import Heads
from bpref.formulas.recurrence.chunks import from_chunks
from bpref.formulas.recurrence.steps import Passed


def begins(ids: Int[Array, "*b T"]) -> Bool[Array, "*b T"]:
    """Whether a step is the first of a segment that does not go on from what is given."""
    return jnp.concatenate((jnp.zeros_like(ids[..., :1], bool), ids[..., 1:] != ids[..., :-1]), -1)


def forgetting(log_gate: Float[Array, "..."], ids: Int[Array, "*b T"] | None) -> Float[Array, "..."]:
    """The gates' logarithms, (*b, T, K) or (*b, T, K, D), -inf where a segment begins."""
    if ids is None:
        return log_gate
    new = begins(ids)
    return jnp.where(new.reshape(*new.shape, *[1] * (log_gate.ndim - new.ndim)), -jnp.inf, log_gate)


def into_state(state: Float[Array, "*b K D F"] | None, heads: Heads, more: int = 0) -> Float[Array, "G D F"]:
    """A state in at least float32, zeros where there is none; F is `more` than v's features."""
    *b, _, K, D = heads.k.shape
    shape = prod(b) * K, D, heads.v.shape[-1] + more
    return jnp.zeros(shape, wide_dtype(heads.k.dtype)) if state is None else jnp.reshape(widen(state), shape)


def from_state(S: Float[Array, "G D F"], heads: Heads) -> Float[Array, "*b K D F"]:
    """The way back, in the dtype of the keys."""
    *b, _, K, _ = heads.k.shape
    return cast(jnp.reshape(S, (*b, K, *S.shape[1:])), heads.k.dtype)


def given_out(final: bool, y: Float[Array, "C G rows E"], S: Array, heads: Heads) -> Array | Passed:
    """y, and beside it the state S after all steps if it is asked for."""
    y = from_chunks(y, heads.k.shape[-2], heads.q)
    return Passed(y, from_state(S, heads)) if final else y


def arrived(final: bool, dy: Array | Passed, heads: Heads, more: int = 0) -> tuple[Array, Float[Array, "G D F"]]:
    """The cotangents of y and of the state after all steps: zeros where there is none."""
    d, dstate = dy if final else (dy, None)
    y = jax.ShapeDtypeStruct((*heads.q.shape[:-1], heads.v.shape[-1]), heads.q.dtype)
    return with_zeros(d, y), into_state(dstate, heads, more)


def require_alone(who: str, state: Array | None, ids: Array | None, name: str = "q_segments") -> None:
    """Raise `TypeError` where what is decoding is given a state, or ids of segments called `name`, of its own."""
    if state is not None:
        raise TypeError(f"{who}: x has a state, expected None: while it is decoding the state is its own")
    if ids is not None:
        raise TypeError(f"{who}: x has {name}, expected None: what is decoding goes on with one sequence")
