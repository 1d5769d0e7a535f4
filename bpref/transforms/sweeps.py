"""sweeps: the update of a whole step, clipped by the gradient's norm, of any number of micro-batches, no gradient made.

With g_m the gradient of micro-batch m of k and G their mean, which is that of the batch where J is a mean,

    G = 1/k sum_m g_m        update by  c G,        c = min(1, C / |G|),   |G| over all parameters together

c needs all of G before the first update. But it is one number, and a sweep is linear in dJ. So the last micro-batch is
swept twice, from the same caches: the first sweep leaves sum(G^2) of each leaf in the place of dparams and nothing
else; the second begins at dJ = c/k, so that c g_k/k comes to each leaf, and updates it there and then.

The sums of the micro-batches before are kept in at least float32, and rounded once, to the parameters' dtype. Each leaf
adds to its own as its gradient comes: beside these sums there is never more than one layer's gradient, and inside of
`scan` each turn writes over its own slices of parameters, optimiser state and sums.

Source of clipping by the global norm: Pascanu et al., arXiv:1211.5063, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import PyTree

from bpref import loops
from bpref.checks.hyperparameters import require_positive_or_none, require_size
from bpref.compose.parts import added, pull
from bpref.dtypes import cast, wide_dtype, widen
from bpref.layer import Layer, With, as_cotangent, map_leaves, require_layer
from bpref.transforms.update_in_backward import Updated, apply_update, require_by_itself

if TYPE_CHECKING:
    import optax


class Swept(NamedTuple):
    """What `update_by_sweeps` gives.

    Attributes:
      y: J, the mean over the micro-batches; of a layer with state the pair of it and the next state.
      updated: the parameters and the optimiser's state to go on with.
      norm: |G|, the length of the gradient before it is clipped; `None` where there is no bound.
    """

    y: PyTree
    updated: PyTree
    norm: Array | None


class _Summing(NamedTuple):
    """A leaf's params and optimiser state, and the sum of the gradients so far; `None` where there is none."""

    updated: PyTree
    total: PyTree


def update_by_sweeps(
    layer: Layer,
    optimizer: optax.GradientTransformation,
    updated: PyTree,
    x: PyTree,
    bound: float | None = None,
    micro_batches: int = 1,
) -> Swept:
    """One step of training: the update by the gradient, no longer than `bound`, of the mean of all micro-batches.

    Jit it, and donate `updated`: nothing of its size is made a second time then.

    Args:
      layer: a composition down to one number J, a mean over the examples.
      optimizer: any optax transformation that updates each array from its own gradient, state and value, as of
        `update_in_backward`. Clipping by the global norm is `bound`'s part.
      updated: params and optimiser state, by `init` of `map_leaves(update_in_backward(optimizer), layer)`, or by this.
      x: as of `backpropagate`; every array of it, and of the data beside it, begins with the N examples.
      bound: C; left out, the gradient is not clipped.
      micro_batches: k, into which the N examples are divided in their order; a state goes through them one by one.

    Example:
      >>> adam = optax.adam(1e-3)
      >>> updated = bpref.map_leaves(bpref.update_in_backward(adam), J).init(jax.random.key(0), (X, y))
      >>> value, updated, norm = bpref.update_by_sweeps(J, adam, updated, (X, y), bound=1.0, micro_batches=2)
      >>> params = bpref.params_of(updated)

    Raises:
      ValueError: `bound` is no positive number, `micro_batches` no positive integer or not a divisor of N; the output
        is not one scalar; the optimiser is refused by `update_in_backward`.
      TypeError: `layer` is no Layer, `optimizer` no optax transformation.
    """
    who = "update_by_sweeps"
    require_layer(who, "layer", layer)
    require_by_itself(who, optimizer)
    bound = require_positive_or_none(who, "bound", bound)
    k = require_size(who, "micro_batches", micro_batches)
    arrays, state = ((x.x, x.data), x.state) if isinstance(x, With) else ((x, ()), ())
    first, last = _divided(who, arrays, k)
    own, values = _each(updated, lambda node: _Summing(node, None)), jnp.zeros(0)
    if k > 1:
        own, state, values = _summed(layer, updated, first, state, k - 1)

    measuring = map_leaves(_leaf(lambda own, g: _square(_mean(own, g, 1 / k))), layer)
    y, cache = measuring.forward(own, _given(layer, last, state))
    value, *after = (y,) if layer.begin is None else y
    weight, norm = jnp.asarray(1 / k, value.dtype), None
    dJ = as_cotangent(layer.name, None, value) * weight
    if bound is not None:
        norm = jnp.sqrt(_total(pull(last[1], measuring, own, cache, dJ)[0]))
        share = cast(bound / jnp.maximum(norm, bound), value.dtype)
        weight, dJ = weight * share, dJ * share
    updating = map_leaves(_leaf(lambda own, g: _updated(optimizer, own, _mean(own, g, weight))), layer)
    updated, _, _ = pull(last[1], updating, own, cache, dJ)
    value = cast((jnp.sum(widen(values)) + widen(value)) / k, value.dtype)
    return Swept((value, *after) if after else value, _each(updated, lambda own: own.updated), norm)


