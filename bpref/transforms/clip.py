"""clip: the sum of the examples' gradients, each no longer than a bound, without any of them being made.

With g_i what example i adds to the gradient and C the bound, over all params, or over a leaf's alone:

    clipped = sum_i c_i g_i,     c_i = min(1, C / |g_i|)

The sweep is linear in dy, and nothing mixes the examples: c_i g_i is what comes of c_i dy_i. So one sweep gives the
norms of all g_i (`per_example_norms`), and each leaf keeps what its part is made of once they are known
("book-keeping", Bu et al., arXiv:2210.00038): its dy, for a second time through its own backward alone, or the g_i
themselves, where they weigh no more than twice its cache. A leaf that reads data, and whose g_i weigh more, keeps
neither: then a second sweep, from the same caches and with dy times c where it leaves the loss, gives the whole ("ghost
clipping", Li et al., arXiv:2110.05679). By leaves each has its own norms, and is done at once.

The gradient of differentially private training is that and noise, for each array N(0, (C sigma)^2) (Abadi et al.,
arXiv:1607.00133, algorithm 1).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import PyTree

from bpref.checks.hyperparameters import require_flags, require_non_negative, require_positive
from bpref.compose.parts import pull
from bpref.compose.split import Later
from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer, as_cotangent, map_leaves, require_layer
from bpref.transforms.per_example import (
    WHOLE,
    PerExampleCache,
    per_example_norms,
    squared_norm,
    squared_norms,
    transformed,
)


class Clipped(NamedTuple):
    """What `clipped_gradient` gives.

    Attributes:
      y: the output; of a stateful layer the pair of it and the next state.
      dparams: the sum of the clipped gradients, a tree like params.
      norms: the length of each example's gradient before, `(N,)`; by leaves, a tree of them.
    """

    y: PyTree
    dparams: PyTree
    norms: PyTree


def clipped_gradient(
    layer: Layer, params: PyTree, x: PyTree, bound: float, dy: PyTree = None, by_leaf: bool = False
) -> Clipped:
    """The sum over the examples of their gradients, each at most `bound` long.

    Args:
      layer: a composition down to one number J, such as an `objective`, or to outputs that begin with the examples.
      params, x: as of `backpropagate`.
      bound: C. Where J is a mean over N examples, what an example adds is 1/N of its own loss's gradient: to bound that
        one by C, let `bound` be C / N.
      dy: the cotangent of y, where y is not one number.
      by_leaf: whether every leaf's part of a gradient has the bound by itself, and not the whole.

    Example:
      >>> _, dparams, norms = bpref.clipped_gradient(J, params, (X, y), 0.1 / len(X))

    Raises:
      ValueError: `bound` is not a positive number; a layer couples examples, or is a loss with params.
      TypeError: `layer` is no Layer.
    """
    who = "clipped_gradient"
    require_layer(who, "layer", layer)
    require_flags(who, by_leaf=by_leaf)
    bound = require_positive(who, "bound", bound)
    refused: list[Layer] = []
    booking = map_leaves(_clipped_leaf(bound) if by_leaf else partial(_booked_leaf, refused), layer)
    out, cache = booking.forward(params, x)
    y, data = (out, None) if layer.begin is None else (out[0], x.data)
    dy = as_cotangent(layer.name, dy, y)
    sweeping = map_leaves(per_example_norms, layer) if refused else booking
    swept, _, _ = pull(data, sweeping, params, cache, dy)
    if by_leaf:
        return Clipped(
            out, *(jax.tree.map(lambda v, k=k: v[k] if _is_part(v) else v, swept, is_leaf=_is_part) for k in (0, 1))
        )
    if not refused:
        parts, tree = jax.tree.flatten(swept, is_leaf=lambda v: v is None or _is_part(v))
        norms = jnp.sqrt(squared_norms([part.norms for part in parts if _is_part(part)]))
        share = _share(norms, bound)
        given = zip(parts, tree.flatten_up_to(params), strict=True)
        return Clipped(
            out, tree.unflatten(_summed(part, own, share) if _is_part(part) else part for part, own in given), norms
        )
    norms = jnp.sqrt(squared_norms(swept))
    share = _share(norms, bound)
    weighed = map_leaves(lambda leaf: weighing(leaf, share), layer)
    dparams, _, _ = pull(data, weighed, params, cache, _weighed(dy, share))
    return Clipped(out, dparams, norms)


def private_gradient(
    layer: Layer, params: PyTree, x: PyTree, bound: float, multiplier: float, key: Array, dy: PyTree = None
) -> Clipped:
    """`clipped_gradient`, and noise: that of differentially private gradient descent.

    Args:
      layer, params, x, bound, dy: as there.
      multiplier: sigma; the standard deviation of the noise is sigma C, in every number of dparams.
      key: a PRNG key.

    Example:
      >>> bound = 0.1 / len(X)
      >>> _, dparams, _ = bpref.private_gradient(J, params, (X, y), bound, 1.1, jax.random.key(0))

    Raises:
      ValueError: `bound` is not a positive number, `multiplier` negative; and as there.
      TypeError: `layer` is no Layer.
    """
    multiplier = require_non_negative("private_gradient", "multiplier", multiplier)
    clipped = clipped_gradient(layer, params, x, bound, dy)
    arrays, tree = jax.tree.flatten(clipped.dparams)
    keys = jax.random.split(key, len(arrays))

    def noisy(d, key):
        noise = jax.random.normal(key, d.shape, wide_dtype(d.dtype))
        return cast(widen(d) + multiplier * bound * noise, d.dtype)

    return clipped._replace(dparams=tree.unflatten(map(noisy, arrays, keys)))


class _Part(NamedTuple):
    """A leaf's clipped gradient, and the norms before; or, of all examples, g_i or `Later`, and the norms' squares."""

    dparams: PyTree
    norms: Array


def _is_part(v: object) -> bool:
    return isinstance(v, _Part)


def _share(norms: Array, bound: float) -> Array:
    """min(1, C / |g_i|), 1 where g_i is 0."""
    return bound / jnp.maximum(norms, bound)


def _weighed(tree: PyTree, share: Array) -> PyTree:
    """All that has an axis of examples in front times their shares."""

    def weighed(d):
        weights = share.reshape(-1, *(1,) * (d.ndim - 1))
        return cast(widen(d) * cast(weights, wide_dtype(d.dtype)), d.dtype)

    return jax.tree.map(lambda d: weighed(d) if d.shape[:1] == share.shape else d, tree)


def _weighed_rows(leaf: Layer, cache: PyTree, dy: PyTree, share: Array) -> PyTree:
    """dy of a leaf, its examples weighed; of a loss with params a dJ for each row."""
    value, *data = (dy,) if leaf.begin is None else dy
    if isinstance(cache, WHOLE) and value is not None:
        value = jnp.broadcast_to(value, cache.label.shape)
    value = _weighed(value, share)
    return (value, *data) if data else value


def _plain(cache: PyTree) -> PyTree:
    return cache.leaf if isinstance(cache, PerExampleCache) else cache


def weighing(leaf: Layer, share: Array) -> Layer:
    """The leaf; where it makes one number of all examples, their shares come in on the way back."""

    def backward(params, cache, dy):
        cache = _plain(cache)
        if isinstance(cache, WHOLE):
            return leaf.backward(params, cache, _weighed_rows(leaf, cache, dy, share))
        dparams, dx = leaf.backward(params, cache, dy)
        if any(d.ndim for d in jax.tree.leaves(dy if leaf.begin is None else dy[0])):
            return dparams, dx
        if leaf.begin is None or dx is None:
            return dparams, _weighed(dx, share)
        return dparams, dx._replace(x=_weighed(dx.x, share))

    return leaf._replace(backward=backward)


def _booked_leaf(refused: list[Layer], leaf: Layer) -> Layer:
    """A leaf transformation: dparams are `_Part`s; a leaf of which that would keep too much is added to `refused`."""
    measuring, keeping = per_example_norms(leaf), transformed("clipped_gradient", leaf, _with_squares, {}, keeps=True)

    def forward(params, x):
        y, cache = measuring.forward(params, x)
        if isinstance(cache, PerExampleCache) and leaf.begin is not None and not is_light(params, cache):
            refused.append(leaf)
        return y, cache

    def backward(params, cache, dy):
        if not isinstance(cache, PerExampleCache):
            return leaf.backward(params, cache, dy)
        if is_light(params, cache):
            return keeping.backward(params, cache, dy)
        squares, dx = measuring.backward(params, cache, dy)
        return _Part(Later(cache.leaf, dy, leaf, tuple(v.ndim for v in jax.tree.leaves((cache.leaf, dy)))), squares), dx

    return measuring._replace(forward=forward, backward=backward)


def is_light(params: PyTree, cache: PerExampleCache) -> bool:
    """Whether all g_i of a leaf are at most twice its cache; what is shared has them made already."""
    sizes = (sum(jnp.size(v) for v in jax.tree.leaves(tree)) for tree in (params, cache.leaf))
    of_params, of_cache = sizes
    return cache.examples is None or cache.examples * of_params <= 2 * of_cache


def _with_squares(g: PyTree) -> PyTree:
    return _Part(g, squared_norm(g)) if jax.tree.leaves(g) else g


def _summed(part: _Part, params: PyTree, share: Array) -> PyTree:
    """The sum of a leaf's gradients times their shares, for each turn of a scan, whose axes are in front."""
    turns = jnp.ndim(part.norms) - 1

    def weighed(g):
        return cast(jnp.tensordot(cast(share, wide_dtype(g.dtype)), widen(g), ((0,), (turns,))), g.dtype)

    if not isinstance(part.dparams, Later):
        return jax.tree.map(weighed, part.dparams)
    leaf = part.dparams.leaf

    def made(turns, given):
        if turns:
            return jax.lax.map(partial(made, turns - 1), given)
        params, cache, dy = given
        return leaf.backward(params, cache, _weighed_rows(leaf, cache, dy, share))[0]

    return made(turns, (params, part.dparams.cache, part.dparams.dy))


def _clipped_leaf(bound: float) -> Callable[[Layer], Layer]:
    """A leaf transformation: dparams are the sum of this leaf's clipped gradients, and the norms before."""

    def transform(leaf: Layer) -> Layer:
        measuring = per_example_norms(leaf)

        def backward(params, cache, dy):
            squares, dx = measuring.backward(params, cache, dy)
            if not isinstance(cache, PerExampleCache) or not jax.tree.leaves(squares):
                return squares, dx
            norms = jnp.sqrt(squares)
            share = _share(norms, bound)
            dparams, _ = leaf.backward(params, cache.leaf, _weighed_rows(leaf, cache.leaf, dy, share))
            if cache.examples is None:
                dparams = jax.tree.map(lambda d: cast(jnp.sum(widen(d), 0), d.dtype), dparams)
            return _Part(dparams, norms), dx

        return measuring._replace(backward=backward)

    return transform
