"""pipeline: `scan`'s layers in stages, one on each device, through which parts of the batch go one after the other.

Forward, with L layers on P devices, of which device p has L / P one after the other, its stage F_p, and x in M
micro-batches along its first axis: in tick t = 0 ... M + P - 2 device p works on micro-batch m = t - p, if there is
one, and sends what it has made to the next:

    a_p,m = F_p(a_p-1,m)        a_-1,m = x_m, read by device 0            y_m = a_P-1,m, of device P - 1

x and y are alike on all devices, though the first reads x, and the last makes y, alone.

Differential: that of the stages in series, for each micro-batch by itself, so from tick M + P - 2 back to 0

    da_p-1,m = F_p's backward of da_p,m      sent to the device before    da_P-1,m = dy_m, read by device P - 1
    dP[l]    = sum over m of what F_p's backward gives for it, on the device that has layer l

So a_p,m crosses from p to p + 1, da_p,m from p + 1 to p, once in each tick. The last device's y, and dx, which is that
of device 0, are zero on all others and summed over the devices: one all-reduce either way.

Of M + P - 1 ticks a device has work in M: (P - 1) / (M + P - 1) of the time is the bubble. A tick without work is gone
through with zeros, and what comes of it is 0 in all sums.

Cached: the caches of all ticks; of `pipeline(remat(block), ...)`, one input of each layer.

Numerical care: sums over micro-batches are in at least float32, and rounded once.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_sizes
from bpref.compose.stages import divided, entry, of_one, require_separable, sent, stage_of, sums, where
from bpref.cotangents import with_zeros
from bpref.dtypes import cast, widen
from bpref.layer import C, Layer, P, X, Y, require_layer, require_no_state
from bpref.over_devices import ALIKE, SPLIT, axis_name, laid_out, own_key


def pipeline(layer: Layer[P, X, Y, C], length: int, axis: str | int, microbatches: int) -> Layer[P, X, Y, C]:
    """`scan(layer, length)` inside of `jax.shard_map`, its stacked params split along the axis: GPipe.

    Args:
      layer: its output must have its input's shapes.
      length: the number of layers L, a multiple of the number of devices P.
      axis: the name of the axis of the mesh, for `jax.shard_map`; or the number P of stages, all on one device.
      microbatches: M, into how many parts x is divided along its first axis.

    Returns:
      A layer with params, caches and dparams of which each device has the blocks of L / P layers that come one after
      the other in those of `scan(layer, length)`; x and y as there, alike on all devices. With P stages on one device,
      params have P in front of L / P.

    Example:
      >>> layer = bpref.pipeline(bpref.tanh(), length=4, axis=2, microbatches=2)
      >>> y, dparams, dX = bpref.backpropagate(layer, (), X, X)

    Raises:
      TypeError: `layer` is no Layer, or has state.
      ValueError: a number is no positive integer, or L no multiple of P; x has no axis of M micro-batches, or the layer
        changes its shapes; a leaf takes all examples together, which micro-batches are not, or puts in the place of
        dparams what does not add up over them, as an update or the norms of examples.
    """
    require_layer("pipeline", "layer", layer)
    require_no_state("pipeline", layer)
    length, M = require_sizes("pipeline", length=length, microbatches=microbatches)
    name = axis_name("pipeline", axis)
    require_separable("pipeline", layer)

    def stage():
        return stage_of("pipeline", layer, length, name)

    def init(key, x):
        return stage().init(own_key(key, name), x)

    def forward(params, x):
        F, p, last, xs = stage(), lax.axis_index(name), lax.axis_size(name) - 1, divided("pipeline", M, x)

        def tick(came, t):
            y, cache = F.forward(params, where(p == 0, entry(xs, t), came))
            return sent(name, 1, y), (y, cache)

        ticks = jnp.arange(M + last, dtype=jnp.int32)
        _, (ys, caches) = loops.scan(tick, jax.tree.map(lambda v: jnp.zeros_like(v[0]), xs), ticks)
        return of_one(name, p == last, jax.tree.map(lambda v: v[last:], ys)), caches

    def backward(params, caches, dy):
        F, p, last = stage(), lax.axis_index(name), lax.axis_size(name) - 1
        if not jax.tree.leaves(dy):
            return F.backward(params, jax.tree.map(lambda v: v[0], caches), dy)
        dys = divided("pipeline", M, dy)

        def tick(carry, of_tick):
            (came, total), (t, cache) = carry, of_tick
            m = t - p
            has_work = (m >= 0) & (m < M)
            dparams, dx = F.backward(params, cache, where(p == last, entry(dys, m), came))
            dparams, dx = _or_zero(has_work, (dparams, with_zeros(dx, came)))
            return (sent(name, -1, dx), jax.tree.map(lambda a, d: a + widen(d), total, dparams)), dx

        start = jax.tree.map(lambda v: jnp.zeros_like(v[0]), dys)
        like = jax.eval_shape(lambda c: F.backward(params, c, start)[0], jax.tree.map(lambda v: v[0], caches))
        total = sums("pipeline", layer, like, params)
        ticks = jnp.arange(M + last, dtype=jnp.int32)
        (_, total), dxs = loops.scan(tick, (start, total), (ticks, caches), reverse=True)
        dparams = jax.tree.map(lambda d, v: cast(d, v.dtype), total, like)
        return dparams, of_one(name, p == 0, jax.tree.map(lambda v: v[:M], dxs))

    made = laid_out(Layer(init, forward, backward, "pipeline"), axis, SPLIT, x=ALIKE, cache=SPLIT, y=ALIKE)
    return made._replace(parts=(layer,), rebuild=lambda part: pipeline(part, length, axis, M), names=("",))


def _or_zero(which: Array, a: PyTree) -> PyTree:
    return jax.tree.map(lambda v: jnp.where(which, v, 0), a)
