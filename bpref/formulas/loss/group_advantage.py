"""How much better an answer was than its group: A_i = (R_i - mean_i R) / (std_i R + eps), or R_i - mean_i R.

std is the deviation of the population, the root of 1/G sum_i (R_i - mean R)^2, or of the sample, with G - 1 for G
(`ddof`). It is of R minus its mean, in two passes; a group whose rewards are equal has A = 0.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from bpref.checks.hyperparameters import is_integer, plain
from bpref.dtypes import widen
from bpref.formulas.loss.clipped_ratio import require_reference
from bpref.formulas.norm.reduced import mean_of
from bpref.rule import Boolean, Real


class AnswerGroups(NamedTuple):
    policy: Float[Array, "some=*n G>0 T>0"]
    old: Float[Array, "*n G T"]
    reference: Float[Array, "*n G T"] | None
    rewards: Float[Array, "*n G"]
    mask: Bool[Array, "*n G T"]


_TOKENS = Real("B G T", -2.0, 0.0)
GROUPS = (_TOKENS, _TOKENS, _TOKENS, Real("B G"), Boolean("B G T"))
"""What the rules are tried with."""


def beside_held(
    who: str, x: AnswerGroups, kl_weight: float, scaled: bool, eps: float, ddof: int
) -> tuple[Array, Array, Array]:
    """pi - pi_old and rho - pi of each token, 0 outside the mask, and A; all but pi are held."""
    policy, old, rho, R, mask = x
    rho = require_reference(who, rho, kl_weight, policy)
    A = group_advantages(widen(R), scaled, eps, ddof)
    old, rho, A = map(lax.stop_gradient, (widen(old), widen(rho), A))
    pi = widen(policy)
    return jnp.where(mask, pi - old, 0), jnp.where(mask, rho - pi, 0), A


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
