"""One step of training: the sweep through the network, and the update of every parameter.

Either the whole gradient first and then one update (optax's way), or the seed's own loop, which updates a layer
as soon as its gradient is there and goes on to the layer below.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import PyTree

from bpref.compose import objective
from bpref.dtypes import widen
from bpref.layer import Layer, With, backpropagate, begin, map_leaves
from bpref.naming import flat_names, name_of
from bpref.programs import Typed
from bpref.train.averaging import averaged
from bpref.train.rounding import rounded_like
from bpref.trained import select, trainable
from bpref.transforms import Updated, apply_update, cast_params, params_of, update_in_backward


class LossScale(NamedTuple):
    """What J's cotangent is, in place of 1, so that no gradient is too small for its dtype; and since when."""

    S: Array
    steps: Array


class Going(NamedTuple):
    """What a training loop carries from a step to the next.

    Attributes:
      updated: the parameters and the optimiser's state, in one tree.
      state: of the layers, keys and running statistics; `()` where they have none.
      scale: of the loss, where the gradient needs one; else `()`.
      rounding: the key of the draws by which parameters are rounded; `()` where they are not.
    """

    updated: PyTree
    state: PyTree
    scale: LossScale | tuple[()] = ()
    rounding: Array | tuple[()] = ()


class Stepper(NamedTuple):
    """What a training loop needs.

    Attributes:
      init: `(key, (X, y)) -> Going`.
      step: `(Going, (X, y)) -> (Going, J, norms)`; `norms` has the gradient's Euclidean norm by layer.
      params: `(Going) -> params`, those of the objective.
      objective: the layer `(X, y) -> J`, as it is computed in training.
      skipped: `(Going) -> Going`, what is gone on with after a step that is not taken.
      shown: `(Going) -> params`, those to evaluate and to keep: their average where the optimiser makes one.
    """

    init: Callable[[Array, PyTree], Going]
    step: Callable[[Going, PyTree], tuple[Going, Array, dict[str, Array]]]
    params: Callable[[Going], PyTree]
    objective: Layer
    skipped: Callable[[Going], Going]
    shown: Callable[[Going], PyTree]


LARGEST_SCALE, SCALE_GROWS_AFTER = 2.0**15, 2000
"""Where the scale of a loss begins; it is halved when a gradient is not finite, and doubled after so many that are."""


def whole_gradient(
    J: Layer, optimizer: optax.GradientTransformation, scaled: bool = False, rounded: bool = False
) -> Stepper:
    """A step of the objective J: the gradient of all parameters, then their update.

    With `scaled`, J's cotangent is a power of two that follows the gradients (Micikevicius et al., arXiv:1710.03740).
    With `rounded`, what is trained is kept in bfloat16, rounded by chance; the optimiser works in float32.
    """

    def init(key, batch):
        params, state = begin(J, key, batch)
        mask = trainable(J, params, beside(J, batch, state))
        scale = LossScale(jnp.float32(LARGEST_SCALE), jnp.int32(0)) if scaled else ()
        of_optimizer = optimizer.init(select(mask, params))
        if rounded:
            params = jax.tree.map(lambda keep, p: p.astype(jnp.bfloat16) if keep else p, mask, params)
        return Going(Updated(params, of_optimizer), state, scale, jax.random.fold_in(key, 1) if rounded else ())

    def step(going, batch):
        params, scale, rounding = going.updated.params, going.scale, going.rounding
        value, state, dparams = swept(J, params, batch, going.state, scale.S if scaled else None)
        if scaled:
            dparams = jax.tree.map(lambda d: d / scale.S.astype(d.dtype), dparams)
            grown = jnp.where(scale.steps + 1 == SCALE_GROWS_AFTER, jnp.minimum(2 * scale.S, LARGEST_SCALE), scale.S)
            scale = LossScale(grown, (scale.steps + 1) % SCALE_GROWS_AFTER)
        if not rounded:
            updated = apply_update(optimizer, going.updated, dparams)
        else:
            rounding, key = jax.random.split(rounding)
            wide, dparams = jax.tree.map(_widened, (params, dparams))
            updated = apply_update(optimizer, Updated(wide, going.updated.state), dparams)
            updated = updated._replace(params=rounded_like(key, updated.params, params))
        return Going(updated, state, scale, rounding), value, norms_by_layer(dparams)

    def skipped(going):
        return going._replace(scale=LossScale(going.scale.S / 2, jnp.int32(0))) if scaled else going

    def shown(going):
        params = averaged(going.updated.state, going.updated.params)
        return jax.tree.map(_widened, params) if rounded else params

    return Stepper(init, step, lambda going: going.updated.params, J, skipped, shown)


def _widened(v: Array) -> Array:
    return widen(v) if jnp.issubdtype(v.dtype, jnp.floating) else v


