"""per_example: what each example adds to the gradient, or how long that is, in one reverse sweep.

An example is an entry of the first axis of x, as it is of every y. A leaf's dparams are a sum over them,

    dP = sum_i g_i,     g_i = f's backward of dy, all of it zero but example i's

and so is the gradient of a network of such leaves: g_i is dJ/dP through example i alone. Where J is a mean over N
examples, g_i is 1/N of the gradient of example i's own loss.

`per_example_gradients` gives g_i, with i as a first axis. `per_example_norms` gives sum(g_i^2), in places where g_i is
never made: for Z = A W^T + b of N rows, dW of one example is the outer product of its rows, so that

    |dW_i|^2 + |db_i|^2 = |dZ_i|^2 |A_i|^2 + |dZ_i|^2

and for sequences, with rows t and s of example i, the cheaper of two contractions (both smaller than A and dZ):

    |dW_i|^2 = sum_ts (dZ_it . dZ_is) (A_it . A_is)  = |dZ_i^T A_i|^2         T^2 (d + m) or T d m products

The rows of an embedding's table that an example reads more than once are added up before they are squared. Every other
leaf's g_i comes of its own backward, run for each example's part of its cache. Which axis of the cache is the examples'
is told by shapes: it is the one that grows with x. What attention drops of its weights is a function of the key and of
the weight's place, so that an example alone has it made again from the key and its number. Where the axis cannot be
told, or a key draws for all examples together in another way, the backward is run for each example in turn with all
other dy zero, which is what g_i is, at N times the cost.

Source of the norms: Goodfellow, arXiv:1510.01799; of sequences Li et al., arXiv:2110.05679, section 4.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.apart import sealed
from bpref.compose.parts import pull
from bpref.dtypes import cast, wide_dtype, widen
from bpref.keys import numbered
from bpref.layer import Layer, With, require_layer
from bpref.rules.convolution.convolution import ConvolutionCache, ConvolutionParams
from bpref.rules.linear.embedding import EmbeddingCache, EmbeddingParams
from bpref.rules.linear.linear import LinearCache, LinearParams
from bpref.rules.sequence_loss.fused_linear_cross_entropy import FusedLinearCrossEntropyCache
from bpref.transforms.example_axes import KEYED, axes_of_examples, require_examples


@jax.tree_util.register_dataclass
@dataclass
class PerExampleCache:
    """A leaf's cache, and what is known of its shapes.

    Attributes:
      leaf: the cache.
      examples: N; `None` of a leaf without input: what is shared, whose dy comes with an axis of the examples.
      axes: that of the examples in each array, `None` for one without, `KEYED` for a key of which each example is to
        have its own; `None` where it cannot be taken apart.
    """

    leaf: PyTree
    examples: int | None = field(metadata={"static": True})
    axes: tuple[int | None, ...] | None = field(default=None, metadata={"static": True})


Sweep = Callable[..., PyTree]
Reduced = Callable[[PyTree], PyTree]
"""What is made of the gradient of each example."""

Formulas = Mapping[tuple[type, type], Callable[[Layer, PyTree, PyTree, PyTree], PyTree]]
"""`(leaf, params, cache, dy) -> ` the same of all examples at once, by the types of params and cache."""


def per_example_gradients(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: every array of dparams has the examples as its first axis.

    Inside `scan` that is the axis after the turns'. Their sum over the examples is the gradient.

    Example:
      >>> J, X, y = bpref.objective(bpref.linear(3), bpref.softmax_cross_entropy()), jnp.ones((4, 2)), jnp.arange(4) % 3
      >>> params = J.init(jax.random.key(0), (X, y))
      >>> _, dparams, _ = bpref.backpropagate(bpref.map_leaves(bpref.per_example_gradients, J), params, (X, y))
      >>> dparams[0].W.shape
      (4, 3, 2)

    Raises:
      ValueError: the leaf couples examples, as batch statistics do; or, at the call, it has params and its output no
        axis of examples, as a loss with params.
      TypeError: `leaf` is no Layer.
    """
    return transformed("per_example_gradients", leaf, _same, {}, keeps=True)


