"""A recurrence as a textbook has it, step after step: what the references of the recurrences are made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import PyTree

from bpref.formulas.recurrence.steps import Passed, Steps


def naive_recurrence(
    step: Callable[[Array, PyTree], tuple[PyTree, Array]],
    x: Array | Steps,
    sizes: PyTree,
    reverse: bool,
    truncate: int | None,
) -> Passed:
    """`step(x_t, state) -> (state, h)` for all steps of x; gradients stop at the state before every k-th step.

    Where none is given, the state begins with zeros, of as many features as `sizes` has.
    """
    inputs, given, lengths = sequences(x)
    B, T = inputs.shape[:2]
    start = jax.tree.map(lambda n: jnp.zeros((B, n), inputs.dtype), sizes) if given is None else given
    order = jnp.arange(T)[::-1] if reverse else jnp.arange(T)

    def body(state, slices):
        n, t, x_t = slices
        if truncate is not None:
            stops = (n % truncate == 0) & (n > 0)
            state = jax.tree.map(lambda v: jnp.where(stops, lax.stop_gradient(v), v), state)
        after, h = step(x_t, state)
        live = jnp.ones((B, 1), bool) if lengths is None else (t < lengths.astype(t.dtype))[:, None]
        return jax.tree.map(lambda a, b: jnp.where(live, a, b), after, state), jnp.where(live, h, 0)

    steps = jnp.moveaxis(inputs, 1, 0)
    last, h = lax.scan(body, start, (jnp.arange(T), order, steps[::-1] if reverse else steps))
    return Passed(jnp.moveaxis(h[::-1] if reverse else h, 0, 1), last)


def sequences(x: Array | Steps) -> Steps:
    """The input of a recurrence, where a plain array stands for all that there is to say."""
    return x if isinstance(x, Steps) else Steps(x)
