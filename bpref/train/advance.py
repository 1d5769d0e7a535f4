"""advance: as many steps of an epoch as are asked for, in one compiled loop. It is the same program for any number of
them, so that where a run returns to Python, or was stopped and went on, cannot be told from its bits."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.train.step import Going, Stepper


class Carry(NamedTuple):
    """What goes from a step to the next, and what the running epoch has seen.

    Attributes:
      going: parameters, the optimiser's state, keys and running statistics.
      losses: (steps,), J of every step of the epoch; those that are still to come are 0.
      norms: by layer, (steps,), the Euclidean norm of its gradient.
      taken: (steps,), whether the step was taken: its loss and its gradient were finite.
      in_a_row: (), how many steps up to here were skipped, one after the other.
    """

    going: Going
    losses: Array
    norms: dict[str, Array]
    taken: Array
    in_a_row: Array


def first_carry(stepper: Stepper, going: Going, data: PyTree, order: Array) -> Carry:
    """Before the first step of all."""
    batch = jax.eval_shape(lambda data, rows: jax.tree.map(lambda v: v[rows], data), data, order[0])
    _, J, norms = jax.eval_shape(stepper.step, going, batch)
    losses, norms = jax.tree.map(lambda v: jnp.zeros(len(order), v.dtype), (J, norms))
    return Carry(jax.tree.map(jnp.copy, going), losses, norms, jnp.ones(len(order), bool), jnp.int32(0))


def advance(stepper: Stepper, most_skipped: int) -> Callable[[Carry, PyTree, Array, Array, Array], Carry]:
    """`(carry, data, order, first, last) -> carry` after the steps `first` to `last - 1` of the epoch.

    A step that is not finite is skipped: all goes on as if it had not been. After more than `most_skipped` in a row
    no step is taken any more.
    """

    def step(i: Array, carry: Carry, data: PyTree, order: Array) -> Carry:
        going, *_, in_a_row = carry
        stepped, J, norms = stepper.step(going, jax.tree.map(lambda v: v[order[i]], data))
        finite = jnp.isfinite(jnp.stack([J, *(norm.astype(J.dtype) for norm in norms.values())])).all()
        in_a_row = jnp.where(finite & (in_a_row <= most_skipped), 0, in_a_row + 1)
        taken = in_a_row == 0
        return Carry(
            jax.tree.map(lambda new, old: jnp.where(taken, new, old), stepped, stepper.skipped(going)),
            carry.losses.at[i].set(J),
            jax.tree.map(lambda seen, norm: seen.at[i].set(norm), carry.norms, norms),
            carry.taken.at[i].set(taken),
            in_a_row,
        )

    def steps(carry, data, order, first, last):
        return lax.fori_loop(first, last, lambda i, carry: step(i, carry, data, order), carry)

    return steps
