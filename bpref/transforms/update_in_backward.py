"""update_in_backward: the seed's own loop. Compute a layer's gradient, update it, go on to the layer below.

The parameter slot of a leaf's backward returns the *updated* parameters, and the optimiser's new state, in
place of the gradient: when the sweep reaches the input, the step is done. dx is computed with the old
parameters, as the derivation demands, so the result equals a full backward followed by a full update.

That holds for any optimiser whose update of a parameter reads that parameter's own gradient, state and value
alone. One that mixes parameters (clipping by the global norm, say) needs the whole gradient first, and is
refused: its update is traced on two parameters, and the trace is searched for a path from the one to the other.
`update_by_sweeps` clips by the global norm beside such an optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from bpref.apart import sealed
from bpref.cotangents import has_cotangent
from bpref.dtypes import described
from bpref.layer import Layer, With, begin, require_layer
from bpref.trained import select, trainable
from bpref.transforms.feedback import Feedback

if TYPE_CHECKING:
    import optax


class Updated(NamedTuple):
    """What a leaf's params become: its own params, and the optimiser's state for them."""

    params: PyTree
    state: optax.OptState


def update_in_backward(optimizer: optax.GradientTransformation) -> Callable[[Layer], Layer]:
    """A leaf transformation, for `map_leaves`: the backward returns updated parameters.

    Of the network `map_leaves(update_in_backward(optimizer), network)`, `init` gives the parameters that
    `network.init` gives for the same key, each leaf's wrapped in `Updated` with its optimiser state; `backward`
    returns the tree to go on with, and dx. `params_of` takes the plain parameters out.

    Args:
      optimizer: any optax transformation that updates each array from its own gradient, state and value. Inside
        `scan` an array is one layer's slice: an optimiser that takes a norm of each array (lamb, adafactor) takes
        it layer by layer there, where an update of the stacked parameters would take it of the whole stack.

    Example:
      >>> updating = bpref.map_leaves(bpref.update_in_backward(optax.sgd(0.1)), J)
      >>> p = updating.init(jax.random.key(0), (X, y))
      >>> value, p, _ = bpref.backpropagate(updating, p, (X, y))
      >>> bpref.params_of(p)[0].W.shape
      (3, 2)

    Raises:
      ValueError: the optimiser's update of one array depends on another's, or on random numbers.
      TypeError: it is no optax transformation.
    """
    require_by_itself("update_in_backward", optimizer)

    def transform(leaf: Layer) -> Layer:
        require_layer("update_in_backward", "leaf", leaf)

        def updated(params, x):
            return Updated(params, optimizer.init(select(trainable(leaf, params, x), params)))

        def init(key, x):
            return updated(leaf.init(key, x), x) if leaf.begin is None else begin_updated(key, x)[0]

        def begin_updated(key, x):
            given = x if isinstance(x, With) else With(x)
            params, state = begin(leaf, key, given)
            return updated(params, given._replace(state=state)), state

        def forward(updated, x):
            return leaf.forward(updated.params, x)

        def backward(updated, cache, dy):
            dparams, dx = leaf.backward(updated.params, cache, dy)
            return apply_update(optimizer, updated, dparams), dx

        begin_own = None if leaf.begin is None else begin_updated
        own = {"init": init, "forward": forward, "backward": backward, "begin": begin_own}
        return sealed("update_in_backward", leaf, transform, **own, decoding=None, renews=True)

    return transform


def apply_update(optimizer: optax.GradientTransformation, updated: Updated, dparams: PyTree) -> Updated:
    """One update of parameters and optimiser state; what has no cotangent stays as it is."""
    import optax  # whoever has an optimizer has it loaded; `import bpref` is spared it

    mask = has_cotangent(updated.params, dparams)
    trained = select(mask, updated.params)
    updates, state = optimizer.update(dparams, updated.state, trained)
    stepped = optax.apply_updates(trained, updates)
    params = jax.tree.map(lambda keep, new, old: new if keep else old, mask, stepped, updated.params)
    return Updated(params, state)


def params_of(tree: PyTree) -> PyTree:
    """The plain parameters of a network whose leaves update in the backward, or have feedback weights.

    Example:
      >>> updating = bpref.map_leaves(bpref.update_in_backward(optax.sgd(0.1)), J)
      >>> jax.tree.structure(bpref.params_of(updating.init(jax.random.key(0), (X, y)))) == jax.tree.structure(params)
      True
    """

    def has_params(node):
        return isinstance(node, Updated | Feedback)

    return jax.tree.map(lambda node: node.params if has_params(node) else node, tree, is_leaf=has_params)


def require_optimizer(who: str, optimizer: object) -> None:
    """Raise `TypeError` unless `optimizer`, the argument of `who`, is one of optax."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"{who}: optimizer is {described(optimizer)}, expected an optax transformation such as optax.sgd(0.1)"
        )


def require_by_itself(who: str, optimizer: optax.GradientTransformation) -> None:
    """Raise unless `optimizer`, the argument of `who`, is of optax, draws nothing and mixes no parameters."""
    require_optimizer(who, optimizer)
    if draws_random_numbers(optimizer):
        raise ValueError(
            f"{who}: this optimizer draws random numbers, and would draw the same ones for every layer; "
            "use the gradient of the whole network with it"
        )
    if mixes_parameters(optimizer):
        raise ValueError(
            f"{who}: this optimizer's update of one parameter depends on another parameter's gradient "
            "(as clipping by the global norm does), so it needs the whole gradient before its first update; "
            "use the gradient of the whole network with it, or an optimizer that treats each parameter by itself"
        )


def draws_random_numbers(optimizer: optax.GradientTransformation) -> bool:
    """Whether an update draws from a PRNG: its state would start alike in every layer."""

    def update(p):
        return optimizer.update(p, optimizer.init(p), p)[0]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        program = str(jax.make_jaxpr(update)(jnp.ones(2)))
    return "random_bits" in program or "threefry" in program


def mixes_parameters(optimizer: optax.GradientTransformation, steps: int = 3) -> bool:
    """Whether the optimiser's update of one parameter can depend on another parameter, within `steps` updates.

    Decided by data flow in the traced program, not by values: no threshold has to be crossed for it to be seen.
    """

    def updates_of_first(own, other):
        params = {"own": own[0], "other": other[0]}
        state = optimizer.init(params)
        updates: PyTree = params
        for own_gradient, other_gradient in zip(own[1:], other[1:], strict=True):
            updates, state = optimizer.update({"own": own_gradient, "other": other_gradient}, state, params)
        return updates["own"]

    arrays = [jnp.ones((2, 2))] * (steps + 1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        program = jax.make_jaxpr(updates_of_first)(arrays, arrays)
    _, used = partial_eval.dce_jaxpr(program.jaxpr, [True])
    return any(used[len(arrays) :])
