"""The clipped surrogate of PPO per token, its slope in the policy's log-probability, and how much each token counts.

    r = exp(pi - pi_old)
    s = min(r A, clip(r, 1 - low, 1 + high) A), and for A < 0, with a dual clip c > 1, at least c A

s is r A, with the slope r A, unless a bound holds: r > 1 + high and A > 0, r < 1 - low and A < 0, or r > c and A < 0.
There s is the bound times A and the slope is 0. A bound that is met exactly is not crossed: the slope is r A.
Where A = 0, s and its slope are 0 whatever r is.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from bpref.checks.hyperparameters import is_number, plain

NORMALIZATIONS = ("sequence", "token", "constant")


def surrogate(log_ratio: Array, A: Array, low: float, high: float, dual: float | None = None) -> tuple[Array, Array]:
    """s and its slope."""
    r = jnp.exp(log_ratio)
    # A = 0 is on the side of the bound from above, where r A is 0 and not NaN though r overflows.
    bound = jnp.where(A >= 0, jnp.minimum(r, 1 + high), jnp.maximum(r, 1 - low))
    if dual is not None:
        bound = jnp.where(A < 0, jnp.minimum(bound, dual), bound)
    s = bound * A
    return s, jnp.where(bound == r, s, 0)


def require_reference(who: str, reference: Array | None, kl_weight: float, policy: Array) -> Array:
    """The reference, in whose place any may stand where it has no weight; raises `TypeError` where it is missed."""
    if reference is None and kl_weight:
        raise TypeError(f"{who}: reference is None, expected an array")
    return policy if reference is None else reference


def token_weights(mask: Array, normalization: str, dtype: DTypeLike) -> Array:
    """What each token of mask (..., T) is multiplied by before all are summed; 0 where the mask is False.

    "sequence": the mean over the sequences of the mean over their tokens; "token": the mean over all tokens;
    "constant": the sum over all tokens by the number of sequences and T. A sequence without a token adds 0.
    """
    m = mask.astype(dtype)
    if normalization == "token":
        return m / jnp.maximum(jnp.sum(m), 1)
    T = mask.shape[-1]
    per_sequence = T if normalization == "constant" else jnp.maximum(jnp.sum(m, -1, keepdims=True), 1)
    return m / (per_sequence * (mask.size // T))


def weighted_sum(w: Array, s: Array, mask: Array) -> Array:
    """The sum of w s over all tokens; w is 0 outside the mask already, but XLA sums a choice as one array, not two."""
    return jnp.sum(jnp.where(mask, w * s, 0))


def require_clips(who: str, low: float, high: float, normalization: str) -> tuple[float, float]:
    """Both as Python has them; raise `ValueError` unless 0 < low < 1, high > 0, and the normalization is known."""
    if not (is_number(low) and 0 < low < 1):
        raise ValueError(f"{who}: clip is {low!r}, expected a number between 0 and 1")
    if not (is_number(high) and high > 0):
        raise ValueError(f"{who}: clip_high is {high!r}, expected a positive number")
    require_normalization(who, normalization)
    return plain(low), plain(high)


def require_normalization(who: str, normalization: str) -> None:
    """Raise `ValueError` unless the normalization is known."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"{who}: normalization is {normalization!r}, expected 'sequence', 'token' or 'constant'")
