"""columns: reverse sweeps that start with something else than the gradient of the loss.

The backward of a network is linear in what the loss gives it. Where that is a column of the square root of the loss's
Hessian, H = S S^T, what arrives at the params is a column of J^T S, J the network's Jacobian, and the sum of the outer
products of them all is the Gauss-Newton matrix J^T H J. The forward runs once for all the sweeps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_size
from bpref.compose.parts import pull
from bpref.cotangents import Root
from bpref.dtypes import widen
from bpref.layer import Layer, map_leaves, require_layer

KNOWN = "softmax_cross_entropy without z_loss, sequence_cross_entropy of all tokens, or square"


Start = Callable[[Root, PyTree], PyTree]
"""`(root, cache)`: what the backward of the loss gives."""


class Columns(NamedTuple):
    """A network whose forward has run.

    Attributes:
      width: how many columns an example has.
      sweep: `(transform, start) -> dparams`, where `start(root, cache)` is what the loss's backward gives, of a leaf
        transformation with the forward of the one that ran.
    """

    width: int
    sweep: Callable[[Callable[[Layer], Layer], Start], PyTree]


def columns(
    who: str, transform: Callable[[Layer], Layer], layer: Layer, params: PyTree, x: PyTree, given: PyTree
) -> Columns:
    """The sweeps of a network whose leaves are transformed, with `given` for its params.

    Raises:
      ValueError: x has no examples; the network does not end in one loss, with a root that is known.
      TypeError: `layer` is no Layer.
    """
    require_layer(who, "layer", layer)
    require_examples(who, x)
    count = _columns_of(who, layer, params, x)
    out, cache = map_leaves(transform, layer).forward(given, x)
    y, data = (out, None) if layer.begin is None else (out[0], x.data)

    def sweep(transform, start):
        network = map_leaves(lambda leaf: transform(_started(leaf, start)), layer)
        return pull(data, network, given, cache, jnp.ones_like(y))[0]

    return Columns(count, sweep)


def examples_of(x: PyTree) -> int:
    """N, the size of the first axis of x, of `With` its value's."""
    return jax.tree.leaves(getattr(x, "x", x))[0].shape[0]


def require_examples(who: str, x: PyTree) -> None:
    """Raise `ValueError` unless x has an axis of examples, and one at least on it."""
    shapes = [jnp.shape(v) for v in jax.tree.leaves(getattr(x, "x", x))]
    if not shapes or not shapes[0] or not shapes[0][0]:
        raise ValueError(f"{who}: x has the shapes {shapes}, expected (N, ...) with at least one example")


def sum_of(who: str, each: Callable[[Start], PyTree], count: int, key: Array | None, draws: int) -> PyTree:
    """The sum of `each(start)` over all columns, in at least float32; with a key the mean over `draws` random ones."""
    draws = require_size(who, "draws", draws)
    keys = None if key is None else jax.random.split(key, draws)

    def one(k):
        def start(root, cache):
            return root.column(cache, k) if keys is None else root.drawn(cache, keys[k])

        return jax.tree.map(widen, each(start))

    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(one, jnp.asarray(0)))
    total = loops.fori_loop(0, count if keys is None else draws, lambda k, t: jax.tree.map(jnp.add, t, one(k)), zeros)
    return total if keys is None else jax.tree.map(lambda v: v / draws, total)


def _started(leaf: Layer, start: Start) -> Layer:
    """The loss with what its backward gives instead; any other leaf as it is."""
    root = leaf.root
    if root is None:
        return leaf
    return leaf._replace(backward=lambda params, cache, dJ: ((), start(root, cache)))


def _columns_of(who: str, layer: Layer, params: PyTree, x: PyTree) -> int:
    losses: list[tuple[Layer, int]] = []

    def noting(leaf):
        def forward(params, x):
            y, cache = leaf.forward(params, x)
            if any(v.ndim == 0 for v in jax.tree.leaves(y if leaf.begin is None else y[0])):
                losses.append((leaf, 0 if leaf.root is None else leaf.root.width(cache)))
            return y, cache

        return leaf._replace(forward=forward)

    y = jax.eval_shape(lambda params, x: map_leaves(noting, layer).forward(params, x)[0], params, x)
    y = y if layer.begin is None else y[0]
    if len(losses) != 1 or losses[0][0].root is None or jnp.shape(y) != ():
        came = " and ".join(leaf.name for leaf, _ in losses) or "no loss"
        raise ValueError(
            f"{who}: the network ends in {came}; expected one loss with a root of its Hessian that is known: {KNOWN}"
        )
    return losses[0][1]
