"""pipeline_objective: `scan`'s layers in stages, one on each device, and a loss behind them, both ways in one sweep.

With L layers on P devices, of which device p has L / P one after the other, its stage F_p, and (X, y) in M
micro-batches along its first axis:

    a_p,m = F_p(a_p-1,m)       a_-1,m = X_m       J_m = loss(a_P-1,m, y_m)       J = 1/M sum_m J_m

Differential: that of the stages and the loss in series, for each micro-batch by itself,

    da_P-1,m = the loss's backward of dJ_m       da_p-1,m = F_p's backward of da_p,m       dJ_m = dJ / M
    dP[l]    = sum over m of what F_p's backward gives for it, on the device that has layer l

J_m is all that the backward of m waits for, and its caches are not needed any longer when that is done. So m goes down
as soon as it is up, in the ticks of `pipeline_schedule("1f1b", P, M)`:

    0   F0 .  F1 .  F2 B0 F3 B1 .  B2 .  B3          P = 3, M = 4
    1   .  F0 .  F1 B0 F2 B1 F3 B2 .  B3 .
    2   .  .  F0 B0 F1 B1 F2 B2 F3 B3 .  .           with F of the last device the loss, forward and backward

Of P micro-batches there are caches at once, where `objective(pipeline(...), loss)` keeps those of M + P - 1 ticks. In
each of the 2 (M + P - 1) ticks an activation crosses to the next device and a cotangent to the one before. At the end
J, dX, dy and the loss's dparams, which are one device's, are summed over all: one all-reduce.

A sweep is linear in dJ, and J is one number: the forward does all of this for dJ_m = 1, and the backward multiplies by
dJ / M. Where a forward that no backward follows is compiled by itself, XLA leaves out all that goes down.

Time: a tick is as long as the longest of what devices do in it, and while one has an F its neighbours have a B. So all
take 2 (M + P - 1) max(F, B), where `pipeline` takes (M + P - 1) (F + B): with B = 2 F, 4 to 3. What it is for is
memory, or as many more micro-batches as that has room for, which make the bubble smaller.

"zero-bubble" has the backward in halves (`split_backward`), of which B is dx alone, and W, dparams, is done when there
is nothing else to do: 3 M + P - 1 ticks, where M >= P. F, B and W of a block of matrix products take about as long as
each other, so that no device waits for its neighbours within a tick: 13 to 15 beside `pipeline` where M = 4 P. The
price is memory: of P micro-batches more, what W is made of, caches and cotangents at each leaf. What a leaf needs for
both halves, as an attention that makes its logits again, is done in both.

Cached: dparams, dX and dy, not multiplied yet.

Numerical care: sums over micro-batches are in at least float32, multiplied there, and rounded once. What a device
without work would do is not done, or not read.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_choice, require_sizes
from bpref.compose.objective import beside
from bpref.compose.parts import P1, P2, Parts
from bpref.compose.schedules import most_between, pipeline_schedule
from bpref.compose.split import backward_params, split_backward
from bpref.compose.stages import divided, of_one, require_separable, sent, stage_of, sums, where
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer, map_leaves, require_layer, require_no_state
from bpref.over_devices import ALIKE, SPLIT, axis_name, laid_out, own_key


class PipelineObjectiveCache(NamedTuple):
    """For dJ_m = 1 in each micro-batch: sums over them, and dX and dy, joined."""

    dparams: PyTree
    dX: PyTree
    dy: PyTree


class _Carry(NamedTuple):
    """What a device has from tick to tick, where it is of some micro-batches that of m at m modulo their number.

    Attributes:
      a: of those that have come from the device before.
      da: of those that have come from the device behind; on the last, from the loss.
      kept: caches of those that are up.
      later: of those that wait for their W, what it is made of.
      dblocks, dloss, J: sums so far.
      dX, dy: of all, by the first device's B and the last one's F.
    """

    a: PyTree
    da: PyTree
    kept: PyTree
    later: PyTree
    dblocks: PyTree
    dloss: PyTree
    J: Array
    dX: PyTree
    dy: PyTree


class _Tick(NamedTuple):
    """Of what micro-batch a device does F, B and W, and what comes to it from before and from behind; -1 for none."""

    F: Array
    B: Array
    W: Array
    before: Array
    behind: Array


def pipeline_objective(
    layer: Layer[P1, PyTree, PyTree, PyTree],
    loss: Layer[P2, PyTree, Array, PyTree],
    length: int,
    axis: str | int,
    microbatches: int,
    schedule: str = "1f1b",
) -> Layer[tuple[P1, P2], tuple[PyTree, PyTree], Array, PipelineObjectiveCache]:
    """`objective(scan(layer, length), loss)` inside of `jax.shard_map`, in stages, both ways in one sweep.

    It keeps the caches of P micro-batches, where `pipeline` keeps those of all (GPipe). Layers before it are those of
    `objective(embed, pipeline_objective(...))`, for which it is the loss; layers behind it are its loss's.

    Args:
      layer: its output must have its input's shapes.
      loss: `(a, y) -> J`, one number, as a loss or `objective(head, loss)`; of several targets `(a, *y) -> J`. It is
        computed on the last device.
      length: the number of layers L, a multiple of the number of devices P.
      axis: the name of the axis of the mesh, for `jax.shard_map`; or the number P of stages, all on one device.
      microbatches: M, into how many parts X and y are divided along their first axis.
      schedule: "1f1b"; or "zero-bubble", in which dparams are made when a device would wait, for more memory.

    Returns:
      A layer `(X, y) -> J`, the mean of the M losses: that of the whole batch, where the loss is a mean over examples.
      Params are the pair of the layers', which lie as those of `pipeline`, and the loss's, alike on all devices, as X
      and y are.

    Example:
      >>> J = bpref.pipeline_objective(bpref.tanh(), bpref.square("mean"), length=4, axis=2, microbatches=2)
      >>> value, dparams, (dX, _) = bpref.backpropagate(J, ((), ()), (X, X))

    Raises:
      TypeError: `layer` or `loss` is no Layer, or has state.
      ValueError: there is no such schedule; a number is no positive integer, or L no multiple of P; X or y has no axis
        of M micro-batches, the layer changes its shapes, or J is not one number; a leaf takes all examples together,
        which micro-batches are not, or puts in the place of dparams what does not add up over them, as an update or the
        norms of examples.
    """
    who = "pipeline_objective"
    pair = Parts((layer, loss))
    for argument, part in (("layer", layer), ("loss", loss)):
        require_layer(who, argument, part)
        require_no_state(who, part)
        require_separable(who, part)
    length, M = require_sizes(who, length=length, microbatches=microbatches)
    name = axis_name(who, axis)
    in_halves = require_choice(who, "schedule", schedule, ("1f1b", "zero-bubble")) == "zero-bubble"
    split = map_leaves(split_backward, layer) if in_halves else layer

    def init(key, x):
        of_blocks, of_loss = jax.random.split(key)
        X, y = x
        return stage_of(who, layer, length, name).init(own_key(of_blocks, name), X), loss.init(of_loss, beside(X, y))

    def forward(params, x):
        of_blocks, of_loss = pair.apart(who, params)
        F, p, P = stage_of(who, split, length, name), lax.axis_index(name), lax.axis_size(name)
        plan = pipeline_schedule(schedule, P, M)
        ticks = _Tick(*(jnp.asarray(of, jnp.int32) for of in (*plan, plan.from_before, plan.from_behind)))
        xs, ys = (divided(who, M, v) for v in x)

        def judge(a, m):
            J, cache = loss.forward(of_loss, beside(a, _at(ys, m)))
            if jnp.shape(J) != ():
                raise ValueError(f"{who}: {loss.name} gives an array of shape {jnp.shape(J)}, expected one number")
            dloss, (da, *dy) = loss.backward(of_loss, cache, jnp.ones_like(J))
            return J, dloss, with_zeros(da, a), dy

        def tick(carry, of_tick):
            t = _Tick(*(of[p] for of in of_tick))

            def up():
                return F.forward(of_blocks, where(p == 0, _at(xs, t.F), _at(carry.a, t.F)))

            def turn():
                J, dloss, da, dy = judge(a, t.F)
                return carry.J + widen(J), _added(carry.dloss, dloss), da, dy

            def down():
                given, dx = F.backward(of_blocks, _at(kept, t.B), _at(carry.da, t.B))
                return given if in_halves else _added(carry.dblocks, given), with_zeros(dx, a)

            def rest():
                return _added(carry.dblocks, backward_params(of_blocks, _at(later, t.W)))

            a, cache = loops.cond(t.F >= 0, up, lambda: (_at(carry.a, t.F), _at(carry.kept, t.F)))
            kept = _put(carry.kept, t.F, cache)
            as_it_is = carry.J, carry.dloss, _at(carry.da, t.F), _at(carry.dy, t.F)
            J, dloss, da, dy = loops.cond((t.F >= 0) & (p == P - 1), turn, lambda: as_it_is)
            made = _at(carry.later, t.B) if in_halves else carry.dblocks
            made, dx = loops.cond(t.B >= 0, down, lambda: (made, _at(carry.dX, t.B)))
            later = _put(carry.later, t.B, made) if in_halves else ()
            dblocks = loops.cond(t.W >= 0, rest, lambda: carry.dblocks) if in_halves else made
            return _Carry(
                a=_come(carry.a, t.before, sent(name, 1, a)),
                da=_come(carry.da, t.behind, where(p == P - 1, da, sent(name, -1, dx))),
                kept=kept,
                later=later,
                dblocks=dblocks,
                dloss=dloss,
                J=J,
                dX=_put(carry.dX, t.B, dx),
                dy=_put(carry.dy, t.F, dy),
            ), None

        a, cache = jax.eval_shape(F.forward, of_blocks, _at(xs, 0))
        J, dloss, da, dy = jax.eval_shape(judge, a, 0)
        made, dx = jax.eval_shape(F.backward, of_blocks, cache, da)
        dblocks = jax.eval_shape(backward_params, of_blocks, made) if in_halves else made
        start = _Carry(
            a=_zeros(a, 1, *most_between(plan.from_before, plan.forward)),
            da=_zeros(da, 1, *most_between(plan.from_behind, plan.backward)),
            kept=_zeros(cache, *plan.kept),
            later=_zeros(made, *plan.waiting) if in_halves else (),
            dblocks=sums(who, layer, dblocks, of_blocks),
            dloss=sums(who, loss, dloss, of_loss),
            J=jnp.zeros((), wide_dtype(J.dtype)),
            dX=_zeros(with_zeros(dx, a), M),
            dy=_zeros(dy, M),
        )
        end, _ = loops.scan(tick, start, ticks)
        J, dloss = lax.psum((cast(end.J / M, J.dtype), end.dloss), name)
        dX, dy = of_one(name, p == 0, end.dX), of_one(name, p == P - 1, end.dy)
        return J, PipelineObjectiveCache((end.dblocks, dloss), dX, tuple(dy) if len(dy) > 1 else dy[0])

    def backward(params, cache, dJ):
        if dJ is None:
            return with_zeros(None, params), None

        def times(d, v):
            return None if d is None else cast(widen(d) * (widen(dJ) / M), v.dtype)

        return _map(times, cache.dparams, params), tuple(_map(times, d, d) for d in (cache.dX, cache.dy))

    lies = SPLIT, ALIKE
    made = Layer(init, forward, backward, who)
    made = laid_out(made, axis, lies, x=ALIKE, cache=PipelineObjectiveCache(lies, ALIKE, ALIKE), y=ALIKE)
    return made._replace(
        parts=pair.layers, rebuild=lambda layer, loss: pipeline_objective(layer, loss, length, axis, M, schedule)
    )


def _map(f, d: PyTree, v: PyTree) -> PyTree:
    """f of the arrays of a cotangent, and of those in the same place in v; of what is `None` in it too."""
    return jax.tree.map(f, d, v, is_leaf=lambda e: e is None)


def _added(total: PyTree, d: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a + widen(b), total, d)


def _zeros(v: PyTree, *at_once: int) -> PyTree:
    """Room for as many of v as the largest of these numbers."""
    return jax.tree.map(lambda a: jnp.zeros((max(at_once), *a.shape), a.dtype), v)


def _at(stack: PyTree, m: Array | int) -> PyTree:
    """That of micro-batch m."""
    return jax.tree.map(lambda s: s[m % len(s)], stack)


def _put(stack: PyTree, m: Array, v: PyTree) -> PyTree:
    """The stack with v as that of micro-batch m."""
    return jax.tree.map(lambda s, a: lax.dynamic_update_index_in_dim(s, a, m % len(s), 0), stack, v)


def _come(stack: PyTree, m: Array, v: PyTree) -> PyTree:
    """The same, where there is an m."""
    return _put(stack, m, where(m >= 0, v, _at(stack, m)))
