"""The layer of attention with a state that decays: a rule says what one chunk of steps does, forward and backward.

Chunks come one after the other from S_0 on, or back from dS_T, where the backward starts. Cached is x as it came, and
what the backward wants of a chunk is made again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_flags, require_size
from bpref.formulas.attention.heads import Heads
from bpref.formulas.decoder import decoder
from bpref.formulas.recurrence.chunks import fitting, from_chunks, halving, into_chunks, no_state_of
from bpref.formulas.recurrence.decays import per_row
from bpref.formulas.recurrence.segments_apart import (
    bad_state,
    bad_steps,
    made_finite,
    nan_where,
    segment_numbers,
    spoiled,
)
from bpref.formulas.recurrence.states import arrived, forgetting, from_state, given_out, into_state, require_alone
from bpref.layer import Layer, no_params
from bpref.loops import scan

Chunk = tuple[Array, ...]
"""q (G, rows, D), k (G, L, D), v (G, L, E), and the arrays between x's heads and its state, (G, L, D) or (G, L, 1);
L n in the place of L for those that have n steps for each of q's."""


class OneChunk(NamedTuple):
    """What one chunk does.

    Attributes:
      forward: `(S, chunk) -> (S after, y, kept)`, kept for the backward.
      backward: `(dS, chunk, S, kept, dy) -> (dS before, dchunk)`.
      kept: `(S, chunk) -> (S after, kept)`, where that is less work than `forward` without its y.
    """

    forward: Callable[[Array, Chunk], tuple[Array, Array, PyTree]]
    backward: Callable[[Array, Chunk, Array, PyTree, Array], tuple[Array, Chunk]]
    kept: Callable[[Array, Chunk], tuple[Array, PyTree]] | None = None


def kept_apart(one: OneChunk, gate: int) -> OneChunk:
    """The same of a chunk of several segments, whose numbers are its last array; `gate` is the place of the gates'.

    A cotangent has a part in it from either side: all of a segment with something bad in it are NaN.
    """

    def cleaned(arrays):
        return tuple(made_finite(z, i == gate) for i, z in enumerate(arrays))

    def on(S, arrays, n):
        """Of q the row of its own step alone has something."""
        return spoiled(bad_steps(n.shape[1], arrays[1:], gate - 1), n, bad_state(S))

    def forward(S, chunk):
        *arrays, n = chunk
        steps, last = on(S, arrays, n)
        after, y, kept = one.forward(made_finite(S), (arrays[0], *cleaned(arrays)[1:]))
        return nan_where(last, after), nan_where(per_row(steps, y.shape[1]), y), kept

    def kept(S, chunk):
        *arrays, n = chunk
        if one.kept is None:
            after, _, kept = one.forward(made_finite(S), cleaned(arrays))
        else:
            after, kept = one.kept(made_finite(S), cleaned(arrays))
        return nan_where(on(S, arrays, n)[1], after), kept

    def backward(dS, chunk, S, kept, dy):
        *arrays, n = chunk
        bad = bad_steps(n.shape[1], (*arrays, dy), gate)
        after, _ = spoiled(bad, n, bad_state(S))
        before, first = spoiled(bad, n, bad_state(dS), reverse=True)
        steps = after | before
        dS, d = one.backward(made_finite(dS), cleaned(arrays), made_finite(S), kept, made_finite(dy))
        return nan_where(first | bad_state(S), dS), tuple(nan_where(per_row(steps, z.shape[1]), z) for z in d)

    return OneChunk(forward, backward, kept)


def gates_forgetting(x: PyTree) -> PyTree:
    """x with gates of 0 where a segment begins."""
    return x._replace(log_gate=forgetting(x.log_gate, x.heads.q_segments))


