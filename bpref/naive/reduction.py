"""What a loss's value is of its terms, the naive way."""

import jax.numpy as jnp
from jax import Array


def naive_reduction(terms: Array, reduction: str, weights: Array | None = None) -> Array:
    """The mean, the sum, the terms themselves, or the sum by the first axis; with weights, the mean by their sum."""
    if reduction == "none":
        return terms
    if reduction == "sum":
        return jnp.sum(terms)
    if reduction == "batch_mean":
        return jnp.sum(terms) / (terms.shape[0] if terms.ndim else 1)
    if weights is None:
        return jnp.mean(terms)
    total = jnp.sum(weights)
    return jnp.sum(terms) / jnp.where(total == 0, 1, total)


def naive_token_mean(s: Array, mask: Array, normalization: str) -> Array:
    """Of the masked tokens: the mean of all, their sum by the size of the mask, or the mean of the sequences' means."""
    s, counts = jnp.where(mask, s, 0), mask.astype(s.dtype)
    if normalization == "token":
        return jnp.sum(s) / jnp.maximum(jnp.sum(counts), 1)
    if normalization == "constant":
        return jnp.mean(s)
    return jnp.mean(jnp.sum(s, -1) / jnp.maximum(jnp.sum(counts, -1), 1))
