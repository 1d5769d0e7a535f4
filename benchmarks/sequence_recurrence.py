"""The LSTM through 512 steps: by hand, beside `jax.value_and_grad` of a scan, as it is or checkpointed.

All give the value of sum(y * weights) and the gradients of the parameters and of x.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.contest import Contest
from bpref.formulas.affine import plus
from bpref.formulas.recurrence.steps import Passed
from bpref.rules.recurrence.lstm import LstmParams, LstmState, lstm

B, T, D, H = 16, 512, 256, 256


def gates(U: Array, state: LstmState, z: Array) -> tuple[LstmState, Array]:
    """One step, from what x and b give the gates."""
    h, c = state
    i, f, g, o = jnp.split(z + h @ U.T, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return LstmState(h, c), h


def plain(step: Callable[..., Any]) -> Callable[..., Any]:
    """The value and the gradients of a scan of the gates, the product with x outside it and done once."""

    def objective(params, x, weights):
        start = LstmState(*(jnp.zeros((x.shape[0], H), x.dtype) for _ in range(2)))
        z = plus(jnp.swapaxes(x, 0, 1) @ params.W.T, params.b)
        _, h = lax.scan(lambda s, z_t: step(params.U, s, z_t), start, z)
        return jnp.sum(jnp.swapaxes(h, 0, 1) * weights)

    return jax.value_and_grad(objective, (0, 1))


def cell_by_cell(params: LstmParams, x: Array, weights: Array) -> Array:
    """The objective as Flax's cell has it: both products in the step."""

    def step(state, x_t):
        return gates(params.U, state, plus(x_t @ params.W.T, params.b))

    start = LstmState(*(jnp.zeros((x.shape[0], H), x.dtype) for _ in range(2)))
    _, h = lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return jnp.sum(jnp.swapaxes(h, 0, 1) * weights)


def own(checkpoint: int | None) -> Callable[..., Any]:
    layer = lstm(H, checkpoint=checkpoint)
    return jax.value_and_grad(lambda params, x, weights: jnp.sum(layer.forward(params, x)[0].y * weights), (0, 1))


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
    rivals = {
        "jax.value_and_grad": plain(gates),
        "and jax.checkpoint of the cell": plain(jax.checkpoint(gates)),
        "both products in the cell": jax.value_and_grad(cell_by_cell, (0, 1)),
    }
    sizes = f"B {B}, T {T}, d {D}, H {H}"
    return [
        Contest(f"lstm, {sizes}", by_hand(None), own(None), rivals, (params, x, weights), 0.6, 0.9),
        Contest(f"lstm, checkpoint every 32, {sizes}", by_hand(32), own(32), rivals, (params, x, weights), 0.6, None),
    ]