def layer_by_layer(J: Layer, optimizer: optax.GradientTransformation) -> Stepper:
    """A step of the objective J in one sweep, in which each layer's update follows its gradient.

    Raises:
      ValueError: the optimiser's update of one parameter depends on another's gradient.
    """
    updating = map_leaves(update_in_backward(optax.chain(record_norm(), optimizer)), J)

    def step(going, batch):
        value, state, updated = swept(updating, going.updated, batch, going.state)
        return Going(updated, state), value, _recorded_norms(updated)

    def params(going):
        return params_of(going.updated)

    def init(key, batch):
        return Going(*begin(updating, key, batch))

    return Stepper(init, step, params, J, lambda going: going, params)


def beside(J: Layer, batch: PyTree, state: PyTree) -> PyTree:
    """What J is given: the batch, `With` its state where it has one."""
    return batch if J.begin is None else With(batch, state)


def swept(
    J: Layer, params: PyTree, batch: PyTree, state: PyTree, scale: Array | None = None
) -> tuple[Array, PyTree, PyTree]:
    """J, its state at the next step, and what the sweep leaves in the place of dparams, for J's cotangent `scale`."""
    x = beside(J, batch, state)
    if scale is not None:
        of_J = jax.eval_shape(J.forward, params, x)[0]
        scale = scale.astype((of_J if J.begin is None else of_J[0]).dtype)
    y, dparams, _ = backpropagate(J, params, x, scale)
    return (y, state, dparams) if J.begin is None else (*y, dparams)


def in_dtype(layer: Layer, dtype: DTypeLike) -> Layer:
    """The layer, computed in `dtype`; where that is a half precision, its parameters stay in float32."""
    return layer if jnp.finfo(dtype).bits >= 32 else map_leaves(cast_params(dtype), layer)


def training_objective(network: Layer, loss: Layer, dtype: DTypeLike) -> Layer:
    """`objective(network, loss)`; for a half-precision dtype, parameters and the loss stay in float32.

    The network then takes X in `dtype` and computes in it, and the loss takes y in float32.
    """
    return objective(in_dtype(network, dtype), loss if jnp.finfo(dtype).bits >= 32 else _of_widened(loss))


def _of_widened(loss: Layer) -> Layer:
    """The loss of a prediction widened to float32; the prediction's cotangent is rounded to its dtype."""

    def init(key, x):
        y_hat, y = x
        return loss.init(key, (jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float32), y_hat), y))

    def forward(params, x):
        y_hat, y = x
        J, cache = loss.forward(params, (jax.tree.map(widen, y_hat), y))
        return J, (cache, jax.tree.map(lambda v: jnp.zeros((0,), v.dtype), y_hat))

    def backward(params, cache, dJ):
        cache, of_dtype = cache
        dparams, (dy_hat, dy) = loss.backward(params, cache, dJ)
        return dparams, (jax.tree.map(lambda v, d: d.astype(v.dtype), of_dtype, dy_hat), dy)

    return Layer(init, forward, backward, loss.name)


class NormState(NamedTuple):
    norm: Array


def record_norm() -> optax.GradientTransformation:
    """Passes the gradient on as it is, and keeps its Euclidean norm as its state."""

    def init(params):
        return NormState(jnp.zeros((), jnp.result_type(float)))

    def update(updates, state, params=None):
        return updates, NormState(_norm(updates).astype(state.norm.dtype))

    return optax.GradientTransformation(init, update)


def _recorded_norms(tree: PyTree) -> dict[str, Array]:
    leaves = jax.tree_util.tree_flatten_with_path(of_network(tree), is_leaf=lambda node: isinstance(node, Updated))[0]
    return {name_of(path): _norm(leaf.state[0].norm) for path, leaf in leaves if jax.tree.leaves(leaf.params)}


def norms_by_layer(dparams: PyTree) -> dict[str, Array]:
    """The Euclidean norm of each layer's gradient, under the layer's place in the network: `0`, `2`, `4.1`."""
    by_layer: dict[str, list[Array]] = {}
    for name, d in flat_names(of_network(dparams)).items():
        by_layer.setdefault(name.rpartition(".")[0], []).append(d)
    return {layer: _norm(arrays) for layer, arrays in by_layer.items()}


def is_a_pair(J: Layer) -> bool:
    """Whether J is `objective(network, loss)` without names, whose params are a pair."""
    return J.name == "objective" and not J.names


def of_network(tree: PyTree) -> PyTree:
    """Of the pair that belongs to `objective(network, loss)` the network's; a tree with names is taken whole."""
    return tree[0] if type(tree) is tuple else tree


def is_key(v: Typed) -> bool:
    """Whether it is a PRNG key, which no file takes and no training begins anew with."""
    return jnp.issubdtype(v.dtype, jax.dtypes.prng_key)


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(sum(jnp.sum(widen(v) ** 2) for v in jax.tree.leaves(tree)))
