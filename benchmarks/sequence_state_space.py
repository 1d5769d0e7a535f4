"""Linear recurrences and Mamba's scan beside autodiff of the two naive forms: a loop, and an associative scan."""

import jax
import jax.numpy as jnp
from jax import Array, lax

import bpref
from benchmarks.contest import Contest, by_hand, gradients, gradients_of_own
from bpref.rules.block import mamba_block
from bpref.rules.state_space import linear_recurrence, rg_lru, selective_scan
from bpref.rules.state_space.selective_scan import Selective, SelectiveScanParams

T = 2048
MEMORY, TIME = 0.4, 0.9


def contests() -> list[Contest]:
    return [recurrence(), scan(1, 256), scan(2, 256), griffin(), block()]


def recurrence() -> Contest:
    a, b, w = (jax.random.normal(jax.random.key(i), (4, T, 256)) for i in range(3))
    x = jnp.tanh(a), b
    rivals = {
        "lax.scan": gradients(linear_recurrence.reference),
        "lax.associative_scan": gradients(lambda p, x: linear_recurrence.reference(p, x, method="associative")),
    }
    return Contest(
        f"linear_recurrence, T {T}, d 256, batch 4",
        by_hand(bpref.linear_recurrence()),
        gradients_of_own(bpref.linear_recurrence()),
        rivals,
        ((), x, w),
    )


def scan(N: int, d: int, states: int = 16) -> Contest:
    layer = bpref.selective_scan(states)
    u, delta, w = (jax.random.normal(jax.random.key(i), (N, T, d)) for i in range(3))
    B, C = (jax.random.normal(jax.random.key(i), (N, T, states)) for i in (3, 4))
    x = Selective(u, delta, B, C)
    params = layer.init(jax.random.key(5), x)
    rivals = {"lax.scan": gradients(selective_scan.reference), "lax.associative_scan": gradients(parallel_scan)}
    name = f"selective_scan, T {T}, d {d}, n {states}, batch {N}"
    return Contest(name, by_hand(layer), gradients_of_own(layer), rivals, (params, x, w), MEMORY, TIME)


def griffin() -> Contest:
    layer = bpref.rg_lru()
    x, w = (jax.random.normal(jax.random.key(i), (1, T, 256)) for i in range(2))
    params = layer.init(jax.random.key(2), x)
    rivals = {"lax.scan": gradients(rg_lru.reference)}
    return Contest(f"rg_lru, T {T}, d 256, batch 1", by_hand(layer), gradients_of_own(layer), rivals, (params, x, w))


def block() -> Contest:
    layer = bpref.mamba_block()
    x, w = (jax.random.normal(jax.random.key(i), (1, T, 128)) for i in range(2))
    params = layer.init(jax.random.key(2), x)
    rivals = {
        "lax.scan": gradients(mamba_block.reference),
        "lax.scan, checkpoint": gradients(jax.checkpoint(mamba_block.reference)),
    }
    return Contest(
        f"mamba_block, T {T}, d 128, batch 1",
        by_hand(layer),
        gradients_of_own(layer),
        rivals,
        (params, x, w),
        MEMORY,
        TIME,
    )


def parallel_scan(params: SelectiveScanParams, x: Selective) -> Array:
    """`selective_scan` with the states of all T steps at once."""
    assert params.bias is not None
    assert params.D is not None
    u, delta, B, C = x[:4]
    s = jax.nn.softplus(delta + params.bias[None, None])
    a = jnp.exp(jnp.einsum("btd,dn->btdn", s, -jnp.exp(params.log_A)))
    b = jnp.einsum("btd,btn->btdn", s * u, B)
    h = lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), (a, b), axis=1)[1]
    return jnp.einsum("btdn,btn->btd", h, C) + params.D[None, None] * u
