"""Attention with a state as it is written down: step after step, and by chunks of steps in one formula each."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from bpref.formulas.attention.heads import Heads
from bpref.formulas.recurrence.steps import Passed


def naive_states(
    step: Callable[..., Array],
    heads: Heads,
    others: tuple[Array, ...] = (),
    state: Array | None = None,
    final: bool = False,
) -> Array | Passed:
    """y_t = S_t^T q_t, S_t = `step(S_{t-1}, k_t, v_t, *others_t)`, what each head of keys has for each of queries.

    Args:
      heads: q (*b, T, N, D), k and v (*b, T, K, ...), and the ids of packed sequences, each of which begins with S = 0.
      others: arrays (*b, T, K, n) that a step is given besides.
      state: the S (*b, K, D, E) to begin with, zeros where there is none.
      final: whether the last S is given out as well.
    """
    q, k, v = heads[:3]
    each = q.shape[-2] // k.shape[-2]
    k, v, *more = (jnp.repeat(z, each, -2) for z in (k, v, *others))
    zeros = jnp.zeros((*q.shape[:-3], q.shape[-2], q.shape[-1], v.shape[-1]), v.dtype)
    ids = jnp.zeros(q.shape[:-2], int) if heads.q_segments is None else heads.q_segments
    before = jnp.concatenate([ids[..., :1], ids[..., :-1]], -1)

    def body(S, now):
        is_new, q_t, *now = now
        S = step(jnp.where(is_new[..., None, None, None], 0, S), *now)
        return S, jnp.einsum("...d,...de->...e", q_t, S)

    by_time = (jnp.moveaxis(ids != before, -1, 0), *(jnp.moveaxis(z, -3, 0) for z in (q, k, v, *more)))
    S, y = lax.scan(body, zeros if state is None else jnp.repeat(state, each, -3), by_time)
    y = jnp.moveaxis(y, 0, -3)
    return Passed(y, S[..., ::each, :, :]) if final else y


def added(S: Array, k: Array, v: Array) -> Array:
    """S + k v^T."""
    return S + k[..., :, None] * v[..., None, :]


def corrected(S: Array, k: Array, v: Array, beta: Array) -> Array:
    """S + beta k (v - S^T k)^T."""
    return added(S, k, beta * (v - jnp.einsum("...d,...de->...e", k, S)))


def naive_chunks(
    heads: Heads, gate: Array, beta: Array | None = None, state: Array | None = None, length: int = 4
) -> Passed:
    """S_t = (I - beta_t k_t k_t^T) diag(gate_t) S_{t-1} + beta_t k_t v_t^T and y_t = S_t^T q_t, so many steps at once.

    The last chunk has as many steps as are left. Without beta it is S_t = diag(gate_t) S_{t-1} + k_t v_t^T.

    Args:
      heads: q (*b, T, N, D), k and v (*b, T, K, ...), and the ids of packed sequences.
      gate: what remains, (*b, T, K, D), or of size 1 where it is the same for all features.
      beta: (*b, T, K, 1).
    """
    q, k, v = heads[:3]
    each = q.shape[-2] // k.shape[-2]
    k, v, gate, *more = (jnp.repeat(z, each, -2) for z in (k, v, gate, *(() if beta is None else (beta,))))
    if heads.q_segments is not None:
        ids = heads.q_segments
        is_new = ids != jnp.concatenate([ids[..., :1], ids[..., :-1]], -1)
        gate = jnp.where(is_new[..., None, None], 0, gate)
    by_head = [jnp.moveaxis(z, -3, -2) for z in (q, k, v, gate, *more)]
    S = jnp.zeros((*by_head[0].shape[:-2], q.shape[-1], v.shape[-1]), v.dtype)
    S = S if state is None else jnp.repeat(state, each, -3)
    y = [by_head[2][..., :0, :]]
    for start in range(0, q.shape[-3], length):
        S, read = _chunk(S, *(z[..., start : start + length, :] for z in by_head))
        y.append(read)
    return Passed(jnp.moveaxis(jnp.concatenate(y, -2), -2, -3), S[..., ::each, :, :])


def _chunk(S: Array, q: Array, k: Array, v: Array, gate: Array, beta: Array | None = None) -> tuple[Array, Array]:
    """The state after a chunk, and its y."""
    L = q.shape[-2]
    t, s, u = (jnp.arange(L).reshape(shape) for shape in ((L, 1, 1), (1, L, 1), (1, 1, L)))
    between = ((s < u) & (u <= t))[..., None]
    between = between.reshape(*[1] * (gate.ndim - 2), *between.shape)
    left = jnp.prod(jnp.where(between, gate[..., None, None, :, :], 1), -2)
    from_start = jnp.cumprod(gate, -2)
    past = jnp.tril(jnp.ones((L, L), bool))
    past = past.reshape(*[1] * (q.ndim - 2), L, L)
    of_pairs = jnp.broadcast_to(left, (*left.shape[:-1], k.shape[-1]))
    if beta is not None:
        overlaps = jnp.einsum("...ti,...tsi,...si->...ts", k, of_pairs, k) * jnp.swapaxes(beta, -1, -2)
        eye = jnp.eye(L, dtype=k.dtype).reshape(past.shape)
        strictly = past & (eye == 0)
        v = beta * jnp.linalg.solve(eye + jnp.where(strictly, overlaps, 0), v - (from_start * k) @ S)
    weights = jnp.where(past, jnp.einsum("...ti,...tsi,...si->...ts", q, of_pairs, k), 0)
    after = jnp.swapaxes(from_start[..., -1:, :], -1, -2) * S + jnp.swapaxes(left[..., -1, :, :] * k, -1, -2) @ v
    return after, weights @ v + (from_start * q) @ S


def naive_affine_chunks(a: Array, b: Array, h: Array, length: int = 4) -> tuple[Array, Array]:
    """h_t = a_t h_{t-1} + b_t for all steps, the second axis, so many of them at once; and the last h."""
    states = [b[:, :0]]
    for start in range(0, a.shape[1], length):
        of, more = a[:, start : start + length], b[:, start : start + length]
        L = of.shape[1]
        t, s, u = (jnp.arange(L).reshape(shape) for shape in ((L, 1, 1), (1, L, 1), (1, 1, L)))
        between = ((s < u) & (u <= t)).reshape(1, L, L, L, *[1] * (a.ndim - 2))
        left = jnp.prod(jnp.where(between, of[:, None, None], 1), 3)
        seen = jnp.tril(jnp.ones((L, L), bool)).reshape(1, L, L, *[1] * (a.ndim - 2))
        states.append(jnp.cumprod(of, 1) * h[:, None] + jnp.sum(jnp.where(seen, left * more[:, None], 0), 2))
        h = states[-1][:, -1]
    return jnp.concatenate(states, 1), h
