"""averaging: an exponential moving average of the parameters, beside an optimiser's own state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PyTree


class Averaged(NamedTuple):
    """The state of `averaging`: the optimiser's own, the average, and how many updates it is of."""

    state: PyTree
    average: PyTree
    updates: Array


def averaging(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The optimiser, with a moving average of the parameters that it makes in its state."""
    if not 0 <= decay < 1:
        raise ValueError(f"average is {decay:g}, expected a decay from 0 to below 1, such as 0.999")

    def init(params):
        return Averaged(optimizer.init(params), params, jnp.zeros((), jnp.int32))

    def update(updates, state, params: PyTree = None):
        updates, inner = optimizer.update(updates, state.state, params)
        now = jnp.minimum(decay, (1.0 + state.updates) / (10.0 + state.updates))
        average = optax.incremental_update(optax.apply_updates(params, updates), state.average, 1 - now)
        return updates, Averaged(inner, average, state.updates + 1)

    return optax.GradientTransformation(init, update)


def averaged(state: PyTree, params: PyTree) -> PyTree:
    """The average of the parameters in an optimiser's state; of what has none, `params` themselves."""
    states = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Averaged))
    found = [node.average for node in states if isinstance(node, Averaged)]
    if not found:
        return params
    return jax.tree.map(lambda a, p: p if a is None else a, found[0], params, is_leaf=lambda v: v is None)