def per_example_norms(leaf: Layer) -> Layer:
    """A leaf transformation, for `map_leaves`: dparams of a leaf are the squared norms of its gradients, `(N,)`.

    Inside `scan` each turn has its own. `squared_norms` adds all of a network up. What is `shared` has the norms of the
    sum over its places.

    Example:
      >>> _, norms, _ = bpref.backpropagate(bpref.map_leaves(bpref.per_example_norms, J), params, (X, y))
      >>> bpref.squared_norms(norms).shape
      (4,)

    Raises:
      ValueError, TypeError: as `per_example_gradients`.
    """
    return transformed("per_example_norms", leaf, squared_norm, NORMS)


def squared_norms(norms: PyTree) -> Array:
    """The squared norm of every example's gradient of the whole, `(N,)`. The example is that of `per_example_norms`.

    Args:
      norms: the dparams of a network whose leaves are `per_example_norms`.

    Raises:
      ValueError: there are none, or of different numbers of examples.
    """
    return added_up("squared_norms", "norms", norms, 1)


def added_up(who: str, what: str, tree: PyTree, axes: int) -> Array:
    """The sum over all leaves of a network and all turns, which are in front of the last `axes`, each of N."""
    each = jax.tree.leaves(tree)
    kept = {v.shape[-axes:] for v in each}
    if len(kept) != 1 or any(v.ndim < axes for v in each) or len(set(*kept)) != 1:
        shapes = ", ".join(str(v.shape) for v in each) or "nothing"
        raise ValueError(f"{who}: {what} have the shapes {shapes}, expected (..., {'N, ' * (axes - 1)}N) of one N")
    return sum(jnp.sum(v, tuple(range(v.ndim - axes))) for v in each)  # pyright: ignore[reportReturnType]


def _same(g: PyTree) -> PyTree:
    return g


def squared_norm(g: PyTree) -> PyTree:
    """The sum of the squares of all arrays, in at least float32; of none, what came."""
    arrays = jax.tree.leaves(g)
    return sum(jnp.sum(jnp.abs(widen(v)) ** 2) for v in arrays) if arrays else g


def transformed(who: str, leaf: Layer, reduced: Reduced, formulas: Formulas, keeps: bool = False) -> Layer:
    """The leaf whose dparams are `reduced(g_i)` for every example i; where that `keeps` g_i, all are made at once."""
    require_layer(who, "leaf", leaf)
    if leaf.couples:
        raise ValueError(
            f"{who}: {leaf.name} takes {leaf.couples} of all examples together, so that no gradient is one example's; "
            "expected layers that treat each by itself, as bpref.evaluation(layer) or layer_norm does"
        )
    beside = leaf.begin is not None

    def forward(params, x):
        y, cache = leaf.forward(params, x)
        out, given, data = (y[0], x.x, x.data) if beside else (y, x, None)
        own, _, of_data = jax.eval_shape(lambda *given: pull(data, leaf, *given), params, cache, out)
        if not jax.tree.leaves((own, of_data)):
            return y, cache
        if not jax.tree.leaves(given):
            return y, PerExampleCache(cache, None)
        require_examples(who, leaf, given, cache)
        is_loss = any(v.ndim == 0 for v in jax.tree.leaves(out))
        if is_loss and not isinstance(cache, WHOLE):
            raise ValueError(
                f"{who}: {leaf.name} has params, and its output no axis of examples; expected a layer with params and "
                "a loss without, as linear and softmax_cross_entropy, or fused_linear_cross_entropy without rows"
            )
        n = jax.tree.leaves(given if is_loss else out)[0].shape[0]
        return y, PerExampleCache(cache, n, axes_of_examples(leaf, params, x, n))

    def backward(params, cache, dy):
        if not isinstance(cache, PerExampleCache):
            return leaf.backward(params, cache, dy)
        n, dy, data = cache.examples, *(dy if beside else (dy, None))
        sweep = partial(pull, data, leaf, params)
        formula = None if beside else formulas.get((type(params), type(cache.leaf)))
        if n is None:
            dparams, dx, of_data = sweep(cache.leaf, dy)
            dparams = jax.vmap(reduced)(dparams)
        elif not jax.tree.leaves(dy):
            dparams, dx, of_data = sweep(cache.leaf, dy)
            dparams, of_data = jax.tree.map(lambda d: jnp.zeros((n, *d.shape), d.dtype), (dparams, of_data))
            dparams = jax.vmap(reduced)(dparams)
        elif formula is not None:
            dparams, (_, dx, of_data) = formula(leaf, params, cache.leaf, dy), sweep(cache.leaf, dy)
        elif leaf.opened is not None and not beside and _is_convolution(params, cache.leaf):
            (_, dx, of_data), each = sweep(cache.leaf, dy), _convolution(leaf.opened, params, cache.leaf, dy)
            dparams = jax.vmap(reduced)(each)
        elif cache.axes is None:
            dx = sweep(cache.leaf, dy)[1]
            dparams, of_data = lax.map(lambda i: _of(sweep(cache.leaf, _alone(i, dy)), reduced), jnp.arange(n))
        else:
            dparams, dx, of_data = _by_slices(sweep, cache, dy, reduced, () if keeps else (params, data))
        return dparams, With(dx, None, of_data) if beside else dx

    again = partial(transformed, who, reduced=reduced, formulas=formulas, keeps=keeps)
    return sealed(who, leaf, again, forward=forward, backward=backward)


