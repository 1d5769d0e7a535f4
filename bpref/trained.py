"""Which arrays of a network's params are trained, and those alone: what an optimiser is given."""

import jax
from jaxtyping import PyTree

from bpref.cotangents import has_cotangent
from bpref.dtypes import require_arrays
from bpref.layer import Layer, require_layer


def trainable(layer: Layer, params: PyTree, x: PyTree) -> PyTree:
    """Which leaves of `params` are trained: a tree of `params`' structure that holds True and False.

    A leaf is trained unless the backward's cotangent for it is `None`, as for a PRNG key or a running
    statistic. Nothing is computed: the sweep is traced by shape alone.

    Example:
      >>> p = bpref.dropout(0.5).init(jax.random.key(0), X)
      >>> jax.tree.leaves(bpref.trainable(bpref.dropout(0.5), p, X))
      [False]
    """
    require_layer("trainable", "layer", layer)
    require_arrays("trainable", params=params, x=x)

    def sweep(params, x):
        y, cache = layer.forward(params, x)
        return layer.backward(params, cache, y if layer.begin is None else (y[0], x.data))[0]

    return has_cotangent(params, jax.eval_shape(sweep, params, x))


def select(mask: PyTree, params: PyTree) -> PyTree:
    """`params` with `None` in place of every leaf where `mask` is False: what an optimiser is given."""
    return jax.tree.map(lambda keep, p: p if keep else None, mask, params)
