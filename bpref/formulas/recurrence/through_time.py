"""What recurrences share: one step and its adjoint, carried through time and back.

Forward, for t = 1 ... T, or T ... 1 if reversed, with z all inputs' projections, made by one product before the loop:

    z = x W^T + b           s_t, h_t, kept_t = step(z_t, s_{t-1})         y_t = h_t

Back, in the other order, with ds_t the cotangent of s_t by what came after it, and dy_t that of the output:

    ds_{t-1}, d_t = pull(kept_t, s_{t-1}, s_t, ds_t, dy_t)

Whatever is a sum over all steps, as the cotangents of the weights are, is made after the loop from all d_t together,
by `collect`: one product of (k B) rows, in blocks if there are many, where one in each step would read and write the
weights' cotangents T times. k is the length of a segment, all T steps if there are few: z and d are of use within it
alone, and go with it.

- Lengths: a step beyond an example's length leaves the state as it was and puts out 0: s_t = s_{t-1}, y_t = 0. Back,
  ds_{t-1} = ds_t, and d_t is 0 since pull is linear and is given 0. Reversed, the steps beyond the end come first and
  leave the initial state as it was: nothing is turned round.
- Truncation: the state before every k-th step is taken for a constant, ds_{t-1} = 0 there. The forward says so to
  whoever differentiates it.
- Checkpoints: the states before every k-th step alone are kept; the backward makes the k steps again from there. The
  last segment is filled up with steps beyond the end.

s_t is s_{t-1} of the step after, which the reverse loop has just left: it is carried, not read.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, PyTree

from bpref.checks.hyperparameters import require_size
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.formulas.affine import plus, times_transposed
from bpref.formulas.decoder import decoder
from bpref.formulas.lengths import within
from bpref.formulas.recurrence.steps import Passed, Steps, as_steps, require_state
from bpref.layer import Layer
from bpref.loops import scan

SEGMENT = 64
"""About how many steps one product is made of, so that what is of use between two loops alone is small."""


class Recurrence(NamedTuple):
    """A recurrence, as the loop needs it; everything in at least float32, the k steps of a segment first: (k, B, ...).

    Attributes:
      init: `(key, x) -> params`, W (m, d) and b (m,) or `None` among them, of the inputs x (B, T, d).
      sizes: how many features the state has; a named tuple of such numbers where it has parts.
      step: `(params, z_t, s) -> (s', h, kept_t)`, with what of the step `pull` needs beside the states.
      pull: `(params, kept_t, s, s', ds', dh) -> (ds, d_t)`, linear in `(ds', dh)`.
      collect: `(params, x, kept, s, s', d) -> (dparams, dx)`, of all steps.
    """

    init: Callable[[Array, Array], PyTree]
    sizes: PyTree
    step: Callable[[PyTree, Array, PyTree], tuple[PyTree, Array, PyTree]]
    pull: Callable[[PyTree, PyTree, PyTree, PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    collect: Callable[[PyTree, Array, PyTree, PyTree, PyTree, PyTree], tuple[PyTree, Array]]


class Kept(NamedTuple):
    """What every recurrence caches: its input, the state after all steps, and by segments (n, k, B, ...), of each step
    the state before it and what its `pull` needs. With checkpoints, the states before each segment, and no steps.
    """

    x: PyTree
    before: PyTree
    last: PyTree
    steps: PyTree


class Marks(NamedTuple):
    """Which examples have the step, and whether the state before it is a constant; `None` where all, and none."""

    live: Bool[Array, "T B"] | None
    cut: Bool[Array, " T"] | None


def through_time(
    who: str, recurrence: Recurrence, reverse: bool, truncate: int | None, checkpoint: int | None
) -> Layer:
    """The layer of a recurrence, x `Steps` or an array (B, T, d), y `Passed`.

    Args:
      reverse: whether the last step comes first.
      truncate: after how many steps the gradient stops; `None` never.
      checkpoint: the states before every so many steps are cached, and the steps made again; `None` caches all.

    Raises:
      ValueError: `truncate` or `checkpoint` is not a positive integer.
    """
    if truncate is not None:
        truncate = require_size(who, "truncate", truncate)
    if checkpoint is not None:
        checkpoint = require_size(who, "checkpoint", checkpoint)

    def init(key, x):
        return recurrence.init(key, as_steps(x).x)

    def zeros(p, x):
        """The state that there is if none is given."""
        return jax.tree.map(lambda n: jnp.zeros((x.shape[0], n), p.W.dtype), recurrence.sizes)

    def forward(params, x: Float[Array, "B T d>0"] | Steps):
        given = as_steps(x)
        require_state(who, given, recurrence.sizes)
        p = jax.tree.map(widen, params)
        start = zeros(p, given.x) if given.state is None else jax.tree.map(widen, given.state)
        k = segment_length(given.x.shape[1], checkpoint)

        inputs, n = filled_up(given.x, k)

        def body(s, segment):
            i, marks = segment
            after, (h, before, steps) = _run(recurrence, p, s, segment_of(inputs, i, k), marks, reverse)
            return after, (h, (before, steps) if checkpoint is None else (s, ()))

        segments = lax.iota(jnp.int32, n), marks_of(given, reverse, truncate, k)
        last, (h, (before, steps)) = scan(body, start, segments, reverse=reverse)
        y = joined(h, given.x.shape[1])
        narrow = jax.tree.map(lambda v: cast(v, given.x.dtype), Passed(y, last))
        return narrow, Kept(x, before, last, steps)

    def backward(params, cache, dy):
        given = as_steps(cache.x)
        shape = *given.x.shape[:2], jax.tree.leaves(cache.last)[0].shape[-1]
        dy = with_zeros(dy, Passed._make((jax.ShapeDtypeStruct(shape, given.x.dtype), cache.last)))
        p = jax.tree.map(widen, params)
        k = segment_length(given.x.shape[1], checkpoint)
        (inputs, n), (dy_filled, _) = filled_up(given.x, k), filled_up(dy.y, k)

        def body(carry, segment):
            ds, last, dp = carry
            i, marks, before, steps = segment
            x, dh = segment_of(inputs, i, k), segment_of(dy_filled, i, k)
            first = before
            if checkpoint is None:
                first = jax.tree.map(lambda v: v[-1] if reverse else v[0], before)
            else:
                last, (_, before, steps) = _run(recurrence, p, first, x, marks, reverse)
            ds, (more, dx) = _pull(recurrence, p, (ds, last), x, marks, dh, before, steps, reverse)
            return (ds, first, jax.tree.map(jnp.add, dp, more)), dx

        end = jax.tree.map(widen, dy.state), cache.last, jax.tree.map(jnp.zeros_like, p)
        segments = lax.iota(jnp.int32, n), marks_of(given, reverse, truncate, k), cache.before, cache.steps
        (ds, _, dp), dx = scan(body, end, segments, reverse=not reverse)
        dx = cast(joined(dx, given.x.shape[1]), given.x.dtype)
        dparams = jax.tree.map(lambda d, v: cast(d, v.dtype), dp, params)
        if not isinstance(cache.x, Steps):
            return dparams, dx
        dstate = None if given.state is None else jax.tree.map(lambda d, v: cast(d, v.dtype), ds, given.state)
        return dparams, Steps(dx, dstate, None)

    def decoding(leaf, length):
        if reverse:
            raise ValueError(f"{who}: reverse is True: positions that are yet to come would be the first")

        def start(params, x):
            return zeros(jax.tree.map(widen, params), as_steps(x).x)

        def step(params, x, state):
            if isinstance(x, Steps):
                raise TypeError(f"{who}: x is Steps, expected an array: while it is decoding the state is its own")
            y, last = forward(jax.tree.map(widen, params), Steps(widen(x), state))[0]
            return Passed(cast(y, x.dtype), jax.tree.map(lambda v: cast(v, x.dtype), last)), last

        return decoder(leaf, start, step)

    return Layer(init, forward, backward, who, decoding=decoding)


def segment_length(T: int, checkpoint: int | None) -> int:
    """How many steps a segment has: as many as lie between two checkpoints, or else about `SEGMENT`, all alike."""
    return checkpoint or max(1, -(-T // max(1, -(-T // SEGMENT))))


def marks_of(given: Steps, reverse: bool, truncate: int | None, k: int) -> Marks:
    """The marks of all steps, those that fill up the last segment of k among them, by segments."""
    B, T = given.x.shape[:2]
    t = lax.iota(jnp.int32, max(1, -(-T // k)) * k)
    live = cut = None
    if given.lengths is not None or len(t) > T:
        lengths = jnp.full((B,), T, jnp.int32) if given.lengths is None else within(given.lengths, T)
        live = lax.expand_dims(t, (1,)) < lax.expand_dims(lengths, (0,))
        live = live.reshape(len(t) // k, k, B)
    if truncate is not None:
        nth = T - 1 - t if reverse else t
        cut = ((nth % truncate == 0) & (nth > 0) & (nth < T)).reshape(len(t) // k, k)
    return Marks(live, cut)


def filled_up(x: Float[Array, "B T d"], k: int) -> tuple[Float[Array, "B n*k d"], int]:
    """x with the last segment of k steps filled up with 0, if there is need to, and n, at least 1."""
    missing = max(1, -(-x.shape[1] // k)) * k - x.shape[1]
    filled = jnp.pad(x, ((0, 0), (0, missing), (0, 0))) if missing else x
    return filled, filled.shape[1] // k


def segment_of(filled: Float[Array, "B n*k d"], i: Array, k: int) -> Float[Array, "k B d"]:
    """Segment i, its steps first: cut out when it is its turn, since x turned round as a whole is one more x."""
    return widen(jnp.swapaxes(lax.dynamic_slice_in_dim(filled, i * k, k, axis=1), 0, 1))


def joined(steps: Float[Array, "n k B d"], T: int) -> Float[Array, "B T d"]:
    """All segments, batch first, without what the last was filled up with."""
    n, k = steps.shape[:2]
    return jnp.swapaxes(steps.reshape(n * k, *steps.shape[2:])[:T], 0, 1)


def _run(recurrence: Recurrence, p: PyTree, start: PyTree, x: Array, marks: Marks, reverse: bool) -> PyTree:
    """The steps of a segment from its first state: the last state, and of each step h, the state before it, kept."""

    def body(s, slices):
        z, (live, cut) = slices
        arrived, s = s, _cut(cut, s)
        after, h, kept = recurrence.step(p, z, s)
        if live is not None:
            after, h = choose(live, after, s), choose(live, h, jnp.zeros_like(h))
        return after, (h, arrived, kept)

    return scan(body, start, (plus(times_transposed(x, p.W), p.b), marks), reverse=reverse)


def _pull(
    recurrence: Recurrence,
    p: PyTree,
    end: tuple[PyTree, PyTree],
    x: Array,
    marks: Marks,
    dh: Array,
    before: PyTree,
    steps: PyTree,
    reverse: bool,
) -> PyTree:
    """The way back through a segment from `end`, (ds, s) after it: ds before it, and the sums over its steps."""

    def body(carry, slices):
        ds, after = carry
        state, kept, dh, (live, cut) = slices
        s = _cut(cut, state)
        if live is None:
            dbefore, d = recurrence.pull(p, kept, s, after, ds, dh)
        else:
            arrived = choose(live, (ds, dh), jax.tree.map(jnp.zeros_like, (ds, dh)))
            dbefore, d = recurrence.pull(p, kept, s, after, *arrived)
            dbefore = choose(live, dbefore, ds)
        if cut is not None:
            dbefore = choose(cut, jax.tree.map(jnp.zeros_like, dbefore), dbefore)
        return (dbefore, state), d

    (ds, _), d = scan(body, end, (before, steps, dh, marks), reverse=not reverse)
    after = jax.tree.map(lambda s, last: _shifted(s, last, reverse), before, end[1])
    return ds, recurrence.collect(p, x, steps, _cut(marks.cut, before), after, d)


def _cut(cut: Array | None, states: PyTree) -> PyTree:
    """The states that steps begin with: constants where `cut`; as the states after the steps before, they are none."""
    return states if cut is None else choose(cut, lax.stop_gradient(states), states)


def _shifted(before: Array, last: Array, reverse: bool) -> Array:
    """The states after each step, from those before each and the last."""
    last = lax.expand_dims(last, (0,))
    return jnp.concatenate([last, before[:-1]] if reverse else [before[1:], last])[: len(before)]


def choose(which: Array, these: PyTree, those: PyTree) -> PyTree:
    """Leaf by leaf `these` where `which`, else `those`: one choice for each example, or one for all."""

    def of_leaf(a, b):
        return lax.select(lax.broadcast_in_dim(which, a.shape, tuple(range(which.ndim))), a, b)

    return jax.tree.map(of_leaf, these, those)
