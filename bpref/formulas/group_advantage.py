"""How much better an answer was than its group: A_i = (R_i - mean_i R) / (std_i R + eps), or R_i - mean_i R.

std is the deviation of the population, the root of 1/G sum_i (R_i - mean R)^2, or of the sample, with G - 1 for G
(`ddof`). It is of R minus its mean, in two passes; a group whose rewards are equal has A = 0.
"""

import jax.numpy as jnp
from jax import Array

from bpref.checks.hyperparameters import is_integer, plain
from bpref.formulas.reduced import mean_of


def group_advantages(R: Array, scaled: bool, eps: float, ddof: int) -> Array:
    """A for rewards R (..., G)."""
    e = R - mean_of(R, (R.ndim - 1,))
    if not scaled:
        return e
    return e / (jnp.sqrt(jnp.sum(e * e, -1, keepdims=True) / max(R.shape[-1] - ddof, 1)) + eps)


def require_ddof(who: str, ddof: int) -> int:
    """It as Python has it; raises `ValueError` unless it is 0 or 1."""
    if not (is_integer(ddof) and ddof in (0, 1)):
        raise ValueError(f"{who}: ddof is {ddof!r}, expected 0 or 1")
    return plain(ddof)
