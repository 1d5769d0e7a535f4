"""What attention with projections is given: a sequence that asks, and the sequence that it looks into."""

from typing import NamedTuple

from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from bpref.dtypes import cast
from bpref.formulas.attention.heads import Heads
from bpref.layer import State


class Sequences(NamedTuple):
    """The input x of attention with its projections; what is `None` is not used.

    Attributes:
      x: the sequence of the queries.
      memory: the sequence of the keys and values; x itself where it is left out.
      mask: which query may see which key, with axes of size 1 where it is the same for all.
      segments: ids of packed sequences in x: a query sees keys of its own id only.
      memory_segments: those of the memory; `segments` where it is left out.
      key: a PRNG key, for dropout.
      values: the sequence of the values where it is another than that of the keys, and as long.
      bias: added to the logits, as that of `Heads`: a mask of real numbers, which has a cotangent.
    """

    x: Float[Array, "*b T>0 d>0"]
    memory: Float[Array, "*b S>0 f>0"] | None = None
    mask: Bool[Array, "*#b #N #T #S"] | None = None
    segments: Int[Array, "*b T"] | None = None
    memory_segments: Int[Array, "*b S"] | None = None
    key: Array | None = None
    values: Float[Array, "*b S g>0"] | None = None
    bias: Float[Array, "*#b #N #T #S"] | None = None

    by_name = True


class MaskedSequence(NamedTuple):
    """The input of a block that looks into its own sequence, and what says which positions see which.

    Attributes:
      x: the sequence.
      mask: which position may see which, with axes of size 1 where it is the same for all: a mask of positions that
        none is to see is `(*b, 1, 1, T)`.
      segments: ids of packed sequences: a position sees those of its own id only.
      bias: added to the logits, as that of `Heads`.
    """

    x: Float[Array, "*b T>0 d>0"]
    mask: Bool[Array, "*#b #N #T #T"] | None = None
    segments: Int[Array, "*b T"] | None = None
    bias: Float[Array, "*#b #N #T #T"] | None = None

    by_name = True


def alone(x: Array | MaskedSequence) -> Array:
    """The sequence itself."""
    return x.x if isinstance(x, MaskedSequence) else x


def added(dh: Array, dx: Array | MaskedSequence) -> Array | MaskedSequence:
    """dx, and what arrives at the sequence beside it."""
    return dx._replace(x=lax.add(dh, dx.x)) if isinstance(dx, MaskedSequence) else lax.add(dh, dx)


def as_given(x: Array | MaskedSequence, dx: Array, dbias: Array | None) -> Array | MaskedSequence:
    """The cotangent of x, of that of the sequence itself and of the bias."""
    return MaskedSequence(dx, bias=dbias) if isinstance(x, MaskedSequence) else dx


def masked(who: str, x: Array | MaskedSequence, q: Array, k: Array, v: Array, key: Array | None) -> Heads:
    """Queries, keys and values with x's masks; `ValueError` unless these are of each head, or of all."""
    _, mask, segments, bias = x if isinstance(x, MaskedSequence) else MaskedSequence(x)
    N = q.shape[-2]
    for name, m in (("mask", mask), ("bias", bias)):
        if m is not None and m.shape[-3] not in (1, N):
            raise ValueError(f"{who}: {name} has shape {m.shape}, expected (*b, N, T, T) with N = {N} heads, or 1")
    return Heads(q, k, v, mask, bias, segments, key=key)


def with_key(x: Array | Sequences, held: State) -> Sequences:
    """x with the key that is held, unless it has one itself."""
    x = x if isinstance(x, Sequences) else Sequences(x)
    return x if x.key is not None else x._replace(**held)


def as_sequences(who: str, x: Array | Sequences) -> Sequences:
    """`x`, an array being a sequence that looks into itself.

    Raises:
      ValueError: values are of another length than the keys; memory_segments are of another length than the memory, or
        come without segments; they are missing where segments are given and the memory has another length than x.
    """
    x = x if isinstance(x, Sequences) else Sequences(x)
    memory = x.x if x.memory is None else x.memory
    if x.values is not None and x.values.shape[:-1] != memory.shape[:-1]:
        raise ValueError(f"{who}: values has shape {x.values.shape}, expected {_of_length(memory)} as the keys")
    if x.memory_segments is not None and x.memory_segments.shape != memory.shape[:-1]:
        raise ValueError(f"{who}: memory_segments has shape {x.memory_segments.shape}, expected {memory.shape[:-1]}")
    if x.memory_segments is not None and x.segments is None:
        raise ValueError(f"{who}: memory_segments are given without segments")
    if x.segments is not None and x.memory_segments is None and memory.shape[:-1] != x.x.shape[:-1]:
        raise ValueError(f"{who}: segments are given, and the memory {memory.shape} needs memory_segments too")
    return x


def _of_length(memory: Array) -> str:
    return f"({', '.join(map(str, memory.shape[:-1]))}, g)"


def sources(x: Sequences) -> tuple[Array, Array, Array]:
    """The sequences of the queries, of the keys and of the values."""
    memory = x.x if x.memory is None else x.memory
    return x.x, memory, memory if x.values is None else x.values


def pull_sources(x: Sequences, of_sources: tuple[Array, Array, Array], dtype: DTypeLike) -> Sequences:
    """The cotangents of the sequences, from those of what `sources` gives: added where one is several of these."""
    (dq, dk, dv), dmemory, dvalues = of_sources, None, None
    if x.values is None:
        dk = dk + dv
    else:
        dvalues = cast(dv, dtype)
    if x.memory is None:
        dq = dq + dk
    else:
        dmemory = cast(dk, dtype)
    return Sequences(cast(dq, dtype), dmemory, values=dvalues)


def heads_of(x: Sequences, q: Array, k: Array, v: Array) -> Heads:
    """Queries, keys and values with what says which of them meet."""
    return Heads(q, k, v, x.mask, x.bias, x.segments, x.memory_segments, x.key)
