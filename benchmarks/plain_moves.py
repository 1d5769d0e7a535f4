"""The best plain forms of what moves elements: a scatter, and tokens to their experts and back, by one sort.

JAX has no derivative of a scatter that multiplies, so that `segment_prod` has no other plain form than its reference.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from bpref.rules.mixture.expert_permute import Permuted

EXPERTS = 8


def scatter_along_axis(params: Any, x: tuple[Array, Array, Array]) -> Array:
    data, indices, updates = x
    return data.at[jnp.arange(len(data))[:, None], indices].add(updates)


def expert_permute(params: Any, x: tuple[Array, Array]) -> Permuted:
    tokens, chosen = x
    order, sizes = _sorted(chosen)
    rows = tokens[order % len(tokens)]
    return Permuted(jnp.where((jnp.arange(len(rows)) < jnp.sum(sizes))[:, None], rows, 0), sizes)


def expert_unpermute(params: Any, x: tuple[Array, Array, Array]) -> Array:
    rows, chosen, weights = x
    place = jnp.argsort(_sorted(chosen)[0]).reshape(chosen.T.shape).T
    kept = jnp.where((chosen >= 0) & (chosen < EXPERTS), weights, 0)
    return jnp.einsum("nk,nkd->nd", kept, rows[place])


def _sorted(chosen: Array) -> tuple[Array, Array]:
    """First choices before second ones, by expert, those of no expert last; and how many each expert has."""
    flat = chosen.T.reshape(-1)
    flat = jnp.where((flat < 0) | (flat >= EXPERTS), EXPERTS, flat)
    return jnp.argsort(flat, stable=True), jnp.bincount(flat, length=EXPERTS + 1)[:-1]


PLAIN: dict[str, Callable[..., Any]] = {f.__name__: f for f in (scatter_along_axis, expert_permute, expert_unpermute)}
"""By rule."""