def _summed(layer: Layer, updated: PyTree, batches: PyTree, state: PyTree, count: int) -> tuple[PyTree, PyTree, Array]:
    """What each leaf has and the sum of its gradients over the first micro-batches; the next state, and every J."""

    def swept(leaf, own, batch, state):
        network = map_leaves(leaf, layer)
        y, cache = network.forward(own, _given(layer, batch, state))
        value, state = (y, state) if layer.begin is None else y
        return pull(batch[1], network, own, cache, as_cotangent(layer.name, None, value))[0], state, value

    def beside(totals):
        return jax.tree.map(_Summing, updated, totals, is_leaf=_is_updated)

    def add(carry, batch):
        totals, state = carry
        own, state, value = swept(summing, beside(totals), batch, state)
        return (_each(own, lambda own: own.total), state), value

    summing = _leaf(lambda own, g: own._replace(updated=None, total=added(own.total, jax.tree.map(widen, g))))
    own = _each(updated, lambda node: _Summing(node, None))
    one = jax.tree.map(lambda v: v[0], batches)
    like = jax.eval_shape(lambda *of: swept(_leaf(lambda own, g: g), *of)[0], own, one, state)
    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, wide_dtype(v.dtype)), like)
    (totals, state), values = loops.scan(add, (zeros, state), batches, count)
    return beside(totals), state, values


def _leaf(put: Callable[[_Summing, PyTree], PyTree]) -> Callable[[Layer], Layer]:
    """A leaf transformation: params are a leaf's `_Summing`, and `put(own, dparams)` is in the place of dparams."""

    def transform(leaf: Layer) -> Layer:
        def forward(own, x):
            return leaf.forward(own.updated.params, x)

        def backward(own, cache, dy):
            dparams, dx = leaf.backward(own.updated.params, cache, dy)
            return put(own, dparams), dx

        return leaf._replace(forward=forward, backward=backward, held=None, evaluating=None, decoding=None, renews=True)

    return transform


def _mean(own: _Summing, g: PyTree, weight: ArrayLike) -> PyTree:
    """The mean over all micro-batches, of the sum of those before, and of what the last one, weighed, has given."""
    if own.total is None:
        return g
    return jax.tree.map(
        lambda total, g: cast(total * cast(jnp.asarray(weight), total.dtype) + widen(g), g.dtype), own.total, g
    )


def _square(g: PyTree) -> list[Array]:
    """The sum of the squares of all arrays."""
    return [jnp.sum(jnp.abs(widen(v)) ** 2) for v in jax.tree.leaves(g)]


def _total(squares: PyTree) -> Array:
    return jnp.sum(jnp.stack([jnp.sum(v) for v in jax.tree.leaves(squares)]))


def _updated(optimizer: optax.GradientTransformation, own: _Summing, g: PyTree) -> _Summing:
    return _Summing(apply_update(optimizer, own.updated, g), None)


def _given(layer: Layer, batch: PyTree, state: PyTree) -> PyTree:
    return batch[0] if layer.begin is None else With(batch[0], state, batch[1])


def _divided(who: str, arrays: PyTree, k: int) -> tuple[PyTree, PyTree]:
    """The first k - 1 micro-batches, with an axis for them in front, and the last."""
    sizes = {jnp.shape(v)[:1] for v in jax.tree.leaves(arrays)}
    if k > 1 and (len(sizes) > 1 or () in sizes or next(iter(sizes))[0] % k):
        came = ", ".join(str(jnp.shape(v)) for v in jax.tree.leaves(arrays))
        raise ValueError(
            f"{who}: x has arrays of shapes {came}, expected (N, ...) of one N that {k} micro-batches divide"
        )
    n = next(iter(sizes))[0] // k if k > 1 else None
    if n is None:
        return (), arrays
    arrays = jax.tree.map(lambda v: jnp.asarray(v).reshape(k, n, *v.shape[1:]), arrays)
    return tuple(jax.tree.map(lambda v, i=i: v[i], arrays) for i in (slice(k - 1), k - 1))  # pyright: ignore


def _each(tree: PyTree, f: Callable[[PyTree], PyTree]) -> PyTree:
    """Of every leaf's node of a network's tree what f makes of it."""
    return jax.tree.map(f, tree, is_leaf=lambda node: isinstance(node, Updated | _Summing))


def _is_updated(node: object) -> bool:
    return isinstance(node, Updated)