def state_by_chunks(
    who: str,
    kind: type,
    chunk: int,
    final: bool,
    require: Callable[[str, PyTree], None],
    one: OneChunk,
    used: Callable[[PyTree], PyTree] = gates_forgetting,
    pulled: Callable[[PyTree, PyTree], PyTree] = lambda x, d: d,
    is_halved: bool = False,
) -> Layer:
    """The layer called `who`, whose x is of this `kind`: heads, more arrays for each step, and a state.

    Args:
      chunk, final: the rule's hyperparameters; a chunk that `is_halved` is a power of 2.
      require: raises for an x that does not fit.
      one: what one chunk does.
      used: `x -> x`, what is computed with, its heads first and its state last. Where x's steps are each made of n, its
        arrays other than q have n times as many, or one for each step.
      pulled: `(x, dx) -> dx`, of its cotangent that of x; a gate's is 0 already where a segment begins.
    """
    chunk = require_size(who, "chunk", chunk)
    require_flags(who, final=final)
    if is_halved and chunk & (chunk - 1):
        raise ValueError(f"{who}: chunk is {chunk}, expected a power of 2, since it is halved")

    def length(heads):
        return (halving if is_halved else fitting)(chunk, heads.q.shape[-3])

    def chunked(z, heads):
        z = z[..., None] if z.ndim < heads.k.ndim else z
        T = heads.q.shape[-3]
        return into_chunks(z, heads.k.shape[-2], length(heads) * (z.shape[-3] // T if T else 1))

    def unchunked(z, like, k):
        if like.ndim == k.ndim:
            return from_chunks(z, k.shape[-2], like)
        return from_chunks(z, k.shape[-2], like[..., None])[..., 0]

    def chunks_of(x):
        """What one chunk does, and all chunks."""
        heads, *others, _ = x
        chunks = tuple(chunked(z, heads) for z in (*heads[:3], *others))
        if heads.q_segments is None:
            return one, chunks
        n = segment_numbers(heads.q_segments, heads.k.shape[-2], length(heads))
        return kept_apart(one, 2 + x._fields.index("log_gate")), (*chunks, n)

    def y_of(S, x):
        one, chunks = chunks_of(x)

        def step(S, chunk):
            S, y, _ = one.forward(S, chunk)
            return S, y

        S, y = scan(step, S, chunks)
        return given_out(final, y, S, x.heads), S

    def forward(params, x):
        require(who, x)
        with_gates = used(x)
        return y_of(into_state(x.state, with_gates.heads), with_gates)[0], x

    def backward(params, cache, dy):
        x = used(cache)
        one, chunks = chunks_of(x)

        def again(S, chunk):
            if one.kept is None:
                after, _, kept = one.forward(S, chunk)
            else:
                after, kept = one.kept(S, chunk)
            return after, (S, kept)

        def step(dS, now):
            chunk, (S, kept), dy = now
            return one.backward(dS, chunk, S, kept, dy)

        dy, dS = arrived(final, dy, x.heads)
        _, kept = scan(again, into_state(x.state, x.heads), chunks)
        dS, d = scan(step, dS, (chunks, kept, chunked(dy, x.heads)), reverse=True)
        dq, dk, dv = (unchunked(z, like, x.heads.k) for z, like in zip(d[:3], x.heads[:3], strict=True))
        others = (unchunked(z, like, x.heads.k) for z, like in zip(d[3:], x[1:-1], strict=True))
        dstate = None if x.state is None else from_state(dS, x.heads)
        return (), pulled(cache, type(x)(Heads(dq, dk, dv), *others, dstate))

    def decoding(leaf, length):
        def step(params, x, S):
            require(who, x)
            x = used(x)
            require_alone(who, x.state, x.heads.q_segments)
            return y_of(S, x)

        def start(params, x):
            heads = jax.eval_shape(used, x).heads
            return no_state_of(heads.k, heads.v.shape[-1])

        return decoder(leaf, start, step)

    forward.__annotations__["x"] = kind
    return Layer(no_params, forward, backward, who, decoding=decoding)