def _by_slices(sweep: Sweep, cache: PerExampleCache, dy: PyTree, reduced: Reduced, made: PyTree) -> PyTree:
    """What each example's own part of cache and dy gives; dx of all of them, as the sweep of the whole would.

    There are no more g_i at a time, each as large as `made`, than weigh as much as cache and dy.
    """
    n = cache.examples or 0
    arrays, tree = jax.tree.flatten((cache.leaf, dy))
    axes = [*(cache.axes or ()), *(0 if v.ndim else None for v in jax.tree.leaves(dy))]
    is_key = [axis == KEYED for axis in axes]
    arrays = [numbered(v, n) if keyed else v for v, keyed in zip(arrays, is_key, strict=True)]
    axes = [0 if keyed else axis for axis, keyed in zip(axes, is_key, strict=True)]
    of_each = sum(v.size for v in jax.tree.leaves(made))
    at_once = max(1, sum(v.size for v in arrays) // of_each) if of_each else n

    def one(slices):
        each = zip(slices, axes, is_key, strict=True)
        own = [v if axis is None or keyed else jnp.expand_dims(v, axis) for v, axis, keyed in each]
        dparams, dx, of_data = sweep(*tree.unflatten(own))
        return reduced(dparams), dx, of_data

    def of(own):
        slices = iter(own)
        return one([v if axis is None else next(slices) for v, axis in zip(arrays, axes, strict=True)])

    def together(each, whole):
        """Of what is in x for all examples, as the bias of all attention is, the sum."""
        same = each.size == math.prod(whole.shape)
        return each.reshape(whole.shape) if same else cast(jnp.sum(widen(each), 0), whole.dtype)

    if at_once >= n:
        dparams, dx, of_data = jax.vmap(one, (axes,))(arrays)
    else:
        in_front = [jnp.moveaxis(v, axis, 0) for v, axis in zip(arrays, axes, strict=True) if axis is not None]
        dparams, dx, of_data = lax.map(of, in_front, batch_size=at_once)
    return dparams, jax.tree.map(together, dx, jax.eval_shape(sweep, cache.leaf, dy)[1]), of_data


def _of(swept: PyTree, reduced: Reduced) -> PyTree:
    dparams, _, of_data = swept
    return reduced(dparams), of_data


def _alone(i: Array, dy: PyTree) -> PyTree:
    """dy of example i, zero elsewhere."""
    return jax.tree.map(lambda d: jnp.zeros_like(d).at[i].set(d[i]), dy)


def as_sequences(v: Array) -> Array:
    """(N, ..., d) as (N, T, d)."""
    return v.reshape(v.shape[0], math.prod(v.shape[1:-1]), v.shape[-1])


def _linear(leaf: Layer, params: LinearParams, cache: LinearCache, dZ: Array) -> Array:
    """The squared norms of `linear`, of rows (N, d) and of sequences (N, ..., d)."""
    A, dZ = (as_sequences(widen(v)) for v in (cache.A, dZ))
    _, T, d = A.shape
    m = dZ.shape[-1]
    of_b = 0 if params.b is None else jnp.sum(jnp.sum(dZ, 1) ** 2, -1)
    if T == 1:
        return jnp.sum(dZ**2, (1, 2)) * jnp.sum(A**2, (1, 2)) + of_b
    if T * (d + m) < d * m:
        return jnp.sum(jnp.einsum("ntk,nsk->nts", dZ, dZ) * jnp.einsum("ntj,nsj->nts", A, A), (1, 2)) + of_b
    return jnp.sum(jnp.einsum("ntk,ntj->nkj", dZ, A) ** 2, (1, 2)) + of_b


def _is_convolution(params: PyTree, cache: PyTree) -> bool:
    return type(params) is ConvolutionParams and type(cache) is ConvolutionCache


def _convolution(opened: Sweep, params: ConvolutionParams, cache: ConvolutionCache, dy: PyTree) -> ConvolutionParams:
    """g_i of `convolution`, a product for each example and group.

    What windows see is made of no more examples at a time than weigh as much as x and dy of all.
    """

    def one(x, dy):
        d = opened(params, ConvolutionCache(x[None]), dy[None])[0]
        dZ, A = d.W.dZ[0], d.W.A[0]
        W = jnp.einsum("rgm,rgk->gmk", dZ, cast(A, dZ.dtype), preferred_element_type=A.dtype)
        db = None if params.b is None else cast(jnp.sum(widen(dy), range(dy.ndim - 1)), params.b.dtype)
        return ConvolutionParams(cast(W.reshape(params.W.shape), params.W.dtype), db)

    x = cache.x
    of_windows = math.prod(dy.shape[1:-1]) * math.prod(params.W.shape[1:-1]) * x.shape[-1]
    at_once = max(1, (x.size + dy.size) // max(1, of_windows))
    return jax.vmap(one)(x, dy) if at_once >= len(x) else lax.map(lambda of: one(*of), (x, dy), batch_size=at_once)


def _embedding(leaf: Layer, params: EmbeddingParams, cache: EmbeddingCache, dy: Array) -> Array:
    """The squared norms of `embedding`: of each row of the table that an example reads, what it adds up to."""
    ids, dy = trained_rows(leaf, params, cache, dy)

    def one(ids, dy):
        place = jnp.unique(ids, size=ids.size, return_inverse=True)[1].reshape(-1)
        return jnp.sum(jnp.zeros_like(dy).at[place].add(dy) ** 2)

    return jax.vmap(one)(ids, dy)


def trained_rows(leaf: Layer, params: EmbeddingParams, cache: EmbeddingCache, dy: Array) -> tuple[Array, Array]:
    """Ids (N, T), and dy (N, T, d), zero where the row that is read is not trained, as that of the padding is not."""
    dy = as_sequences(widen(dy))
    ids = cache.x.reshape(dy.shape[:2])
    trained = reads_of(leaf, params, cache) != 0
    V = len(trained)
    counts = (ids >= 0) & (ids < V) & trained[jnp.clip(ids, 0, V - 1)]
    return ids, jnp.where(counts[..., None], dy, 0)


def reads_of(leaf: Layer, params: EmbeddingParams, cache: EmbeddingCache) -> Array:
    """How often each row of an embedding's table is read where it is trained, `(V,)`."""
    ones = jnp.ones((*cache.x.shape, 1), wide_dtype(params.W.dtype))
    return leaf.backward(EmbeddingParams(widen(params.W[:, :1])), cache, ones)[0].W[:, 0]


WHOLE = (FusedLinearCrossEntropyCache,)
"""Caches of losses with params that keep what is of all examples: a part of them gives its part of the gradient."""

NORMS: Mapping[tuple[type, type], Callable[..., Array]] = {
    (LinearParams, LinearCache): _linear,
    (EmbeddingParams, EmbeddingCache): _embedding,
}
"""Where g_i is not made, by the types of params and cache: `(leaf, params, cache, dy) -> (N,)`."""
