"""The LSTM through 512 steps: by hand, beside `jax.value_and_grad` of a scan of the cell, as it is or checkpointed.

All give the value of sum(y * weights) and the gradients of the parameters and of x.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.contest import Contest
from bpref.formulas.affine import plus
from bpref.formulas.steps import Passed
from bpref.rules.recurrence.lstm import LstmParams, LstmState, lstm

B, T, D, H = 16, 512, 256, 256


def cell(params: LstmParams, state: LstmState, x_t: Array) -> tuple[LstmState, Array]:
    """One step, as a cell of Flax has it: both products in the step."""
    h, c = state
    i, f, g, o = jnp.split(plus(x_t @ params.W.T + h @ params.U.T, params.b), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return LstmState(h, c), h


def naive(step: Callable[..., Any]) -> Callable[..., Any]:
    """The value and the gradients of a scan of the cell."""

    def objective(params, x, weights):
        start = LstmState(*(jnp.zeros((x.shape[0], H), x.dtype) for _ in range(2)))
        _, h = lax.scan(lambda s, x_t: step(params, s, x_t), start, jnp.swapaxes(x, 0, 1))
        return jnp.sum(jnp.swapaxes(h, 0, 1) * weights)

    return jax.value_and_grad(objective, (0, 1))


def by_hand(checkpoint: int | None) -> Callable[..., Any]:
    layer = lstm(H, checkpoint=checkpoint)

    def value_and_gradients(params, x, weights):
        (y, state), cache = layer.forward(params, x)
        zeros = jax.tree.map(jnp.zeros_like, state)
        return jnp.sum(y * weights), layer.backward(params, cache, Passed(weights, zeros))

    return value_and_gradients


def contests() -> list[Contest]:
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = (jax.random.normal(k, (B, T, n)) for k, n in zip(keys, (D, H), strict=False))
    params = lstm(H).init(keys[2], x)
    rivals = {"jax.value_and_grad": naive(cell), "and jax.checkpoint of the cell": naive(jax.checkpoint(cell))}
    sizes = f"B {B}, T {T}, d {D}, H {H}"
    return [
        Contest(f"lstm, {sizes}", by_hand(None), rivals, (params, x, weights), 0.6, 0.9),
        Contest(f"lstm, checkpoint every 32, {sizes}", by_hand(32), rivals, (params, x, weights), 0.6, None),
    ]
